from __future__ import annotations

from random import Random

import pytest
from builders import a_request, a_view, a_worker

from controlplane.domain.cluster import WorkerView
from controlplane.domain.decision import Decision
from controlplane.domain.prefix import PrefixHit
from policies.api import Parameters
from policies.least_loaded import LeastLoadedPolicy


def decide(*workers: WorkerView, seed: int = 0) -> Decision:
    hits = {"west/p1": PrefixHit(96, 96)}
    view = a_view(a_worker("west/d1"), *workers)
    return LeastLoadedPolicy(Parameters()).decide(a_request(prefix_hits=hits), view, Random(seed))


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        pytest.param(
            a_worker("east/p1", pending_tokens=9),
            a_worker("west/p1", pending_tokens=10),
            id="a shorter queue, however far and however little cached",
        ),
        pytest.param(
            a_worker("west/p2", pending_tokens=100, prefill_s_per_token=0.0001),
            a_worker("west/p1", pending_tokens=90),
            id="in seconds, not in tokens",
        ),
        pytest.param(
            a_worker("west/p2", pending_tokens=10),
            a_worker("west/p1", pending_tokens=5, share=0.25),
            id="a worker that warms up counts as busier",
        ),
    ],
)
def test_the_shortest_queue_wins(better: WorkerView, worse: WorkerView) -> None:
    decision = decide(better, worse)

    assert decision.placement is not None
    assert decision.placement.prefill_worker == better.worker_id


def test_equals_are_chosen_by_chance_wherever_they_are() -> None:
    workers = (a_worker("east/p1"), a_worker("west/p1"), a_worker("west/p2"))

    placements = [decide(*workers, seed=seed).placement for seed in range(40)]

    assert {one.prefill_worker for one in placements if one} == {"east/p1", "west/p1", "west/p2"}


def test_the_queue_is_explained() -> None:
    decision = decide(a_worker("west/p1", pending_tokens=7), a_worker("west/p2", pending_tokens=9))

    assert decision.reason == "least_loaded"
    assert decision.explanation == (
        "west/p1 has 0.007 s of prefill before it, the shortest queue of 2 prefill workers"
    )
