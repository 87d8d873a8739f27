from __future__ import annotations

from typing import Any

import pytest

from controlplane.domain.plan import Plan, PlanInputs, ShadowPrices
from controlplane.domain.prices import Uses, pressure, seconds_per_request, shares_of_requests


def a_plan(**overrides: Any) -> Plan:
    """Four and three prefill workers that take 3.5 requests a second together, half loaded."""
    values: dict[str, Any] = {
        "version": 1,
        "author": "west/router-1",
        "threshold_tokens": {},
        "throughput_per_s": 3.5,
        "load": 0.5,
        "inputs": PlanInputs(
            arrival_per_s=1.75,
            uncached_tokens_mean=1.0,
            uncached_tokens_p50=1.0,
            uncached_tokens_p90=1.0,
            output_tokens_mean=1.0,
            workers={"east/prefill": 4, "west/prefill": 3, "west/decode": 5},
        ),
    }
    return Plan(**(values | overrides))


@pytest.mark.parametrize(
    ("load", "weight"),
    [
        pytest.param(0.0, 0.0, id="idle"),
        pytest.param(0.3, 0.0116, id="far below saturation"),
        pytest.param(0.5, 0.125, id="half"),
        pytest.param(0.8, 2.048, id="near saturation"),
        pytest.param(0.9, 6.561, id="nearer"),
        pytest.param(0.99, 20.0, id="the bound"),
        pytest.param(1.0, 20.0, id="saturated"),
        pytest.param(3.0, 20.0, id="overloaded"),
    ],
)
def test_pressure_is_nothing_far_below_saturation_and_bounded_at_it(
    load: float, weight: float
) -> None:
    assert pressure(load) == pytest.approx(weight, abs=1e-4)


def test_pressure_never_falls_with_the_load() -> None:
    weights = [pressure(step / 1000) for step in range(1500)]

    assert weights == sorted(weights)


def test_a_request_costs_its_prefill_time_times_the_pressure() -> None:
    assert seconds_per_request(a_plan(load=0.8)) == pytest.approx(7 / 3.5 * 2.048)


def test_a_plan_without_throughput_has_nothing_to_be_sparing_with() -> None:
    assert seconds_per_request(a_plan(throughput_per_s=0.0, load=1.0)) == 0.0


def test_a_plan_that_does_not_tell_its_workers_counts_one() -> None:
    assert seconds_per_request(a_plan(inputs=None, load=0.8)) == pytest.approx(1 / 3.5 * 2.048)


def test_each_use_is_priced_by_its_place() -> None:
    prices = ShadowPrices(
        prefill_per_s={"east": 0.6, "west": 0.25},
        decode_slot_per_s={"west": 0.01},
        link_per_byte={"east>west": 1e-9, "west>east": 2e-9},
    )
    uses = Uses(
        prefill_datacenter="east",
        prefill_s=2.0,
        decode_datacenter="west",
        decode_slot_s=10.0,
        link_bytes={"east>west": 10**8, "north>west": 10**8},
    )

    assert shares_of_requests(prices, uses) == pytest.approx(
        {
            "prefill time in east": 1.2,
            "decode slots in west": 0.1,
            "link east>west": 0.1,
        }
    )


def test_what_has_no_price_is_left_out() -> None:
    uses = Uses(prefill_datacenter="east", prefill_s=2.0, decode_datacenter="west")

    assert shares_of_requests(ShadowPrices(), uses) == {}


def test_at_the_threshold_both_ways_cost_the_same() -> None:
    """The case study: prefill takes 1.24 s or 3.12 s at 19.4K tokens, and the prices say so."""
    prices = ShadowPrices(prefill_per_s={"east": 0.626, "west": 0.626 * 1.24 / 3.12})

    shares = {
        site: sum(
            shares_of_requests(
                prices, Uses(prefill_datacenter=site, prefill_s=seconds, decode_datacenter="west")
            ).values()
        )
        for site, seconds in (("east", 1.24), ("west", 3.12))
    }

    assert shares["east"] == pytest.approx(shares["west"])
