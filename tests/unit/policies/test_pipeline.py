from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, get_args

import pytest
from builders import a_link, a_request, a_view, a_worker

from controlplane.domain.cluster import ClusterView, WorkerView
from controlplane.domain.decision import (
    CANDIDATES_MAX,
    Candidate,
    Decision,
    Placement,
    RejectedBy,
    RequestFeatures,
)
from controlplane.domain.estimate import predict
from controlplane.domain.prefix import PrefixHit
from policies.pipeline import Choice, Option, place


def anybody(options: Sequence[Option], decode: WorkerView) -> Choice:
    """A rule without a preference."""
    return Choice(preferred=options, reason="local_only", explanation=f"for {decode.worker_id}")


def decide(view: ClusterView, request: RequestFeatures | None = None, *, seed: int = 0) -> Decision:
    return place(request or a_request(), view, Random(seed), anybody)


def placed(decision: Decision) -> Placement:
    assert decision.placement is not None
    return decision.placement


def candidate(decision: Decision, worker_id: str) -> Candidate:
    return next(one for one in decision.candidates if one.worker_id == worker_id)


# --- The decode worker ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("better", "worse", "hits"),
    [
        pytest.param(
            a_worker("west/d1", pending_requests=9), a_worker("east/d1"), {}, id="near the router"
        ),
        pytest.param(
            a_worker("west/d2", pending_requests=3),
            a_worker("west/d1", pending_requests=4),
            {"west/d1": PrefixHit(64, 0)},
            id="a free slot before a longer prefix",
        ),
        pytest.param(
            a_worker("west/d2", pending_requests=2),
            a_worker("west/d1", pending_requests=1),
            {"west/d2": PrefixHit(16, 0)},
            id="a longer prefix before less work",
        ),
        pytest.param(
            a_worker("west/d2", pending_requests=1),
            a_worker("west/d1", pending_requests=2),
            {},
            id="less work",
        ),
        pytest.param(
            a_worker("east/d1"),
            a_worker("west/d1", pending_requests=16),
            {},
            id="far from the router when nobody near has room",
        ),
    ],
)
def test_decode_goes_to_the_better_worker(
    better: WorkerView, worse: WorkerView, hits: dict[str, PrefixHit]
) -> None:
    links = (a_link("east", "west"), a_link("west", "east"))
    view = a_view(better, worse, a_worker("west/p1"), links=links)

    decision = decide(view, a_request(prefix_hits=hits))

    assert placed(decision).decode_worker == better.worker_id


def test_decode_falls_to_equal_workers_by_chance() -> None:
    view = a_view(a_worker("west/d1"), a_worker("west/d2"), a_worker("west/p1"))

    chosen = {placed(decide(view, seed=seed)).decode_worker for seed in range(20)}

    assert chosen == {"west/d1", "west/d2"}


def test_a_decode_worker_that_nobody_can_feed_is_passed_over() -> None:
    # The first of two decode workers has been upgraded, the prefill workers have not.
    view = a_view(
        a_worker("west/d1", fingerprint="g"),
        a_worker("west/d2", pending_requests=3),
        a_worker("west/p1"),
    )

    decision = decide(view)

    assert placed(decision).decode_worker == "west/d2"
    assert candidate(decision, "west/d1").rejected_by == "placement"
    assert candidate(decision, "west/d1").detail == (
        "no prefill worker can hand over to it (1 fingerprint)"
    )


def test_a_prefill_worker_that_cannot_serve_feeds_nobody() -> None:
    view = a_view(
        a_worker("west/d1", fingerprint="g"),
        a_worker("west/d2"),
        a_worker("west/p1"),
        a_worker("west/p2", fingerprint="g", is_draining=True),
    )

    assert placed(decide(view)).decode_worker == "west/d2"


# --- The prefill worker -----------------------------------------------------------------------


def test_prefill_goes_to_the_least_predicted_ttft() -> None:
    view = a_view(
        a_worker("west/d1"),
        a_worker("west/p1", pending_tokens=100),
        a_worker("west/p2", pending_tokens=50),
        a_worker("west/p3", pending_tokens=70),
    )

    decision = decide(view)

    assert placed(decision).prefill_worker == "west/p2"
    assert decision.prediction is not None
    assert decision.prediction.queue_s == pytest.approx(0.05)
    assert decision.margin_s == pytest.approx(0.02)


def test_prefill_falls_to_equal_workers_by_chance() -> None:
    view = a_view(a_worker("west/d1"), a_worker("west/p1"), a_worker("west/p2"))

    chosen = {placed(decide(view, seed=seed)).prefill_worker for seed in range(20)}

    assert chosen == {"west/p1", "west/p2"}


