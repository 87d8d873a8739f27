from __future__ import annotations

from collections import Counter
from random import Random

from builders import a_request, a_view, a_worker

from controlplane.domain.cluster import WorkerView
from controlplane.domain.decision import Decision
from policies.api import Parameters
from policies.power_of_two import PowerOfTwoPolicy


def decide(*workers: WorkerView, seed: int = 0) -> Decision:
    view = a_view(a_worker("west/d1"), *workers)
    return PowerOfTwoPolicy(Parameters()).decide(a_request(), view, Random(seed))


def chosen(*workers: WorkerView) -> Counter[str]:
    placements = [decide(*workers, seed=seed).placement for seed in range(300)]
    return Counter(one.prefill_worker for one in placements if one)


def test_of_two_the_shorter_queue_wins() -> None:
    assert chosen(a_worker("east/p1", pending_tokens=1), a_worker("west/p1", pending_tokens=9)) == {
        "east/p1": 300
    }


def test_the_longest_queue_of_three_never_wins_and_the_others_by_their_chance() -> None:
    workers = [a_worker(f"west/p{n}", pending_tokens=n) for n in (1, 2, 3)]

    found = chosen(*workers)

    # The best is in two of three pairs, the next one wins the third.
    assert set(found) == {"west/p1", "west/p2"}
    assert 160 < found["west/p1"] < 240


def test_who_is_alone_is_taken() -> None:
    decision = decide(a_worker("west/p1", pending_tokens=1000))

    assert decision.placement is not None
    assert decision.explanation == (
        "west/p1 has 1.000 s of prefill before it, the shorter queue of two drawn by chance"
    )
    assert decision.reason == "power_of_two"
