from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any, get_args

import pytest
from builders import a_link, a_request, a_view, a_worker
from pydantic import TypeAdapter

from controlplane.domain.cluster import ClusterView, WorkerView
from controlplane.domain.decision import (
    CANDIDATES_MAX,
    Candidate,
    CostTerm,
    Decision,
    Placement,
    RejectedBy,
    RequestFeatures,
)
from controlplane.domain.estimate import predict
from controlplane.domain.prefix import PrefixHit
from controlplane.domain.sites import SiteKeeper
from policies.pipeline import Choice, Option, place
from policies.search import Feasible


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


def the_last(options: Sequence[Option], decode: WorkerView) -> Choice:
    del decode
    return Choice(preferred=options[-1:], reason="own_rule", explanation="the last one")


def test_a_rule_gets_the_best_of_each_datacenter() -> None:
    seen: list[Option] = []

    def look(options: Sequence[Option], decode: WorkerView) -> Choice:
        seen.extend(options)
        return anybody(options, decode)

    hits = {"east/p2": PrefixHit(32, 32), "east/p3": PrefixHit(96, 96)}
    view = a_view(
        a_worker("west/d1"),
        a_worker("west/p1", pending_tokens=5),
        a_worker("west/p2"),
        a_worker("east/p1"),
        a_worker("east/p2"),
        a_worker("east/p3", pending_tokens=500),
    )

    place(a_request(prefix_hits=hits), view, Random(0), look)

    assert [(one.worker.worker_id, one.workers, one.workers_everywhere) for one in seen] == [
        ("east/p2", 3, 5),
        ("west/p2", 2, 5),
    ]
    # The best cache of east is at a worker that is too busy to be its best.
    assert [one.fewest_uncached_tokens for one in seen] == [4, 100]


def test_a_rule_narrows_the_choice_to_what_it_prefers() -> None:
    view = a_view(a_worker("west/d1"), a_worker("east/p1"), a_worker("west/p1", pending_tokens=900))

    decision = place(a_request(), view, Random(0), the_last)

    assert placed(decision).prefill_worker == "west/p1"
    assert decision.reason == "own_rule"
    assert decision.explanation == "the last one"


def test_the_margin_is_negative_when_a_rule_passes_over_the_cheapest() -> None:
    view = a_view(a_worker("west/d1"), a_worker("east/p1"), a_worker("west/p1", pending_tokens=900))

    margin_s = place(a_request(), view, Random(0), the_last).margin_s

    # 0.1 s for the KV, 0.05 s for the state and 0.02 s for the way, against 0.9 s in the queue.
    assert margin_s == pytest.approx(0.11 + 0.05 + 0.02 - (0.9 + 0.11))


def test_whom_to_nominate_can_be_the_policys_own() -> None:
    def all_of_them(feasible: Feasible, rng: Random) -> list[WorkerView]:
        del rng
        return [feasible[number] for number in range(len(feasible))]

    view = a_view(a_worker("west/d1"), a_worker("west/p1"), a_worker("west/p2", pending_tokens=9))

    decision = place(a_request(), view, Random(0), the_last, nominate=all_of_them)

    assert placed(decision).prefill_worker == "west/p2"
    assert decision.margin_s == pytest.approx(-0.009)


def test_a_rule_may_copy_a_prefix_and_say_what_it_compared() -> None:
    term = CostTerm(name="queue", amount=1.5, unit="s", weighed_s=1.5)

    def copying(options: Sequence[Option], decode: WorkerView) -> Choice:
        del decode
        costed = [
            replace(one, prediction=replace(one.prediction, costs=(term,))) for one in options
        ]
        winner = replace(costed[0], copy_from_worker="west/p1", copy_tokens=32)
        return Choice(preferred=[winner], reason="own_rule", explanation="a copy", costed=costed)

    decision = place(a_request(), a_view(), Random(0), copying)

    assert placed(decision).copy_from_worker == "west/p1"
    assert placed(decision).copy_tokens == 32
    for name in ("east/p1", "west/p1"):
        prediction = candidate(decision, name).prediction
        assert prediction is not None
        assert prediction.costs == (term,)


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
    resident = decide(a_view(*workers), replace(request, allowed_datacenters=("west",)))

    candidates = (*held_down.candidates, *degraded.candidates, *resident.candidates)
    given = {one.rejected_by for one in candidates if one.rejected_by}
    # A deadline is looked at by `lookahead` alone, and "filter" is for rules of other packages.
    assert given == set(get_args(RejectedBy)) - {"over_deadline", "filter"}


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
    def the_dearest(feasible: Feasible, rng: Random) -> list[WorkerView]:
        del rng
        return [feasible[len(feasible) - 1]]

    view = a_view(*many("d", 40), *many("p", 40))

    decision = place(a_request(), view, Random(0), anybody, nominate=the_dearest)

    assert placed(decision).prefill_worker == "west/p039"
    assert candidate(decision, "west/p039").prediction == decision.prediction
    assert candidate(decision, placed(decision).decode_worker).role == "decode"


