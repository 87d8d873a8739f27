"""The paper's numbers (PrfaaS, arXiv 2604.15039, Table 6), and what follows from its profile."""

from __future__ import annotations

import pytest
from throughput_builders import DECODE, H20, H200, KV, LENGTHS, LINK, a_traffic, the_case_study

from controlplane.domain.plan import SiteRoles
from controlplane.domain.throughput.equations import (
    decode_stage_per_s,
    kv_throughput_bps,
    local_prefill_stage_per_s,
    offload_stage_per_s,
    role_imbalance,
    system_per_s,
    threshold_imbalance,
)
from controlplane.domain.throughput.frozen import evaluate
from controlplane.domain.throughput.lengths import mean, tail
from controlplane.domain.throughput.solve import solve


def of(share: float, value: float) -> object:
    """Within a part of a value."""
    return pytest.approx(value, rel=share)


def test_the_case_study_comes_out_as_in_the_paper() -> None:
    found = solve(the_case_study(), a_traffic(), form="mean_length")

    assert found.threshold_tokens[LINK] == of(0.02, 19_400)
    assert found.roles["local"] == SiteRoles(prefill_workers=3, decode_workers=5)
    assert found.throughput_per_s == of(0.015, 3.24)
    assert found.egress_bps[LINK] == of(0.015, 12.4e9)
    assert found.offloaded_share["local"] == of(0.01, 0.496)
    assert found.bottleneck == "prefill"


def test_a_homogeneous_fleet_comes_out_as_in_the_paper() -> None:
    found = solve(the_case_study(h200=0, h20=12), a_traffic(), form="mean_length")

    assert found.roles["local"] == SiteRoles(prefill_workers=9, decode_workers=3)
    assert found.throughput_per_s == of(0.015, 2.11)


def test_prefilling_everything_elsewhere_comes_out_as_in_the_paper() -> None:
    naive = {"local": SiteRoles(prefill_workers=0, decode_workers=8)}

    found = solve(the_case_study(), a_traffic(), form="mean_length", roles=naive)

    assert found.throughput_per_s == of(0.02, 2.45)
    assert found.threshold_tokens[LINK] == 0
    assert found.offloaded_share["local"] == of(1e-9, 1)


def test_equal_cost_comes_out_as_in_the_paper() -> None:
    """An H200 for two H20: 16 instances of H20 cost as much as the case study."""
    mixed = solve(the_case_study(), a_traffic(), form="mean_length")
    equal = solve(the_case_study(h200=0, h20=16), a_traffic(), form="mean_length")

    assert equal.roles["local"] == SiteRoles(prefill_workers=12, decode_workers=4)
    assert equal.throughput_per_s == of(0.01, 2.81)
    assert mixed.throughput_per_s / equal.throughput_per_s == of(0.015, 1.152)


@pytest.mark.parametrize(
    ("gbit_per_s", "throughput", "prefill_workers", "threshold"),
    [
        (100, 3.26, 3, 19_350),
        (12.4, 3.26, 3, 19_350),
        (10, 3.04, 4, 25_600),
        (8, 2.63, 4, 28_900),
        (6, 2.34, 5, None),
        (5, 2.26, 5, 42_000),
        (4, 2.05, 5, 47_000),
        (3, 1.83, 5, 54_000),
        (2, 1.62, 5, 65_000),
        (1, 1.56, 6, None),
        (0.5, 1.52, 6, 104_000),
        (0, 1.41, 6, None),
    ],
)
def test_a_narrower_link_moves_threshold_and_roles(
    gbit_per_s: float, throughput: float, prefill_workers: int, threshold: float | None
) -> None:
    """At 6 and 1 Gbit/s decode limits, and many thresholds are as good: none is asked for."""
    found = solve(the_case_study(gbit_per_s=gbit_per_s), a_traffic(), form="mean_length")

    assert found.throughput_per_s == of(0.01, throughput)
    assert found.roles["local"].prefill_workers == prefill_workers
    if threshold is not None:
        assert found.threshold_tokens[LINK] == of(0.02, threshold)


