"""What cannot wait for the next plan."""

from __future__ import annotations

import pytest
from planner_builders import LINK, a_demand, rules, some_facts, some_inputs

from controlplane.domain.plan import PlanInputs
from controlplane.planner.early import early_reason, rate_to_plan_for
from controlplane.planner.facts import FleetFacts
from controlplane.planner.traffic import Demand


def reason(
    planned: PlanInputs | None = None,
    demand: Demand | None = None,
    facts: FleetFacts | None = None,
    **overrides: float,
) -> str:
    return early_reason(
        planned or some_inputs(), demand or a_demand(), facts or some_facts(), rules(**overrides)
    )


def test_when_all_is_as_planned_the_next_plan_comes_in_its_time() -> None:
    assert reason() == ""


def test_a_burst_is_reason_enough() -> None:
    told = reason(some_inputs(arrival_per_s=10.0), a_demand(per_s=10.0, burst_per_s=100.0))

    assert told == "100 requests arrive per second, planned for 10"


def test_the_end_of_a_burst_is_too() -> None:
    assert reason(some_inputs(arrival_per_s=100.0), a_demand(per_s=60.0, burst_per_s=10.0))


def test_what_chance_makes_of_a_low_rate_is_no_burst() -> None:
    """At 0.1 a second, the two requests that came just now look like four times as many."""
    assert reason(some_inputs(arrival_per_s=0.05), a_demand(per_s=0.05, burst_per_s=0.2)) == ""


@pytest.mark.parametrize(("mbit_per_s", "is_early"), [(100, False), (85, False), (115, False),
                                                      (79, True), (121, True), (0, True)])  # fmt: skip
def test_a_link_may_give_a_fifth_more_or_less(mbit_per_s: float, *, is_early: bool) -> None:
    told = reason(facts=some_facts(link_bps=mbit_per_s * 1e6))

    assert bool(told) == is_early
    assert not told or told == f"link {LINK} gives {mbit_per_s} Mbit/s, was 100"


def test_a_link_that_was_down_and_is_up_is_a_change() -> None:
    assert reason(some_inputs(link_bps={LINK: 0.0}))


def test_a_link_that_nobody_planned_for_is_a_change() -> None:
    assert "was unknown" in reason(some_inputs(link_bps={}))


def test_a_worker_that_went_is_a_change() -> None:
    told = reason(facts=some_facts(decode=1))

    assert told == "west/decode has 1 workers, planned for 2"


def test_the_usual_rate_is_planned_for() -> None:
    assert rate_to_plan_for(a_demand(per_s=10.0, burst_per_s=13.0), rules()) == 10.0


def test_in_a_burst_the_rate_of_the_last_seconds_is() -> None:
    assert rate_to_plan_for(a_demand(per_s=10.0, burst_per_s=90.0), rules()) == 90.0
