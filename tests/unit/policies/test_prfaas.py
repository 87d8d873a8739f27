from __future__ import annotations

from random import Random
from typing import Any

import pytest
from builders import a_link, a_request, a_view, a_worker
from pydantic import ValidationError

from controlplane.domain.cluster import LinkView, WorkerView
from controlplane.domain.decision import Decision, RequestFeatures
from controlplane.domain.plan import NEVER_TOKENS, Plan
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


# --- The threshold ----------------------------------------------------------------------------


def a_plan(**threshold_tokens: float) -> Plan:
    """Plan 7: `east_west=100` is the threshold of prefill in east for decode in west."""
    pairs = {pair.replace("_", ">"): tokens for pair, tokens in threshold_tokens.items()}
    return Plan(version=7, author="west/router-1", threshold_tokens=pairs)


def decided(
    request: RequestFeatures,
    *workers: WorkerView,
    links: tuple[LinkView, ...] = (a_link(),),
    plan: Plan | None = None,
    **parameters: Any,
) -> Decision:
    policy = PrfaasPolicy(PrfaasParameters.model_validate({"threshold_tokens": 100} | parameters))
    return policy.decide(request, a_view(DECODE, *workers, links=links, plan=plan), Random(0))


@pytest.mark.parametrize(
    ("plan", "parameters", "worker", "said"),
    [
        pytest.param(None, {}, "east/p1", "above the threshold of 100:", id="no plan"),
        pytest.param(
            a_plan(east_west=400),
            {},
            "west/p1",
            "within the threshold of 400 of plan 7:",
            id="plan",
        ),
        pytest.param(
            a_plan(east_west=400),
            {"follows_plan": False},
            "east/p1",
            "above the threshold of 100:",
            id="a plan, and a threshold that is pinned",
        ),
        pytest.param(
            a_plan(west_east=400), {}, "east/p1", "above the threshold of 100:", id="other pairs"
        ),
        pytest.param(
            a_plan(east_west=NEVER_TOKENS),
            {},
            "west/p1",
            "within the threshold of infinity of plan 7:",
            id="never",
        ),
    ],
)
def test_the_threshold_is_the_plan_s_for_the_pair(
    plan: Plan | None, parameters: dict[str, Any], worker: str, said: str
) -> None:
    decision = decided(a_request(input_tokens=301), EAST, WEST, plan=plan, **parameters)

    assert prefill_worker(decision) == worker
    assert said in decision.explanation


def test_each_pair_has_its_own_threshold() -> None:
    links = (a_link(), a_link("north", "west"))
    plan = a_plan(east_west=400, north_west=200)
    workers = (EAST, WEST, a_worker("north/p1"))

    chosen = {
        tokens: prefill_worker(
            decided(a_request(input_tokens=tokens + 1), *workers, links=links, plan=plan)
        )
        for tokens in (200, 300)
    }

    assert chosen == {200: "west/p1", 300: "north/p1"}


def test_above_several_thresholds_the_least_predicted_ttft_wins() -> None:
    links = (a_link(rtt_s=0.2), a_link("north", "west"))

    decision = decided(a_request(input_tokens=301), EAST, WEST, a_worker("north/p1"), links=links)

    assert prefill_worker(decision) == "north/p1"


# --- Scarce and abundant ----------------------------------------------------------------------

FAST, BACK = a_link(capacity_bps=8e9), a_link("west", "east", capacity_bps=8e9)
SCARCE = a_link(capacity_bps=8e9, is_scarce=True)


@pytest.mark.parametrize(
    ("links", "hits", "worker", "reason", "copy"),
    [
        pytest.param(
            (FAST, BACK),
            {"east/p1": PrefixHit(288, 288)},
            "west/p1",
            "best_cache_within_threshold",
            ("east/p1", 288),
            id="abundant: a cache elsewhere makes it short, and is copied here",
        ),
        pytest.param(
            (SCARCE, BACK),
            {"east/p1": PrefixHit(288, 288)},
            "east/p1",
            "uncached_over_threshold",
            (None, 0),
            id="scarce: caches are judged apart",
        ),
        pytest.param(
            (FAST, BACK),
            {"east/p1": PrefixHit(96, 96)},
            "east/p1",
            "best_cache_over_threshold",
            (None, 0),
            id="abundant: long with the best cache, which is where it goes",
        ),
        pytest.param(
            (FAST, BACK),
            {"west/p1": PrefixHit(160, 160)},
            "east/p1",
            "uncached_over_threshold",
            ("west/p1", 160),
            id="abundant: long with the best cache, which is copied away",
        ),
        pytest.param(
            (FAST,),
            {"west/p1": PrefixHit(160, 160)},
            "east/p1",
            "uncached_over_threshold",
            (None, 0),
            id="no link for the copy",
        ),
        pytest.param(
            (FAST, a_link("west", "east", capacity_bps=8e9, is_scarce=True)),
            {"west/p1": PrefixHit(160, 160)},
            "east/p1",
            "uncached_over_threshold",
            (None, 0),
            id="no copy over a scarce link",
        ),
        pytest.param(
            (FAST, a_link("west", "east", capacity_bps=8e5)),
            {"west/p1": PrefixHit(160, 160)},
            "east/p1",
            "uncached_over_threshold",
            (None, 0),
            id="no copy that is slower than computing",
        ),
        pytest.param(
            (a_link(capacity_bps=8e5), BACK),
            {"east/p1": PrefixHit(288, 288)},
            "east/p1",
            "uncached_over_threshold",
            (None, 0),
            id="a cache that is not worth copying makes nothing short",
        ),
    ],
)
def test_scarce_and_abundant_bandwidth(
    links: tuple[LinkView, ...],
    hits: dict[str, PrefixHit],
    worker: str,
    reason: str,
    copy: tuple[str | None, int],
) -> None:
    decision = decided(a_request(input_tokens=301, prefix_hits=hits), EAST, WEST, links=links)

    assert decision.placement is not None
    assert decision.placement.prefill_worker == worker
    assert decision.reason == reason
    assert (decision.placement.copy_from_worker, decision.placement.copy_tokens) == copy