def test_chance_breaks_ties_only() -> None:
    view = a_view(a_worker("west/d1"), a_worker("west/p1"), a_worker("west/p2", pending_tokens=1))

    rng = Random(0)
    before = rng.getstate()

    decision = place(a_request(), view, rng, anybody)

    assert placed(decision).prefill_worker == "west/p1"
    assert rng.getstate() == before


def test_a_rule_narrows_the_choice_to_what_it_prefers() -> None:
    def last(options: Sequence[Option], decode: WorkerView) -> Choice:
        del decode
        return Choice(preferred=options[-1:], reason="round_robin", explanation="the last one")

    view = a_view(a_worker("west/d1"), a_worker("west/p1"), a_worker("west/p2", pending_tokens=9))

    decision = place(a_request(), view, Random(0), last)

    assert placed(decision).prefill_worker == "west/p2"
    assert decision.reason == "round_robin"
    assert decision.explanation == "the last one"


def test_the_margin_is_negative_when_a_rule_passes_over_the_cheapest() -> None:
    def last(options: Sequence[Option], decode: WorkerView) -> Choice:
        del decode
        return Choice(preferred=options[-1:], reason="round_robin", explanation="the last one")

    view = a_view(a_worker("west/d1"), a_worker("west/p1"), a_worker("west/p2", pending_tokens=9))

    assert place(a_request(), view, Random(0), last).margin_s == pytest.approx(-0.009)


def test_a_worker_that_is_alone_has_no_margin() -> None:
    view = a_view(a_worker("west/d1"), a_worker("west/p1"))

    assert decide(view).margin_s is None


def test_a_rule_sees_feasible_workers_only() -> None:
    seen: list[str] = []

    def look(options: Sequence[Option], decode: WorkerView) -> Choice:
        seen.extend(option.worker.worker_id for option in options)
        return anybody(options, decode)

    view = a_view(
        a_worker("west/d1"),
        a_worker("west/p1", is_draining=True),
        a_worker("west/p2"),
        a_worker("north/p1"),
        a_worker("west/p3", fingerprint="g"),
    )

    place(a_request(), view, Random(0), look)

    assert seen == ["west/p2"]


# --- The explanation --------------------------------------------------------------------------


def test_a_placement_says_where_both_halves_are() -> None:
    view = a_view(a_worker("east/p1"), a_worker("west/d1"))

    assert placed(decide(view)) == Placement(
        prefill_worker="east/p1",
        prefill_datacenter="east",
        decode_worker="west/d1",
        decode_datacenter="west",
    )


def test_every_worker_is_explained() -> None:
    request = a_request(prefix_hits={"west/d1": PrefixHit(32, 0), "east/p1": PrefixHit(48, 16)})
    east, decode = a_worker("east/p1", pending_requests=1), a_worker("west/d1", pending_requests=2)
    view = a_view(east, decode, a_worker("west/d2", is_suspect=True), a_worker("north/p1"))

    decision = decide(view, request)

    assert decision.candidates == (
        Candidate(
            worker_id="west/d1",
            datacenter="west",
            role="decode",
            pending_requests=2,
            held_tokens=32,
        ),
        Candidate(
            worker_id="west/d2",
            datacenter="west",
            role="decode",
            rejected_by="suspect",
            detail="it failed a request a moment ago, or is silent",
        ),
        Candidate(
            worker_id="east/p1",
            datacenter="east",
            role="prefill",
            prediction=predict(request, east, decode, view),
            pending_requests=1,
            held_tokens=16,
        ),
        Candidate(
            worker_id="north/p1",
            datacenter="north",
            role="prefill",
            rejected_by="no_link",
            detail="no link north>west",
        ),
    )
    assert decision.omitted == {}


def test_every_reason_of_rejection_is_given_by_some_rule() -> None:
    request = a_request(excluded=("west/p1",), resumed_tokens=1)
    workers = (
        a_worker("west/d1", can_resume=True),
        a_worker("west/d2", can_resume=True, fingerprint="h"),
        a_worker("west/d3"),
        a_worker("west/p1"),
        a_worker("west/p2", is_suspect=True),
        a_worker("west/p3", is_draining=True),
        a_worker("west/p4", model="n"),
        a_worker("west/p5", context_tokens_max=100),
        a_worker("west/p6", requests_max=1, pending_requests=1),
        a_worker("west/p7", fingerprint="g"),
        a_worker("west/p8"),
        a_worker("west/p9", is_ejected=True),
        a_worker("north/p1"),
        a_worker("east/p1"),
    )

    held_down = decide(a_view(*workers, links=(a_link(is_down=True),)), request)
    degraded = decide(a_view(*workers, mode="stale_view"), request)

    candidates = (*held_down.candidates, *degraded.candidates)
    given = {one.rejected_by for one in candidates if one.rejected_by}
    assert given == set(get_args(RejectedBy))


