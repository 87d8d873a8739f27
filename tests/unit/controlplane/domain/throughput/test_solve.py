from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from random import Random

import pytest
from throughput_builders import (
    DECODE,
    H20,
    H200,
    KV,
    LENGTHS,
    LINK,
    a_fleet_by_chance,
    a_traffic,
    slower,
    the_case_study,
)

from controlplane.domain.plan import NEVER_TOKENS, PlanInputs, SiteRoles
from controlplane.domain.throughput.equations import (
    Form,
    decode_stage_per_s,
    local_prefill_stage_per_s,
    offload_stage_per_s,
    system_per_s,
    threshold_imbalance,
)
from controlplane.domain.throughput.fleet import Demand, FleetModel, Group, Link, Site
from controlplane.domain.throughput.frozen import evaluate
from controlplane.domain.throughput.layout import InfeasibleError
from controlplane.domain.throughput.lengths import empirical, tail
from controlplane.domain.throughput.solution import Solution
from controlplane.domain.throughput.solve import solve


def by_grid(gbit_per_s: float, form: Form) -> float:
    """The paper's way: every role, and many thresholds."""
    best = 0.0
    for prefilling in range(8):
        for step in range(401):
            threshold = 128 * 1000 ** (step / 400)
            share = tail(LENGTHS, threshold)
            rate = system_per_s(
                offload_stage_per_s(4, H200, gbit_per_s * 1e9, KV, LENGTHS, threshold, form),
                local_prefill_stage_per_s(prefilling, H20, LENGTHS, threshold, form),
                decode_stage_per_s(8 - prefilling, DECODE, 1024),
                share,
            )
            best = max(best, rate)
    return best


@pytest.mark.parametrize("form", ["exact", "mean_length"])
@pytest.mark.parametrize("gbit_per_s", [100, 7, 2.5])
def test_no_grid_search_finds_better(gbit_per_s: float, form: Form) -> None:
    found = solve(the_case_study(gbit_per_s=gbit_per_s), a_traffic(), form=form)

    grid = by_grid(gbit_per_s, form)
    assert grid <= found.throughput_per_s * 1.0001
    assert found.throughput_per_s == pytest.approx(grid, rel=0.01)


def two_remotes() -> FleetModel:
    """Two unequal prefill datacenters for one that serves, with links that nearly bind."""
    return FleetModel(
        sites=(
            Site(name="fast", groups=(Group(hardware="F", workers=3, prefill=H200),)),
            Site(
                name="far", groups=(Group(hardware="G", workers=2, prefill=slower(H200, 0.8, 1.5)),)
            ),
            Site(
                name="local",
                groups=(Group(hardware="H20", workers=9, prefill=H20, decode=DECODE),),
            ),
        ),
        links=(
            Link(from_site="fast", to_site="local", capacity_bps=8e9),
            Link(from_site="far", to_site="local", capacity_bps=5e9),
        ),
    )


def test_no_pair_of_thresholds_is_better_than_the_one_found() -> None:
    fleet, traffic = two_remotes(), a_traffic()
    found = solve(fleet, traffic)

    cuts = [8000 * 1.06**step for step in range(40)] + [math.inf]
    best = max(
        evaluate(
            fleet,
            traffic,
            threshold_tokens={"fast>local": fast, "far>local": far},
            roles=found.roles,
        ).throughput_per_s
        for fast, far in product(cuts, cuts)
    )
    assert best <= found.throughput_per_s * 1.001
    assert best >= found.throughput_per_s * 0.95


