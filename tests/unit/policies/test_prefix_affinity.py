from __future__ import annotations

from random import Random

import pytest
from builders import a_request, a_view, a_worker

from controlplane.domain.cluster import WorkerView
from controlplane.domain.decision import Decision
from controlplane.domain.prefix import PrefixHit
from policies.prefix_affinity import PrefixAffinityParameters, PrefixAffinityPolicy


def decide(
    *workers: WorkerView, hits: dict[str, PrefixHit] | None = None, queue_s_max: float = 1.0
) -> Decision:
    policy = PrefixAffinityPolicy(PrefixAffinityParameters(queue_s_max=queue_s_max))
    view = a_view(a_worker("west/d1"), *workers)
    return policy.decide(a_request(prefix_hits=hits or {}), view, Random(0))


@pytest.mark.parametrize(
    ("workers", "hits", "prefill_worker"),
    [
        pytest.param(
            (a_worker("east/p1"), a_worker("west/p1")),
            {"east/p1": PrefixHit(64, 64), "west/p1": PrefixHit(48, 48)},
            "east/p1",
            id="the longer one, however far",
        ),
        pytest.param(
            (a_worker("east/p1"), a_worker("west/p1")),
            {"east/p1": PrefixHit(96, 16), "west/p1": PrefixHit(32, 32)},
            "west/p1",
            id="as far as prefill can go on from it",
        ),
        pytest.param(
            (a_worker("east/p1", pending_tokens=900), a_worker("west/p1")),
            {"east/p1": PrefixHit(64, 64)},
            "east/p1",
            id="busy, but not too busy",
        ),
        pytest.param(
            (a_worker("east/p1", pending_tokens=1100), a_worker("west/p1")),
            {"east/p1": PrefixHit(64, 64)},
            "west/p1",
            id="too busy",
        ),
        pytest.param(
            (a_worker("east/p1", pending_tokens=1100), a_worker("west/p1", pending_tokens=1200)),
            {"west/p1": PrefixHit(64, 64)},
            "west/p1",
            id="all are too busy",
        ),
        pytest.param(
            (a_worker("east/p1", pending_tokens=5), a_worker("west/p1", pending_tokens=6)),
            {},
            "east/p1",
            id="nobody has anything: the shortest queue",
        ),
    ],
)
def test_the_cache_decides(
    workers: tuple[WorkerView, ...], hits: dict[str, PrefixHit], prefill_worker: str
) -> None:
    decision = decide(*workers, hits=hits)

    assert decision.placement is not None
    assert decision.placement.prefill_worker == prefill_worker


def test_the_prefix_is_explained() -> None:
    decision = decide(a_worker("west/p1"), hits={"west/p1": PrefixHit(64, 64)})

    assert decision.reason == "prefix_affinity"
    assert decision.explanation == (
        "west/p1 holds 64 of 100 prefill tokens, and nobody who is not too busy holds more"
    )