@pytest.mark.parametrize(
    ("gbit_per_s", "throughput"), [(10, 2.63), (8, 2.10), (5, 1.32), (2, 0.53)]
)
def test_a_threshold_that_stands_still_collapses_with_its_link(
    gbit_per_s: float, throughput: float
) -> None:
    found = evaluate(
        the_case_study(gbit_per_s=gbit_per_s),
        a_traffic(),
        threshold_tokens={LINK: 19_400},
        roles={"local": SiteRoles(prefill_workers=3, decode_workers=5)},
        form="mean_length",
    )

    assert found.throughput_per_s == of(0.015, throughput)
    assert found.bottleneck == "link"


@pytest.mark.parametrize(
    ("prefill_workers", "throughput"),
    [(1, 2.76), (2, 3.01), (3, 3.257), (4, 3.125), (5, 2.34), (6, 1.56), (7, 0.78)],
)
def test_other_roles_than_the_best_come_to_less(prefill_workers: int, throughput: float) -> None:
    roles = {
        "local": SiteRoles(prefill_workers=prefill_workers, decode_workers=8 - prefill_workers)
    }

    found = solve(the_case_study(), a_traffic(), form="mean_length", roles=roles)

    assert found.throughput_per_s == of(0.01, throughput)


def test_exact_expectations_promise_less_than_mean_lengths() -> None:
    """A prompt of twice the length takes more than twice as long."""
    assert solve(the_case_study(), a_traffic()).throughput_per_s == of(0.005, 3.20)
    homogeneous = solve(the_case_study(h200=0, h20=12), a_traffic())
    assert homogeneous.throughput_per_s == of(0.005, 2.03)
    naive = {"local": SiteRoles(prefill_workers=0, decode_workers=8)}
    assert solve(the_case_study(), a_traffic(), roles=naive).throughput_per_s == of(0.005, 2.40)


def test_lent_time_is_worth_five_percent() -> None:
    found = solve(the_case_study(), a_traffic(), lend_max=0.2)

    assert found.throughput_per_s == of(0.005, 3.36)
    assert found.roles["local"].lent_workers == pytest.approx(0.7, abs=0.05)
    assert found.bottleneck == "prefill"


def test_what_may_be_lent_is_bounded() -> None:
    free = solve(the_case_study(), a_traffic(), lend_max=1.0)
    bounded = solve(the_case_study(), a_traffic(), lend_max=0.05)

    assert bounded.roles["local"].lent_workers == of(1e-3, 0.05 * 5)
    assert 3.2 < bounded.throughput_per_s < free.throughput_per_s


def test_the_equations_agree_with_table_6() -> None:
    """Eqs. 3 to 6 at the paper's threshold and roles: 1.61, 1.64 and 3.91 requests/s."""
    threshold, share = 19_350, tail(LENGTHS, 19_350)
    offload = offload_stage_per_s(4, H200, 100e9, KV, LENGTHS, threshold, "mean_length")
    local = local_prefill_stage_per_s(3, H20, LENGTHS, threshold, "mean_length")
    decode = decode_stage_per_s(5, DECODE, 1024)

    assert offload == of(0.01, 1.61)
    assert local == of(0.01, 1.64)
    assert decode == of(0.01, 3.91)
    assert system_per_s(offload, local, decode, share) == of(0.015, 3.24)
    assert threshold_imbalance(offload, local, share) == pytest.approx(0, abs=0.005)
    assert role_imbalance(offload, local, decode) == pytest.approx(3.25 / 3.91 - 1, abs=0.01)


@pytest.mark.parametrize(("tokens", "gbit_per_s"), [(8_000, 3.59), (32_000, 3.19), (128_000, 2.62)])
def test_kv_throughput_agrees_with_table_5(tokens: float, gbit_per_s: float) -> None:
    """Eq. 1; the fit of the profile is within 2 %."""
    assert kv_throughput_bps(KV, H200, tokens) / 1e9 == of(0.025, gbit_per_s)


def test_the_lengths_are_those_of_the_paper() -> None:
    assert mean(LENGTHS) == of(0.01, 27_300)
    assert LENGTHS.quantile(0.5) == of(0.01, 19_200)
    assert LENGTHS.quantile(0.9) == of(0.005, 62_000)
    assert LENGTHS.quantile(0.99) == of(0.005, 113_000)
