from __future__ import annotations

from random import Random

from builders import a_request, a_view, a_worker

from controlplane.domain.cluster import WorkerView
from controlplane.domain.decision import Decision
from policies.api import Parameters
from policies.round_robin import RoundRobinPolicy


def decide(sequence: int, *workers: WorkerView) -> Decision:
    policy = RoundRobinPolicy(Parameters())
    view = a_view(a_worker("west/d1"), *workers)
    return policy.decide(a_request(sequence=sequence), view, Random(0))


def turns(count: int, *workers: WorkerView) -> list[str]:
    decisions = [decide(sequence, *workers) for sequence in range(count)]
    return [one.placement.prefill_worker for one in decisions if one.placement]


def test_workers_take_turns_by_the_number_of_the_request() -> None:
    workers = (a_worker("east/p1"), a_worker("west/p1"), a_worker("west/p2"))

    assert turns(4, *workers) == ["east/p1", "west/p1", "west/p2", "east/p1"]


def test_turns_know_nothing_of_load() -> None:
    workers = (a_worker("west/p1", pending_tokens=100_000), a_worker("west/p2"))

    assert turns(2, *workers) == ["west/p1", "west/p2"]


def test_who_cannot_take_it_has_no_turn() -> None:
    workers = (a_worker("west/p1"), a_worker("west/p2", is_draining=True), a_worker("west/p3"))

    assert turns(3, *workers) == ["west/p1", "west/p3", "west/p1"]


def test_the_turn_is_explained() -> None:
    decision = decide(4, a_worker("west/p1"), a_worker("west/p2"), a_worker("west/p3"))

    assert decision.reason == "round_robin"
    assert decision.explanation == "turn 2 of 3 prefill workers"