def test_no_other_roles_are_better_than_those_found() -> None:
    found = solve(two_remotes(), a_traffic())

    others = [
        solve(
            two_remotes(),
            a_traffic(),
            roles={"local": SiteRoles(prefill_workers=9 - decoding, decode_workers=decoding)},
        ).throughput_per_s
        for decoding in range(1, 10)
    ]
    assert found.throughput_per_s == pytest.approx(max(others), rel=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_thresholds_of_many_datacenters_reach_what_no_shares_could_exceed(seed: int) -> None:
    """The bound is the dual of a program that may share out every length as it likes."""
    rng = Random(seed)
    fleet, demands = a_fleet_by_chance(
        rng, prefilling=rng.randint(1, 4), serving=rng.randint(1, 3), is_uniform=seed % 2 == 0
    )
    traffic = a_traffic(demands=demands, output_tokens=400)

    found = solve(fleet, traffic, lend_max=0.2 * (seed % 3))

    assert found.throughput_per_s <= found.bound_per_s * (1 + 1e-9)
    assert found.throughput_per_s >= 0.975 * found.bound_per_s
    assert max(found.utilisation.values()) == pytest.approx(1, rel=1e-6)
    for bands in found.bands.values():
        assert [b.up_to for b in bands[:-1]] == [b.above for b in bands[1:]]
        assert all(sum(band.parts.values()) == pytest.approx(1) for band in bands)


def test_the_thresholds_say_what_the_bands_say() -> None:
    """Thresholds alone, evaluated by themselves, come to the same throughput."""
    found = solve(two_remotes(), a_traffic())

    again = evaluate(
        two_remotes(), a_traffic(), threshold_tokens=found.threshold_tokens, roles=found.roles
    )
    assert again.throughput_per_s == pytest.approx(found.throughput_per_s, rel=1e-3)


def test_equal_datacenters_share_a_threshold() -> None:
    groups = (Group(hardware="H200", workers=2, prefill=H200),)
    one = the_case_study(h200=4)
    two = replace(
        one,
        sites=(
            Site(name="a", groups=groups),
            Site(name="b", groups=groups),
            *(site for site in one.sites if site.name == "local"),
        ),
        links=tuple(
            Link(from_site=name, to_site="local", capacity_bps=100e9) for name in ("a", "b")
        ),
    )

    found, together = solve(two, a_traffic()), solve(one, a_traffic())

    assert found.threshold_tokens["a>local"] == found.threshold_tokens["b>local"]
    assert found.threshold_tokens["a>local"] == pytest.approx(together.threshold_tokens[LINK], 0.01)
    assert found.throughput_per_s == pytest.approx(together.throughput_per_s, rel=1e-3)


# --- What always holds ------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["exact", "mean_length"])
def test_both_prefill_stages_saturate_together_where_the_link_is_wide(form: Form) -> None:
    """Eq. 7."""
    found = solve(the_case_study(), a_traffic(), form=form)
    threshold = found.threshold_tokens[LINK]

    imbalance = threshold_imbalance(
        offload_stage_per_s(4, H200, 100e9, KV, LENGTHS, threshold, form),
        local_prefill_stage_per_s(3, H20, LENGTHS, threshold, form),
        tail(LENGTHS, threshold),
    )
    assert imbalance == pytest.approx(0, abs=1e-3)


def test_a_higher_threshold_leaves_the_remote_stage_more_room_and_the_local_one_less() -> None:
    """Section 3.4.2, which makes the best threshold the one where both meet."""
    remote, local = [], []
    for threshold in (1000 * 1.5**step for step in range(12)):
        share = tail(LENGTHS, threshold)
        remote.append(offload_stage_per_s(4, H200, 10e9, KV, LENGTHS, threshold) / share)
        local.append(local_prefill_stage_per_s(3, H20, LENGTHS, threshold) / (1 - share))
    assert remote == sorted(remote)
    assert local == sorted(local, reverse=True)


def test_a_higher_threshold_sends_less_at_the_same_rate() -> None:
    """Always; that a saturated cluster emits less is not true of every model."""
    roles = {"local": SiteRoles(prefill_workers=3, decode_workers=5)}
    sent = []
    for threshold in (2000, 10_000, 30_000, 90_000):
        found = evaluate(
            the_case_study(), a_traffic(), threshold_tokens={LINK: threshold}, roles=roles
        )
        sent.append(found.egress_at(0.3)[LINK])
    assert sent == sorted(sent, reverse=True)
    assert sent[0] > 2 * sent[-1]


@pytest.mark.parametrize("lend_max", [0.0, 0.3])
def test_more_of_anything_is_never_less(lend_max: float) -> None:
    base = solve(the_case_study(gbit_per_s=9), a_traffic(), lend_max=lend_max).throughput_per_s

    for fleet in (
        the_case_study(gbit_per_s=10),
        the_case_study(gbit_per_s=9, h200=5),
        the_case_study(gbit_per_s=9, h20=9),
    ):
        assert solve(fleet, a_traffic(), lend_max=lend_max).throughput_per_s >= base * (1 - 1e-4)


def test_prices_say_what_a_little_more_brings() -> None:
    """Against the difference of two solutions, with roles that stand."""
    roles = {"local": SiteRoles(prefill_workers=4, decode_workers=4)}
    base = solve(the_case_study(gbit_per_s=10), a_traffic(), roles=roles)
    wider = solve(the_case_study(gbit_per_s=10.01), a_traffic(), roles=roles)

    per_byte = (wider.throughput_per_s - base.throughput_per_s) / (0.01e9 / 8)
    assert base.bottleneck == "link"
    assert base.prices.link_per_byte[LINK] == pytest.approx(per_byte, rel=0.02)
    assert base.prices.prefill_per_s.get("prfaas", 0) == pytest.approx(0, abs=1e-6)


def test_prices_times_capacities_are_the_throughput() -> None:
    """So that what requests use, at these prices, is one request each on average."""
    found = solve(the_case_study(gbit_per_s=100), a_traffic())

    worth = 4 * found.prices.prefill_per_s["prfaas"] + 3 * found.prices.prefill_per_s["local"]
    assert worth == pytest.approx(found.throughput_per_s, rel=1e-3)


def test_where_decode_limits_a_slot_has_a_price_and_prefill_none() -> None:
    roles = {"local": SiteRoles(prefill_workers=6, decode_workers=2)}
    found = solve(the_case_study(), a_traffic(), roles=roles)

    assert found.bottleneck == "decode"
    assert found.prices.decode_slot_per_s["local"] * 40 == pytest.approx(found.throughput_per_s)
    assert not found.prices.prefill_per_s


def test_spare_prefill_is_balanced_where_decode_limits() -> None:
    roles = {"local": SiteRoles(prefill_workers=6, decode_workers=2)}
    found = solve(the_case_study(), a_traffic(), roles=roles)

    used = found.utilisation
    assert used["prefill prfaas/H200"] == pytest.approx(used["prefill local/H20"], rel=1e-3)
    assert used["prefill local/H20"] < 0.6


def test_datacenters_apart_from_the_bottleneck_are_balanced_among_themselves() -> None:
    """Otherwise a full datacenter somewhere would leave all other thresholds to chance."""
    alone = Site(
        name="alone",
        groups=(
            Group(hardware="H20", workers=1, prefill=H20),
            Group(hardware="D", workers=9, decode=DECODE),
        ),
    )
    fleet = the_case_study()
    found = solve(
        replace(fleet, sites=(*fleet.sites, alone)),
        a_traffic(demands=[Demand(site="alone", share=3), Demand(site="local", share=1)]),
        roles={"local": SiteRoles(prefill_workers=4, decode_workers=4)},
    )

    assert found.binding == ("prefill alone/H20",)
    used = found.utilisation
    assert used["prefill prfaas/H200"] == pytest.approx(used["prefill local/H20"], rel=1e-3)


def test_observed_lengths_may_come_in_steps() -> None:
    """Half of all prompts have one length: a threshold cannot divide them, shares can."""
    lengths = empirical([2000] * 25 + [20_000] * 50 + [60_000] * 25)
    found = solve(the_case_study(), a_traffic(lengths=lengths))

    assert found.throughput_per_s == pytest.approx(found.bound_per_s, rel=1e-3)
    assert any(0.01 < part < 0.99 for b in found.bands["local"] for part in b.parts.values())


def test_of_several_kinds_those_decode_that_are_better_at_it() -> None:
    site = Site(
        name="local",
        groups=(
            Group(hardware="good-prefill", workers=4, prefill=H200, decode=DECODE),
            Group(hardware="good-decode", workers=4, prefill=slower(H20, 2), decode=DECODE),
        ),
    )
    found = solve(FleetModel(sites=(site,)), a_traffic())

    decoding = {group.hardware: group.decode_workers for group in found.groups}
    assert decoding["good-decode"] > decoding["good-prefill"] == 0


# --- Nothing to plan --------------------------------------------------------------------------


def without(fleet: FleetModel, phase: str) -> FleetModel:
    return replace(
        fleet,
        sites=tuple(
            replace(site, groups=tuple(replace(g, **{phase: None}) for g in site.groups))
            for site in fleet.sites
        ),
    )


def test_a_fleet_that_cannot_decode_is_explained() -> None:
    with pytest.raises(InfeasibleError, match="no datacenter has a worker that can decode"):
        solve(without(the_case_study(), "decode"), a_traffic())


def test_a_fleet_that_cannot_prefill_is_explained() -> None:
    with pytest.raises(InfeasibleError, match="no datacenter has a worker that can prefill"):
        solve(without(the_case_study(), "prefill"), a_traffic())


@pytest.mark.parametrize("links", [(), (Link(from_site="prfaas", to_site="west", capacity_bps=0),)])
def test_a_serving_datacenter_without_prefill_and_link_is_named(links: tuple[Link, ...]) -> None:
    fleet = FleetModel(
        sites=(
            Site(name="prfaas", groups=(Group(hardware="H200", workers=4, prefill=H200),)),
            Site(name="west", groups=(Group(hardware="D", workers=4, decode=DECODE),)),
        ),
        links=links,
    )
    with pytest.raises(InfeasibleError, match=r"west: no worker there can prefill.*from prfaas"):
        solve(fleet, a_traffic())


def test_traffic_for_a_datacenter_that_cannot_decode_is_explained() -> None:
    with pytest.raises(InfeasibleError, match="prfaas: requests are to be answered there"):
        solve(the_case_study(), a_traffic(demands=[Demand(site="prfaas", share=1)]))


def test_one_worker_cannot_do_both_at_once() -> None:
    with pytest.raises(InfeasibleError, match="no worker is left to prefill"):
        solve(the_case_study(h200=0, h20=1), a_traffic())


def test_one_worker_can_lend_its_time() -> None:
    found = solve(the_case_study(h200=0, h20=1), a_traffic(), lend_max=0.9)

    assert found.roles["local"].lent_workers > 0.5
    assert found.throughput_per_s > 0.1


def test_roles_that_the_fleet_does_not_have_are_refused() -> None:
    with pytest.raises(ValueError, match="local has 8 workers that can do both"):
        solve(
            the_case_study(),
            a_traffic(),
            roles={"local": SiteRoles(prefill_workers=9, decode_workers=3)},
        )


def test_a_threshold_for_nobody_comes_to_nothing() -> None:
    """All decode: what is below the threshold has nowhere to go."""
    found = evaluate(
        the_case_study(),
        a_traffic(),
        threshold_tokens={LINK: 20_000},
        roles={"local": SiteRoles(prefill_workers=0, decode_workers=8)},
    )
    assert found.throughput_per_s == 0


# --- The plan of it ---------------------------------------------------------------------------


def inputs(arrival_per_s: float) -> PlanInputs:
    return PlanInputs(
        arrival_per_s=arrival_per_s,
        uncached_tokens_mean=27_000,
        uncached_tokens_p50=19_000,
        uncached_tokens_p90=62_000,
        output_tokens_mean=1024,
    )


def a_solution(gbit_per_s: float = 100) -> Solution:
    return solve(the_case_study(gbit_per_s=gbit_per_s), a_traffic())


def test_a_plan_says_what_the_solution_says() -> None:
    plan = a_solution().plan(version=3, author="west/router-1", inputs=inputs(1.6))

    assert plan.threshold_tokens[LINK] == pytest.approx(19_550, rel=0.01)
    assert plan.roles["local"].decode_workers == 5
    assert plan.load == pytest.approx(0.5, rel=0.01)
    assert plan.bottleneck == "none"
    assert a_solution().plan(version=1, author="a", inputs=inputs(3)).bottleneck == "prefill"


def test_a_plan_has_no_infinite_threshold() -> None:
    fleet = the_case_study(h200=1)
    cheap = replace(fleet, links=(replace(fleet.links[0], capacity_bps=1.0),))
    plan = solve(cheap, a_traffic()).plan(version=1, author="a", inputs=inputs(1))

    assert plan.threshold_tokens[LINK] == NEVER_TOKENS
