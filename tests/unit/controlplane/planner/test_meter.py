"""What one router tells of its traffic."""

from __future__ import annotations

from typing import Any

import pytest
from admin_world import a_record, a_report, an_attempt
from builders import a_request

from controlplane.domain.cluster import Role
from controlplane.domain.prefix import PrefixHit
from controlplane.planner.meter import TrafficMeter, uncached_at
from controlplane.wire import PrefillReport

ROLES: dict[str, tuple[str, Role]] = {
    "west/p1": ("west", "prefill"),
    "west/p2": ("west", "prefill"),
    "west/d1": ("west", "decode"),
    "east/p1": ("east", "prefill"),
}


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def meter(clock: Clock) -> TrafficMeter:
    return TrafficMeter(
        home="west",
        role_of=ROLES.get,
        window_s=100.0,
        burst_window_s=10.0,
        profile_window_s=1000.0,
        clock=clock,
    )


# --- The length that thresholds are compared with ---------------------------------------------


def test_a_prompt_that_nobody_has_cached_is_uncached_as_a_whole_but_for_its_last_token() -> None:
    assert uncached_at("west", a_request(input_tokens=101), ROLES.get) == 100


def test_the_best_hit_of_a_prefill_worker_at_home_counts() -> None:
    hits = {
        "west/p1": PrefixHit(attention_tokens=96, resumable_tokens=32),
        "west/p2": PrefixHit(attention_tokens=48, resumable_tokens=48),
    }

    assert uncached_at("west", a_request(input_tokens=101, prefix_hits=hits), ROLES.get) == 52


def test_what_is_cached_elsewhere_or_where_nobody_prefills_does_not_count() -> None:
    whole = PrefixHit(attention_tokens=96, resumable_tokens=96)
    hits = {"east/p1": whole, "west/d1": whole, "gone/p1": whole}
    request = a_request(input_tokens=101, prefix_hits=hits)

    assert uncached_at("west", request, ROLES.get) == 100
    assert uncached_at("east", request, ROLES.get) == 4


# --- Requests ---------------------------------------------------------------------------------


def test_a_meter_that_saw_nothing_tells_nothing(meter: TrafficMeter) -> None:
    assert meter.demand().sites == {}


def decide(meter: TrafficMeter, **features: Any) -> None:
    attempt = an_attempt(**features)
    meter.decided(attempt.features, attempt.decision)


def test_a_length_counts_when_a_request_is_placed_and_where_its_decode_is(
    meter: TrafficMeter,
) -> None:
    decide(meter, input_tokens=101)

    demand = meter.demand()
    assert demand.sites.keys() == {"west"}
    assert demand.sites["west"].uncached.mean == 100
    assert demand.requests == 1


def test_a_request_that_nothing_could_take_counts_at_home(meter: TrafficMeter) -> None:
    decide(meter, model="another")

    assert meter.demand().sites["west"].uncached.weight == 1


def test_an_output_counts_when_it_has_ended(meter: TrafficMeter) -> None:
    meter.observe(a_record())

    site = meter.demand().sites["west"]
    assert site.output.mean == a_report().output_tokens
    assert site.uncached.weight == 0


def test_a_request_that_failed_has_no_output(meter: TrafficMeter) -> None:
    meter.observe(a_record(outcome="failed", report=None))
    meter.observe(a_record(attempts=(), report=None))

    assert meter.demand().sites == {}


# --- Rates ------------------------------------------------------------------------------------


def arrive(meter: TrafficMeter, clock: Clock, *, per_s: float, for_s: float) -> None:
    for _ in range(int(per_s * for_s)):
        clock.now_s += 1 / per_s
        meter.arrived()


def test_the_rate_of_arrivals_is_right_from_the_first_seconds_on(
    meter: TrafficMeter, clock: Clock
) -> None:
    arrive(meter, clock, per_s=5.0, for_s=20.0)

    assert meter.demand().arrival_per_s == pytest.approx(5.0, rel=0.05)
    assert meter.demand().burst_per_s == pytest.approx(5.0, rel=0.05)


def test_a_burst_shows_in_the_short_rate_first(meter: TrafficMeter, clock: Clock) -> None:
    arrive(meter, clock, per_s=5.0, for_s=200.0)
    arrive(meter, clock, per_s=50.0, for_s=10.0)

    assert meter.demand().burst_per_s > 30
    assert meter.demand().arrival_per_s < 12


def test_what_is_refused_at_the_door_is_demand_all_the_same(
    meter: TrafficMeter, clock: Clock
) -> None:
    """Under overload requests end as fast as the fleet can; only arrivals tell how much is wanted."""
    decide(meter)
    arrive(meter, clock, per_s=10.0, for_s=100.0)

    assert meter.demand().sites["west"].arrival_per_s == pytest.approx(10.0, rel=0.05)


def test_arrivals_without_any_end_count_at_home(meter: TrafficMeter, clock: Clock) -> None:
    arrive(meter, clock, per_s=10.0, for_s=10.0)

    assert meter.demand().sites["west"].arrival_per_s == pytest.approx(10.0, rel=0.05)


# --- Prefills ---------------------------------------------------------------------------------


def test_a_prefill_counts_where_it_was_computed(meter: TrafficMeter) -> None:
    record = a_record(an_attempt(input_tokens=2001))
    placement = record.attempts[0].decision.placement
    assert placement is not None
    assert placement.prefill_datacenter == "east"

    meter.observe(record)

    assert {name: each.count for name, each in meter.demand().prefills.items()} == {"east": 1}


def test_a_prefill_that_computed_nothing_says_nothing(meter: TrafficMeter) -> None:
    cached = PrefillReport(queue_s=0, compute_s=0.001, cached_tokens=100, computed_tokens=0)

    meter.observe(a_record(report=a_report(prefill=cached)))

    assert meter.demand().prefills == {}
