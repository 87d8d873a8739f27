from __future__ import annotations

from random import Random

import pytest
from builders import a_request, a_view, a_worker

from controlplane.domain.cluster import WorkerView
from controlplane.domain.decision import Decision
from controlplane.domain.prefix import PrefixHit
from policies.static_threshold import StaticThresholdParameters, StaticThresholdPolicy

EAST, WEST = a_worker("east/p1"), a_worker("west/p1")


def decide(*workers: WorkerView, uncached_tokens: int, threshold_tokens: int = 50) -> Decision:
    """A prompt of 1,000 prefill tokens, of which `west/p1` lacks so many."""
    held = 1000 - uncached_tokens
    request = a_request(input_tokens=1001, prefix_hits={"west/p1": PrefixHit(held, held)})
    policy = StaticThresholdPolicy(StaticThresholdParameters(threshold_tokens=threshold_tokens))
    return policy.decide(request, a_view(a_worker("west/d1"), *workers), Random(0))


@pytest.mark.parametrize(
    ("workers", "uncached_tokens", "prefill_worker", "reason"),
    [
        pytest.param((EAST, WEST), 50, "west/p1", "uncached_within_threshold", id="exactly"),
        pytest.param((EAST, WEST), 51, "east/p1", "uncached_over_threshold", id="one more"),
        pytest.param((EAST,), 50, "east/p1", "no_local_prefill", id="nobody here"),
        pytest.param((WEST,), 51, "west/p1", "no_remote_prefill", id="nobody there"),
    ],
)
def test_a_fixed_number_decides(
    workers: tuple[WorkerView, ...], uncached_tokens: int, prefill_worker: str, reason: str
) -> None:
    hits_count = WEST in workers

    decision = decide(
        *workers, uncached_tokens=uncached_tokens, threshold_tokens=50 if hits_count else 1000
    )

    assert decision.placement is not None
    assert decision.placement.prefill_worker == prefill_worker
    assert decision.reason == reason


def test_the_best_cache_of_the_datacenter_counts_also_where_it_is_too_busy_to_win() -> None:
    busy = a_worker("west/p1", pending_tokens=4000)

    decision = decide(EAST, busy, a_worker("west/p2"), uncached_tokens=40)

    assert decision.placement is not None
    assert decision.placement.prefill_worker == "west/p2"
    assert decision.explanation == (
        "40 of 1000 prefill tokens are not cached in west, within the threshold of 50: kept in west"
    )


def test_queues_do_not_move_it() -> None:
    decision = decide(EAST, a_worker("west/p1", pending_tokens=100_000), uncached_tokens=50)

    assert decision.placement is not None
    assert decision.placement.prefill_worker == "west/p1"