def test_a_copy_over_an_abundant_link_spares_a_scarce_one() -> None:
    links = (SCARCE, BACK, a_link("north", "west", capacity_bps=8e9))
    request = a_request(input_tokens=301, prefix_hits={"north/p1": PrefixHit(288, 288)})

    decision = decided(request, EAST, WEST, a_worker("north/p1"), links=links)

    assert decision.placement is not None
    assert decision.placement.prefill_worker == "west/p1"
    assert decision.placement.copy_from_worker == "north/p1"


def test_a_copy_is_part_of_the_prediction_and_of_the_explanation() -> None:
    request = a_request(input_tokens=301, prefix_hits={"east/p1": PrefixHit(288, 288)})

    decision = decided(request, EAST, WEST, links=(FAST, BACK))

    assert decision.prediction is not None
    assert decision.prediction.uncached_tokens == 12
    assert decision.prediction.copy_bytes == 288 * 1000 + 50_000
    assert decision.explanation == (
        "12 of 300 prefill tokens are not cached anywhere, within the threshold of 100: "
        "kept in west, with 288 tokens copied from east/p1"
    )


def test_without_copies_caches_are_judged_apart() -> None:
    request = a_request(input_tokens=301, prefix_hits={"east/p1": PrefixHit(288, 288)})

    decision = decided(request, EAST, WEST, links=(FAST, BACK), copies=False)

    assert prefill_worker(decision) == "east/p1"
    assert decision.reason == "uncached_over_threshold"


@pytest.mark.parametrize(
    ("overrides", "features"),
    [
        pytest.param({"is_suspect": True, "is_needed": True}, {}, id="doubted"),
        pytest.param({"is_draining": True}, {}, id="leaving"),
        pytest.param({"fingerprint": "g"}, {}, id="of another fingerprint"),
        pytest.param({"model": "n"}, {}, id="of another model"),
        pytest.param({"can_export_prefix": False}, {}, id="too old to give any"),
        pytest.param({}, {"excluded": ("east/p2",)}, id="failed this request"),
    ],
)
def test_some_workers_give_no_copies(overrides: dict[str, Any], features: dict[str, Any]) -> None:
    holder = a_worker("east/p2", **overrides)
    request = a_request(input_tokens=301, prefix_hits={"east/p2": PrefixHit(288, 288)}, **features)

    decision = decided(request, EAST, WEST, holder, links=(FAST, BACK))

    assert decision.placement is not None
    assert decision.placement.copy_from_worker is None


def test_nothing_is_copied_out_of_a_datacenter_that_the_data_may_not_be_in() -> None:
    request = a_request(
        input_tokens=301,
        prefix_hits={"east/p1": PrefixHit(288, 288)},
        allowed_datacenters=("west",),
    )

    decision = decided(request, EAST, WEST, links=(FAST, BACK))

    assert decision.placement is not None
    assert decision.placement.prefill_worker == "west/p1"
    assert decision.placement.copy_from_worker is None


def test_nothing_is_copied_by_an_old_view() -> None:
    """What is left of a discounted hit is no position that a prefill can resume from."""
    request = a_request(input_tokens=301, prefix_hits={"east/p1": PrefixHit(288, 288)})
    policy = PrfaasPolicy(PrfaasParameters(threshold_tokens=100))

    copied = {}
    for trust in (1.0, 0.9):
        view = a_view(DECODE, EAST, WEST, links=(FAST, BACK), prefix_trust=trust)
        placement = policy.decide(request, view, Random(0)).placement
        assert placement is not None
        copied[trust] = placement.copy_tokens

    assert copied == {1.0: 288, 0.9: 0}