# --- Doubt, youth, and an old view ------------------------------------------------------------


def test_a_worker_that_warms_up_takes_a_part_of_the_work() -> None:
    young = a_worker("west/p1", share=0.25, prefill_fixed_s=0.1)
    tokens = [200, 210, 400, 900]
    view = [
        a_view(a_worker("west/d1"), young, a_worker("west/p2", pending_tokens=queued))
        for queued in tokens
    ]

    chosen = [placed(decide(each)).prefill_worker for each in view]

    # It would take 0.2 s, and counts as if it took 0.8 s; the other one takes 0.11 s and its queue.
    assert chosen == ["west/p2", "west/p2", "west/p2", "west/p1"]


def test_the_prediction_of_a_worker_that_warms_up_is_not_changed() -> None:
    view = a_view(a_worker("west/d1"), a_worker("west/p1", share=0.25))

    decision = decide(view)

    assert decision.prediction is not None
    assert decision.prediction.ttft_s == pytest.approx(0.11)


def test_a_decode_worker_that_warms_up_takes_a_part_of_the_work() -> None:
    young = a_worker("west/d1", share=0.5)
    views = [
        a_view(young, a_worker("west/d2", pending_requests=pending), a_worker("west/p1"))
        for pending in (0, 2)
    ]

    assert [placed(decide(view)).decode_worker for view in views] == ["west/d2", "west/d1"]


def test_a_decode_worker_that_warms_up_has_fewer_slots() -> None:
    young = a_worker("west/d1", share=0.25, pending_requests=1, slots=4)
    hits = {"west/d1": PrefixHit(64, 0)}
    view = a_view(young, a_worker("west/d2", pending_requests=3), a_worker("west/p1"))

    decision = decide(view, a_request(prefix_hits=hits))

    assert placed(decision).decode_worker == "west/d2"


def test_a_doubted_worker_that_is_needed_gets_little() -> None:
    doubted = a_worker("west/p1", is_suspect=True, is_needed=True)
    others = [a_worker("west/p2", pending_tokens=queued) for queued in (500, 5000)]

    chosen = [
        placed(decide(a_view(a_worker("west/d1"), doubted, other))).prefill_worker
        for other in others
    ]

    assert chosen == ["west/p2", "west/p1"]


def test_hits_count_less_when_the_view_is_old() -> None:
    hits = {"west/p1": PrefixHit(64, 64)}
    workers = (a_worker("west/d1"), a_worker("west/p1"), a_worker("west/p2", prefill_fixed_s=0.0))

    uncached = {
        trust: decide(a_view(*workers, prefix_trust=trust), a_request(prefix_hits=hits)).prediction
        for trust in (1.0, 0.5, 0.0)
    }

    tokens = [one.uncached_tokens for one in uncached.values() if one is not None]
    assert tokens == [36, 68, 100]


def test_a_router_that_hears_nobody_refuses_everything() -> None:
    decision = decide(a_view(mode="shed"))

    assert decision.placement is None
    assert decision.explanation == (
        "no prefill worker can take it (2 degraded); no decode worker can take it (1 degraded)"
    )


@pytest.mark.parametrize(
    ("workers", "explanation"),
    [
        pytest.param(
            (a_worker("west/p1", role="decode", model="n"),),
            "no prefill worker is known; no decode worker can take it (1 model)",
            id="no prefill worker at all",
        ),
        pytest.param(
            (a_worker("west/p1"),), "no decode worker is known", id="no decode worker at all"
        ),
        pytest.param(
            (a_worker("west/p1"), a_worker("west/d1", is_draining=True)),
            "no decode worker can take it (1 draining)",
            id="no decode worker is able",
        ),
        pytest.param(
            (
                a_worker("west/d1"),
                a_worker("west/p1", is_draining=True),
                a_worker("west/p2", is_suspect=True),
                a_worker("west/p3", is_draining=True),
            ),
            "no prefill worker can take it (2 draining, 1 suspect)",
            id="no prefill worker is able",
        ),
        pytest.param(
            (a_worker("west/d1", is_suspect=True), a_worker("west/p1", is_draining=True)),
            "no prefill worker can take it (1 draining); no decode worker can take it (1 suspect)",
            id="neither",
        ),
        pytest.param(
            (a_worker("west/d1"), a_worker("west/p1", fingerprint="g"), a_worker("north/p1")),
            "no decode worker can take it (1 placement)",
            id="nobody can hand over",
        ),
    ],
)
def test_no_placement_is_explained_by_counts(
    workers: tuple[WorkerView, ...], explanation: str
) -> None:
    decision = decide(a_view(*workers))

    assert decision.placement is None
    assert decision.prediction is None
    assert decision.reason == "no_candidate"
    assert decision.explanation == explanation
    assert {one.worker_id for one in decision.candidates} == {one.worker_id for one in workers}


