from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from builders import a_link, a_request, a_view, a_worker

from controlplane.domain.cluster import WorkerView
from controlplane.domain.decision import Decision
from controlplane.domain.plan import Plan, PlanInputs
from policies.balanced_split import BalancedSplitParameters, BalancedSplitPolicy

LINKS = (a_link("east", "west"), a_link("north", "west"))


def decide(
    *workers: WorkerView,
    sequence: int,
    offloaded_share: float | None = None,
    plan: Plan | None = None,
    input_tokens: int = 101,
) -> Decision:
    policy = BalancedSplitPolicy(BalancedSplitParameters(offloaded_share=offloaded_share))
    view = a_view(a_worker("west/d1"), *workers, links=LINKS, plan=plan)
    request = a_request(sequence=sequence, input_tokens=input_tokens)
    return policy.decide(request, view, Random(0))


def shares(
    *workers: WorkerView, plan: Plan | None = None, share: float | None = None
) -> Counter[str]:
    """Of a thousand requests."""
    decisions = [
        decide(*workers, sequence=number, plan=plan, offloaded_share=share)
        for number in range(1000)
    ]
    return Counter(one.placement.prefill_datacenter for one in decisions if one.placement)


def a_plan(**workers: int) -> Plan:
    inputs = PlanInputs(
        arrival_per_s=1,
        uncached_tokens_mean=1,
        uncached_tokens_p50=1,
        uncached_tokens_p90=1,
        output_tokens_mean=1,
        workers={f"{site}/prefill": count for site, count in workers.items()},
    )
    return Plan(version=1, author="r", threshold_tokens={}, inputs=inputs)


def test_each_datacenter_gets_what_its_workers_can() -> None:
    fast = a_worker("east/p1", prefill_s_per_token=0.0005, prefill_fixed_s=0)
    slow = [a_worker(f"west/p{n}", prefill_fixed_s=0) for n in range(2)]

    found = shares(fast, *slow)

    assert found["east"] == pytest.approx(500, abs=3)
    assert found["west"] == pytest.approx(500, abs=3)


def test_the_plan_knows_better_how_many_there_are() -> None:
    found = shares(a_worker("east/p1"), a_worker("west/p1"), plan=a_plan(east=3, west=1))

    assert found["east"] == pytest.approx(750, abs=3)


def test_a_share_that_is_given_is_divided_among_the_others() -> None:
    workers = (a_worker("east/p1"), a_worker("north/p1"), a_worker("north/p2"), a_worker("west/p1"))

    found = shares(*workers, share=0.6)

    assert found["west"] == pytest.approx(400, abs=3)
    assert found["east"] == pytest.approx(200, abs=3)
    assert found["north"] == pytest.approx(400, abs=3)


def test_a_share_that_is_given_does_not_keep_work_from_those_who_are_left() -> None:
    assert shares(a_worker("west/p1"), share=1.0) == {"west": 1000}
    assert shares(a_worker("east/p1"), share=0.0) == {"east": 1000}


def test_length_does_not_count() -> None:
    workers = (a_worker("east/p1"), a_worker("west/p1"))

    for number in range(20):
        short = decide(*workers, sequence=number, input_tokens=2)
        long = decide(*workers, sequence=number, input_tokens=4000)
        assert short.placement == long.placement


def test_the_share_is_explained() -> None:
    decision = decide(a_worker("east/p1"), a_worker("west/p1"), sequence=0)

    assert decision.reason == "balanced_split"
    assert decision.explanation == "east has 50.0% of all prompts, and it is its turn"


def test_turns_of_a_router_that_has_served_for_years_are_as_even() -> None:
    start = 1 << 60
    decisions = [
        decide(a_worker("east/p1"), a_worker("west/p1"), sequence=start + number)
        for number in range(100)
    ]

    found = Counter(one.placement.prefill_datacenter for one in decisions if one.placement)
    assert found["east"] == pytest.approx(50, abs=2)