def test_many_decode_workers_do_not_hide_the_runner_up() -> None:
    view = a_view(*many("d", 60), *many("p", 3))

    decision = decide(view)

    kept = {one.worker_id for one in decision.candidates if one.role == "prefill"}
    assert kept == {"west/p000", "west/p001", "west/p002"}


def test_rejected_workers_do_not_hide_the_runner_up() -> None:
    view = a_view(*many("d", 20), *many("p", 3), *many("p9", 40, is_draining=True))

    decision = decide(view)

    kept = {one.worker_id for one in decision.candidates if one.rejected_by is None}
    assert {"west/p000", "west/p001", "west/p002"} < kept


def test_the_decode_workers_kept_are_the_least_busy() -> None:
    decodes = [
        a_worker(f"west/d{n:02}", pending_requests=99 - n, requests_max=200) for n in range(40)
    ]
    view = a_view(*decodes, *many("p", 24))

    decision = decide(view)

    kept = {one.worker_id for one in decision.candidates if one.role == "decode"}
    assert kept == {f"west/d{n:02}" for n in range(24, 40)}


def test_the_decode_workers_kept_hold_most() -> None:
    decodes = [a_worker(f"west/d{n:02}") for n in range(40)]
    hits = {f"west/d{n:02}": PrefixHit(16, 0) for n in range(20, 36)}
    view = a_view(*decodes, *many("p", 24))

    decision = decide(view, a_request(prefix_hits=hits))

    kept = {one.worker_id for one in decision.candidates if one.role == "decode"}
    assert kept == set(hits)


def test_a_large_cluster_that_can_do_nothing_is_counted() -> None:
    view = a_view(*many("d", 20, is_suspect=True), *many("p", 20, is_draining=True))

    decision = decide(view)

    assert len(decision.candidates) == CANDIDATES_MAX
    assert decision.omitted == {"suspect": 4, "draining": 4}


# --- Clusters too large to look at everybody --------------------------------------------------


def a_large_view(*more: WorkerView, **overrides: Any) -> ClusterView:
    """Three datacenters with 60 prefill and 40 decode workers each, all with something to do."""
    workers = [
        a_worker(f"{site}/{role}{n:03}", pending_tokens=100 + 7 * n, pending_requests=3)
        for site in ("east", "north", "west")
        for role, count in (("p", 60), ("d", 40))
        for n in range(count)
    ]
    links = (a_link("east", "west"), a_link("north", "west", capacity_bps=8e9))
    return a_view(*workers, *more, **{"links": links, **overrides})


def test_the_least_busy_of_a_large_pool_is_found() -> None:
    view = a_large_view(a_worker("west/p900", pending_tokens=20), a_worker("west/d900"))

    placement = placed(decide(view))

    assert placement.prefill_worker == "west/p900"
    assert placement.decode_worker == "west/d900"


def test_a_long_prefix_in_a_large_pool_is_found() -> None:
    hits = {"west/p059": PrefixHit(96, 96), "west/d039": PrefixHit(96, 0)}
    view = a_large_view(a_worker("west/p900", pending_tokens=450))

    placement = placed(decide(view, a_request(input_tokens=1001, prefix_hits=hits)))

    # Its queue is 0.41 s longer than the shortest one, and it computes 0.1 s less: not worth it.
    assert placement.prefill_worker == "west/p000"
    assert placement.decode_worker == "west/d039"

    hits["west/p059"] = PrefixHit(960, 960)
    placement = placed(decide(view, a_request(input_tokens=1001, prefix_hits=hits)))

    assert placement.prefill_worker == "west/p059"