def test_an_empty_cluster_is_explained() -> None:
    decision = decide(a_view(workers=()))

    assert decision.explanation == "no prefill worker is known; no decode worker is known"
    assert decision.candidates == ()


# --- Large clusters ---------------------------------------------------------------------------


def many(role: str, count: int, **overrides: Any) -> tuple[WorkerView, ...]:
    """Workers of one role, each with a little more to do than the one before."""
    return tuple(
        a_worker(f"west/{role}{n:03}", pending_tokens=n * 10, **overrides) for n in range(count)
    )


def test_as_many_candidates_as_fit_are_all_kept() -> None:
    view = a_view(*many("d", 16), *many("p", CANDIDATES_MAX - 16))

    decision = decide(view)

    named = [one.worker_id for one in decision.candidates]
    assert named == [worker.worker_id for worker in view.workers]
    assert decision.omitted == {}


def test_of_a_large_cluster_the_cheapest_are_kept_and_the_rest_counted() -> None:
    view = a_view(a_worker("west/d1"), *many("p", 40), *many("p9", 5, is_draining=True))

    decision = decide(view)

    kept = [one.worker_id for one in decision.candidates]
    assert len(kept) == CANDIDATES_MAX
    assert set(kept) == {"west/d1", *(f"west/p{n:03}" for n in range(CANDIDATES_MAX - 1))}
    assert decision.omitted == {"feasible": 9, "draining": 5}


def test_a_winner_is_kept_however_dear_it_is() -> None:
    def dearest(options: Sequence[Option], decode: WorkerView) -> Choice:
        del decode
        return Choice(preferred=options[-1:], reason="round_robin", explanation="the dearest")

    view = a_view(*many("d", 40), *many("p", 40))

    decision = place(a_request(), view, Random(0), dearest)

    assert placed(decision).prefill_worker == "west/p039"
    assert candidate(decision, "west/p039").prediction == decision.prediction
    assert candidate(decision, placed(decision).decode_worker).role == "decode"


def test_many_decode_workers_do_not_hide_the_runner_up() -> None:
    view = a_view(*many("d", 60), *many("p", 3))

    decision = decide(view)

    kept = {one.worker_id for one in decision.candidates if one.role == "prefill"}
    assert kept == {"west/p000", "west/p001", "west/p002"}


def test_rejected_workers_do_not_hide_the_runner_up() -> None:
    view = a_view(*many("d", 60), *many("p", 3), *many("p9", 40, is_draining=True))

    decision = decide(view)

    kept = {one.worker_id for one in decision.candidates if one.role == "prefill"}
    assert kept == {"west/p000", "west/p001", "west/p002"}


def test_the_decode_workers_kept_are_the_least_busy() -> None:
    decodes = [
        a_worker(f"west/d{n:02}", pending_requests=99 - n, requests_max=200) for n in range(100)
    ]
    view = a_view(*decodes, *many("p", 40))

    decision = decide(view)

    kept = {one.worker_id for one in decision.candidates if one.role == "decode"}
    assert kept == {f"west/d{n:02}" for n in range(84, 100)}


def test_the_decode_workers_kept_hold_most() -> None:
    decodes = [a_worker(f"west/d{n:02}") for n in range(100)]
    hits = {f"west/d{n:02}": PrefixHit(16, 0) for n in range(50, 66)}
    view = a_view(*decodes, *many("p", 40))

    decision = decide(view, a_request(prefix_hits=hits))

    kept = {one.worker_id for one in decision.candidates if one.role == "decode"}
    assert kept == set(hits)


def test_a_large_cluster_that_can_do_nothing_is_counted() -> None:
    view = a_view(*many("d", 20, is_suspect=True), *many("p", 20, is_draining=True))

    decision = decide(view)

    assert len(decision.candidates) == CANDIDATES_MAX
    assert decision.omitted == {"suspect": 4, "draining": 4}