def test_hits_of_an_old_view_make_short_by_their_discounted_part() -> None:
    request = a_request(input_tokens=301, prefix_hits={"west/p1": PrefixHit(240, 240)})
    policy = PrfaasPolicy(PrfaasParameters(threshold_tokens=100))

    chosen = {
        trust: prefill_worker(
            policy.decide(request, a_view(DECODE, EAST, WEST, prefix_trust=trust), Random(0))
        )
        for trust in (1.0, 0.5)
    }

    assert chosen == {1.0: "west/p1", 0.5: "east/p1"}


# --- Spilling ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("east", "links", "worker", "reason"),
    [
        pytest.param(EAST, (a_link(),), "east/p1", "uncached_over_threshold", id="nobody waits"),
        pytest.param(
            a_worker("east/p1", pending_s=0.1),
            (a_link(),),
            "east/p1",
            "uncached_over_threshold",
            id="a little more than here",
        ),
        pytest.param(
            a_worker("east/p1", pending_s=2.0),
            (a_link(),),
            "west/p1",
            "spilled_from_queue",
            id="many wait for the worker",
        ),
        pytest.param(
            EAST,
            (a_link(reserved_bytes=2_000_000),),
            "west/p1",
            "spilled_from_link",
            id="many bytes wait for the link",
        ),
        pytest.param(
            EAST, (a_link(is_down=True),), "west/p1", "spilled_from_link", id="the link is down"
        ),
        pytest.param(
            EAST,
            (a_link(capacity_bps=1e6),),
            "east/p1",
            "uncached_over_threshold",
            id="slow by itself, to which the threshold has agreed",
        ),
    ],
)
def test_a_long_prompt_stays_when_waiting_elsewhere_makes_it_later(
    east: WorkerView, links: tuple[LinkView, ...], worker: str, reason: str
) -> None:
    decision = decided(a_request(input_tokens=301), east, WEST, links=links)

    assert prefill_worker(decision) == worker
    assert decision.reason == reason


@pytest.mark.parametrize(
    ("west", "link", "parameters", "worker", "reason"),
    [
        pytest.param(WEST, a_link(), {}, "west/p1", "uncached_within_threshold", id="nobody waits"),
        pytest.param(
            a_worker("west/p1", pending_s=2.0),
            a_link(),
            {},
            "east/p1",
            "spilled_from_queue",
            id="many wait here",
        ),
        pytest.param(
            a_worker("west/p1", pending_s=2.0),
            a_link(is_scarce=True),
            {},
            "west/p1",
            "uncached_within_threshold",
            id="not over a scarce link",
        ),
        pytest.param(
            a_worker("west/p1", pending_s=2.0),
            a_link(),
            {"spills_away": False},
            "west/p1",
            "uncached_within_threshold",
            id="not when told so",
        ),
    ],
)
def test_a_short_prompt_leaves_when_waiting_here_makes_it_later(
    west: WorkerView, link: LinkView, parameters: dict[str, Any], worker: str, reason: str
) -> None:
    decision = decided(a_request(input_tokens=51), EAST, west, links=(link,), **parameters)

    assert prefill_worker(decision) == worker
    assert decision.reason == reason


def test_a_spill_says_what_would_have_been() -> None:
    busy = a_worker("east/p1", pending_s=2.0)

    decision = decided(a_request(input_tokens=301), busy, WEST)

    assert decision.explanation == (
        "300 of 300 prefill tokens are not cached in west, above the threshold of 100, but "
        "2.380 s in east would be later than 0.310 s in west: kept in west"
    )


def test_a_link_that_is_down_is_named() -> None:
    decision = decided(a_request(input_tokens=301), EAST, WEST, links=(a_link(is_down=True),))

    assert decision.explanation.endswith("but east>west is down: kept in west")


def test_no_spill_when_told_so() -> None:
    busy = a_worker("east/p1", pending_s=9.0)

    decision = decided(a_request(input_tokens=301), busy, WEST, spills_home=False)

    assert prefill_worker(decision) == "east/p1"


def test_equal_queues_never_flip_the_threshold_s_answer() -> None:
    """Both sides grow together, as they do near saturation."""
    for pending_s in (0.0, 0.5, 5.0, 50.0):
        east = a_worker("east/p1", pending_s=pending_s)
        west = a_worker("west/p1", pending_s=pending_s)

        long = decided(a_request(input_tokens=301), east, west)
        short = decided(a_request(input_tokens=51), east, west)

        assert (prefill_worker(long), prefill_worker(short)) == ("east/p1", "west/p1")


def test_a_difference_within_the_margin_does_not_flap() -> None:
    """One heartbeat more or less of queue, to and fro, and the answer is the same."""
    chosen = {
        prefill_worker(
            decided(a_request(input_tokens=301), a_worker("east/p1", pending_s=queue_s), WEST)
        )
        for queue_s in (0.0, 0.1, 0.02, 0.09, 0.0)
    }

    assert chosen == {"east/p1"}


# --- Parameters -------------------------------------------------------------------------------


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