def test_a_faster_kind_of_worker_in_a_large_datacenter_is_found() -> None:
    fast = a_worker("west/p900", pending_tokens=9000, prefill_s_per_token=0.0001)
    view = a_large_view(fast)

    assert placed(decide(view, a_request(input_tokens=1001))).prefill_worker == "west/p900"


def test_equal_workers_of_a_large_pool_all_get_work() -> None:
    view = a_view(
        *(a_worker(f"west/p{n:03}") for n in range(100)),
        *(a_worker(f"west/d{n:03}") for n in range(100)),
    )

    placements = [placed(decide(view, seed=seed)) for seed in range(600)]

    assert len({one.prefill_worker for one in placements}) > 90
    assert len({one.decode_worker for one in placements}) > 90


def test_workers_of_a_large_cluster_are_counted_by_reason() -> None:
    request = a_request(excluded=("east/p001", "west/d000", "north/p950"))
    view = a_large_view(
        *(a_worker(f"west/p9{n:02}", is_draining=True) for n in range(10)),
        *(a_worker(f"north/p9{n:02}", model="n", is_suspect=True) for n in range(20, 24)),
        *(a_worker(f"north/p9{n:02}", model="n", pending_requests=16) for n in range(50, 53)),
        *(a_worker(f"south/p9{n:02}") for n in range(5)),
    )

    decision = decide(view, request)

    fates = Counter({**decision.omitted})
    fates.update(one.rejected_by or "feasible" for one in decision.candidates)
    assert fates == {
        "feasible": 300 - 2,
        "failed_before": 3,
        "draining": 10,
        "suspect": 4,
        "model": 2,
        "no_link": 5,
    }
    assert len(decision.candidates) <= CANDIDATES_MAX


def test_each_datacenter_of_a_large_cluster_is_explained() -> None:
    decision = decide(a_large_view())

    costed = {one.datacenter for one in decision.candidates if one.prediction is not None}
    assert costed == {"east", "north", "west"}
    assert candidate(decision, placed(decision).prefill_worker).prediction == decision.prediction
    assert decision.margin_s is not None


def test_a_large_view_decides_the_same_however_it_was_made() -> None:
    view = a_large_view(a_worker("east/p900", share=0.5), a_worker("north/d900", is_suspect=True))
    keeper = SiteKeeper()
    shuffled = list(view.workers)
    Random(3).shuffle(shuffled)
    for worker in shuffled:
        keeper.put(replace(worker, pending_tokens=0, is_draining=True))
    for worker in reversed(shuffled):
        keeper.put(worker)
    kept = ClusterView.of_sites(
        keeper.sites(),
        view.links,
        epoch=view.epoch,
        age_s=view.age_s,
        home_datacenter=view.home_datacenter,
        mode=view.mode,
        prefix_trust=view.prefix_trust,
    )
    adapter = TypeAdapter(ClusterView)
    restored = adapter.validate_json(adapter.dump_json(kept))

    assert kept == view == restored
    for seed in range(20):
        assert decide(kept, seed=seed) == decide(view, seed=seed) == decide(restored, seed=seed)


# --- Where data may be ------------------------------------------------------------------------


def test_data_stays_where_it_may_be() -> None:
    workers = (a_worker("east/p1"), a_worker("west/p1"), a_worker("west/d1"), a_worker("east/d1"))

    decision = decide(a_view(*workers), a_request(allowed_datacenters=("east",)))

    assert placed(decision).prefill_worker == "east/p1"
    assert placed(decision).decode_worker == "east/d1"
    assert candidate(decision, "west/p1").rejected_by == "residency"
    assert candidate(decision, "west/d1").detail == "its data may be in east only"


@pytest.mark.parametrize("allowed", [(), ("south",)], ids=["nowhere", "where nobody is"])
def test_data_that_may_be_nowhere_is_refused(allowed: tuple[str, ...]) -> None:
    decision = decide(a_view(), a_request(allowed_datacenters=allowed))

    assert decision.placement is None
    assert decision.explanation == (
        "no prefill worker can take it (2 residency); no decode worker can take it (1 residency)"
    )
