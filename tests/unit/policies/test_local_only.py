from __future__ import annotations

from random import Random

import pytest
from builders import a_request, a_view, a_worker

from controlplane.domain.cluster import WorkerView
from controlplane.domain.decision import Decision
from controlplane.domain.prefix import PrefixHit
from policies.api import Parameters
from policies.local_only import LocalOnlyPolicy


def decide(*workers: WorkerView, input_tokens: int = 101) -> Decision:
    request = a_request(input_tokens=input_tokens, prefix_hits={"east/p1": PrefixHit(4096, 4096)})
    policy = LocalOnlyPolicy(Parameters())
    return policy.decide(request, a_view(a_worker("west/d1"), *workers), Random(0))


@pytest.mark.parametrize("input_tokens", [2, 4000], ids=["short", "long"])
def test_prefill_stays_however_long_and_wherever_cached(input_tokens: int) -> None:
    decision = decide(a_worker("east/p1"), a_worker("west/p1"), input_tokens=input_tokens)

    assert decision.placement is not None
    assert decision.placement.prefill_worker == "west/p1"
    assert decision.reason == "local_only"
    assert decision.explanation == "prefill always stays in west"


def test_the_least_predicted_ttft_of_the_datacenter_wins() -> None:
    decision = decide(a_worker("west/p1", pending_tokens=9), a_worker("west/p2"))

    assert decision.placement is not None
    assert decision.placement.prefill_worker == "west/p2"


def test_prefill_leaves_when_nobody_is_left() -> None:
    decision = decide(a_worker("east/p1"), a_worker("west/p1", is_draining=True))

    assert decision.placement is not None
    assert decision.placement.prefill_worker == "east/p1"
    assert decision.reason == "no_local_prefill"
    assert decision.explanation == (
        "prefill should stay in west, but no worker there can take it: offloaded"
    )


def test_local_is_where_decode_is_and_not_the_router() -> None:
    view = a_view(a_worker("east/d1"), a_worker("east/p1"), a_worker("west/p1"))

    decision = LocalOnlyPolicy(Parameters()).decide(a_request(), view, Random(0))

    assert decision.placement is not None
    assert decision.placement.prefill_worker == "east/p1"
    assert decision.reason == "local_only"
