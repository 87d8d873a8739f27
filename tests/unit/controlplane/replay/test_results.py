"""Short forms of what docs/results.md shows at length."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.results import link_steps, matrix, saturation, slow_link, trouble
from controlplane.replay.results import Slo

DATA = Path(__file__).parents[3] / "data" / "replay"


def test_prfaas_saturates_the_case_study_as_the_model_says() -> None:
    found = saturation.measure(requests=1000, parts=(), only=("prfaas", "local_only"), jobs=1)
    assert found.analytical_per_s == pytest.approx(3.20, rel=0.01)
    assert found.saturated["prfaas"].throughput_per_s == pytest.approx(3.20, rel=0.05)
    assert found.saturated["local_only"].throughput_per_s < 2.5
    assert "against the model" in saturation.page(found)


def test_an_adaptive_threshold_follows_the_link_and_a_frozen_one_collapses() -> None:
    # The link is configured with 100 Gbit/s and gives 5: somebody has to find out.
    found = link_steps.measure(
        phase_s=360.0, policies=("prfaas",), gbit_per_s=(5.0,), changes_roles=False, jobs=1
    )
    (adaptive,) = found.rates("prfaas, threshold", settle_s=60.0)
    (frozen,) = found.rates("frozen threshold", settle_s=180.0)
    optimum = found.phases[0].fixed_per_s
    assert adaptive > 0.9 * optimum
    assert frozen < 0.85 * optimum
    assert "5 Gbit/s" in link_steps.page(found)


def test_lookahead_keeps_up_with_every_baseline_on_a_real_trace() -> None:
    load = matrix.Load(
        name="sample", file="conversation_400.jsonl.gz", speeds=(1.4,), slo=Slo(ttft_s=5.0)
    )
    fast, slow = matrix.measure(DATA, requests=90, loads=(load,), jobs=1)
    assert fast.gain > -0.05
    assert slow.gain > -0.05
    assert "`round_robin`" in matrix.page([fast, slow])


def test_nearly_nothing_goes_over_a_slow_link() -> None:
    found = slow_link.measure(requests=150, jobs=1)
    for name in ("prfaas", "lookahead"):
        assert found.over_slow(name) <= 0.03
        share = found.results[name].throughput_per_s / found.alone.throughput_per_s
        assert share >= 0.95
    assert found.over_slow("round_robin") > 0.3
    assert "fast pool alone" in slow_link.page(found)


def test_no_trouble_loses_a_request_and_times_recover() -> None:
    found = trouble.measure(
        rate=1.2, at_s=60.0, lasts_s=20.0, tail_s=260.0, policies=("prfaas",), jobs=1
    )
    assert [one.lost for one in found] == [0, 0, 0]
    assert all(one.recovery_s is not None for one in found), trouble.page(found)
