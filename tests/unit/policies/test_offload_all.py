from __future__ import annotations

from random import Random

import pytest
from builders import a_request, a_view, a_worker

from controlplane.domain.cluster import WorkerView
from controlplane.domain.decision import Decision
from controlplane.domain.prefix import PrefixHit
from policies.api import Parameters
from policies.offload_all import OffloadAllPolicy


def decide(*workers: WorkerView, input_tokens: int = 101) -> Decision:
    request = a_request(input_tokens=input_tokens, prefix_hits={"west/p1": PrefixHit(4096, 4096)})
    view = a_view(a_worker("west/d1"), *workers)
    return OffloadAllPolicy(Parameters()).decide(request, view, Random(0))


@pytest.mark.parametrize("input_tokens", [2, 4000], ids=["short", "long"])
def test_prefill_leaves_however_short_and_wherever_cached(input_tokens: int) -> None:
    decision = decide(a_worker("east/p1"), a_worker("west/p1"), input_tokens=input_tokens)

    assert decision.placement is not None
    assert decision.placement.prefill_worker == "east/p1"
    assert decision.reason == "offload_all"
    assert decision.explanation == "prefill always leaves west"


def test_the_least_predicted_ttft_elsewhere_wins() -> None:
    decision = decide(a_worker("east/p1", pending_tokens=9), a_worker("east/p2"))

    assert decision.placement is not None
    assert decision.placement.prefill_worker == "east/p2"


def test_prefill_stays_when_nobody_is_elsewhere() -> None:
    decision = decide(a_worker("east/p1", is_draining=True), a_worker("west/p1"))

    assert decision.placement is not None
    assert decision.placement.prefill_worker == "west/p1"
    assert decision.reason == "no_remote_prefill"
    assert decision.explanation == (
        "prefill should leave west, but no worker elsewhere can take it: kept"
    )
