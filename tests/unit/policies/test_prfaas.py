from __future__ import annotations

from random import Random
from typing import Any

import pytest
from builders import a_request, a_view, a_worker
from pydantic import ValidationError

from controlplane.domain.cluster import WorkerView
from controlplane.domain.decision import Decision, RequestFeatures
from controlplane.domain.prefix import PrefixHit
from policies.prfaas import PrfaasParameters, PrfaasPolicy

EAST, WEST, DECODE = a_worker("east/p1"), a_worker("west/p1"), a_worker("west/d1")


def decide(request: RequestFeatures, *workers: WorkerView, threshold_tokens: int = 100) -> Decision:
    policy = PrfaasPolicy(PrfaasParameters(threshold_tokens=threshold_tokens))
    return policy.decide(request, a_view(DECODE, *workers), Random(0))


def prefill_worker(decision: Decision) -> str | None:
    return decision.placement.prefill_worker if decision.placement else None


@pytest.mark.parametrize(
    ("input_tokens", "hits", "worker", "reason"),
    [
        pytest.param(2, {}, "west/p1", "uncached_within_threshold", id="short"),
        pytest.param(101, {}, "west/p1", "uncached_within_threshold", id="exactly the threshold"),
        pytest.param(102, {}, "east/p1", "uncached_over_threshold", id="one above it"),
        pytest.param(
            301,
            {"west/p1": PrefixHit(208, 208)},
            "west/p1",
            "uncached_within_threshold",
            id="long but cached here",
        ),
        pytest.param(
            301,
            {"west/p1": PrefixHit(208, 192)},
            "east/p1",
            "uncached_over_threshold",
            id="only what can be resumed counts",
        ),
        pytest.param(
            301,
            {"east/p1": PrefixHit(288, 288)},
            "east/p1",
            "uncached_over_threshold",
            id="a cache elsewhere does not make it short",
        ),
        pytest.param(
            301,
            {"west/d1": PrefixHit(288, 288)},
            "east/p1",
            "uncached_over_threshold",
            id="a decode worker's cache saves no prefill",
        ),
    ],
)
def test_uncached_tokens_of_the_decode_side_decide(
    input_tokens: int, hits: dict[str, PrefixHit], worker: str, reason: str
) -> None:
    decision = decide(a_request(input_tokens=input_tokens, prefix_hits=hits), EAST, WEST)

    assert prefill_worker(decision) == worker
    assert decision.reason == reason


def test_the_best_cache_of_the_side_decides_not_the_winner_s() -> None:
    request = a_request(input_tokens=301, prefix_hits={"west/p2": PrefixHit(208, 208)})
    busy = a_worker("west/p2", pending_tokens=10_000)

    decision = decide(request, EAST, WEST, busy)

    assert prefill_worker(decision) == "west/p1"
    assert decision.reason == "uncached_within_threshold"


def test_the_cache_of_a_worker_that_cannot_take_it_does_not_count() -> None:
    request = a_request(input_tokens=301, prefix_hits={"west/p2": PrefixHit(208, 208)})
    full = a_worker("west/p2", pending_requests=16)

    decision = decide(request, EAST, WEST, full)

    assert prefill_worker(decision) == "east/p1"


@pytest.mark.parametrize(
    ("input_tokens", "workers", "worker", "reason", "explanation"),
    [
        pytest.param(
            51,
            (EAST, WEST),
            "west/p1",
            "uncached_within_threshold",
            "50 of 50 prefill tokens are not cached in west, within the threshold of 100: "
            "kept in west",
            id="short",
        ),
        pytest.param(
            301,
            (EAST, WEST),
            "east/p1",
            "uncached_over_threshold",
            "300 of 300 prefill tokens are not cached in west, above the threshold of 100: "
            "offloaded",
            id="long",
        ),
        pytest.param(
            301,
            (WEST,),
            "west/p1",
            "no_remote_prefill",
            "300 of 300 prefill tokens are not cached in west, above the threshold of 100, but "
            "no prefill worker elsewhere can take it: kept in west",
            id="long, nobody elsewhere",
        ),
        pytest.param(
            51,
            (EAST,),
            "east/p1",
            "no_local_prefill",
            "50 of 50 prefill tokens are not cached in west, within the threshold of 100, but "
            "no prefill worker in west can take it: offloaded",
            id="short, nobody here",
        ),
        pytest.param(
            301,
            (EAST,),
            "east/p1",
            "uncached_over_threshold",
            "300 of 300 prefill tokens are not cached in west, above the threshold of 100: "
            "offloaded",
            id="long, nobody here",
        ),
    ],
)
def test_each_side_stands_in_for_the_other_and_says_so(
    input_tokens: int,
    workers: tuple[WorkerView, ...],
    worker: str,
    reason: str,
    explanation: str,
) -> None:
    decision = decide(a_request(input_tokens=input_tokens), *workers)

    assert prefill_worker(decision) == worker
    assert decision.reason == reason
    assert decision.explanation == explanation


def test_within_a_side_the_least_predicted_ttft_wins() -> None:
    busy, idle = a_worker("east/p1", pending_tokens=500), a_worker("east/p2")

    decision = decide(a_request(input_tokens=301), busy, idle, WEST)

    assert prefill_worker(decision) == "east/p2"


def test_a_hit_on_the_whole_prompt_leaves_nothing_uncached() -> None:
    request = a_request(input_tokens=64, prefix_hits={"west/p1": PrefixHit(64, 64)})

    decision = decide(request, EAST, WEST, threshold_tokens=0)

    assert decision.explanation.startswith("0 of 63 prefill tokens are not cached")
    assert decision.reason == "uncached_within_threshold"


def test_nothing_is_chosen_when_nobody_can() -> None:
    decision = decide(a_request())

    assert decision.placement is None
    assert decision.reason == "no_candidate"


def test_the_threshold_is_512_unless_it_is_given() -> None:
    assert PrfaasParameters().threshold_tokens == 512


@pytest.mark.parametrize(
    "parameters",
    [
        pytest.param({"threshold_tokens": -1}, id="negative"),
        pytest.param({"threshold_tokens": (1 << 24) + 1}, id="beyond any context"),
        pytest.param({"threshold_tokens": "512"}, id="text"),
        pytest.param({"threshold_tokens": 512.0}, id="a float"),
        pytest.param({"threshold_tokens": True}, id="a boolean"),
        pytest.param({"treshold_tokens": 512}, id="misspelt"),
    ],
)
def test_wrong_parameters_are_refused(parameters: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PrfaasParameters.model_validate(parameters)
