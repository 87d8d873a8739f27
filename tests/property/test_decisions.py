from __future__ import annotations

from dataclasses import replace
from itertools import product
from random import Random

from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from strategies import WORKER_IDS, Situation, situations

from controlplane.domain.cluster import ClusterView, recorded
from controlplane.domain.decision import CANDIDATES_MAX, Decision, RequestFeatures
from policies.api import Parameters
from policies.filters import cannot_hand_over, cannot_serve, is_out_of_reach
from policies.local_only import LocalOnlyPolicy

REQUEST = TypeAdapter(RequestFeatures)
VIEW = TypeAdapter(ClusterView)
DECISION = TypeAdapter(Decision)


def decide(situation: Situation) -> Decision:
    return situation.policy.decide(situation.request, situation.view, Random(situation.seed))


@given(situations, st.randoms(use_true_random=False))
def test_the_order_of_workers_and_links_does_not_change_the_decision(
    situation: Situation, shuffle: Random
) -> None:
    workers, links = list(situation.view.workers), list(situation.view.links)
    shuffle.shuffle(workers)
    shuffle.shuffle(links)
    view = replace(situation.view, workers=tuple(workers), links=tuple(links))

    assert decide(replace(situation, view=view)) == decide(situation)


@given(situations)
def test_a_rejected_worker_is_never_chosen(situation: Situation) -> None:
    request, view = situation.request, situation.view

    placement = decide(situation).placement

    if placement is None:
        return
    prefill, decode = view.worker(placement.prefill_worker), view.worker(placement.decode_worker)
    assert prefill is not None
    assert decode is not None
    assert (prefill.role, decode.role) == ("prefill", "decode")
    assert placement.prefill_datacenter == prefill.datacenter
    assert placement.decode_datacenter == decode.datacenter
    assert cannot_serve(request, prefill) is None
    assert cannot_serve(request, decode) is None
    assert cannot_hand_over(prefill, decode, view) is None
    assert is_out_of_reach(prefill, view) is None
    assert is_out_of_reach(decode, view) is None


@given(situations)
def test_nothing_is_placed_only_when_nothing_can_be(situation: Situation) -> None:
    request, view = situation.request, situation.view
    able = [
        worker
        for worker in view.workers
        if cannot_serve(request, worker) is None and is_out_of_reach(worker, view) is None
    ]
    pairs = [
        (prefill, decode)
        for prefill, decode in product(able, able)
        if (prefill.role, decode.role) == ("prefill", "decode")
        and cannot_hand_over(prefill, decode, view) is None
    ]

    decision = decide(situation)

    assert (decision.placement is None) == (not pairs)
    assert (decision.reason == "no_candidate") == (not pairs)
    assert (decision.prediction is None) == (not pairs)


@given(situations)
def test_a_decision_replays_to_itself_from_its_record(situation: Situation) -> None:
    decision = decide(situation)
    kept = recorded(situation.view, [one.worker_id for one in decision.candidates])

    replayed = situation.policy.decide(
        REQUEST.validate_json(REQUEST.dump_json(situation.request)),
        VIEW.validate_json(VIEW.dump_json(kept)),
        Random(TypeAdapter(int).validate_json(str(situation.seed))),
    )

    assert replayed == decision


@given(situations)
def test_a_decision_survives_its_own_record(situation: Situation) -> None:
    decision = decide(situation)

    assert DECISION.validate_json(DECISION.dump_json(decision)) == decision


@given(situations)
def test_a_policy_changes_nothing_that_it_is_given(situation: Situation) -> None:
    before = REQUEST.dump_json(situation.request), VIEW.dump_json(situation.view)

    first, second = decide(situation), decide(situation)

    assert first == second
    assert (REQUEST.dump_json(situation.request), VIEW.dump_json(situation.view)) == before


@given(situations)
def test_every_worker_is_a_candidate_once(situation: Situation) -> None:
    decision = decide(situation)

    named = [candidate.worker_id for candidate in decision.candidates]
    assert len(named) <= CANDIDATES_MAX
    assert sorted(named) == [worker.worker_id for worker in situation.view.workers]


@given(situations)
def test_a_candidate_is_either_rejected_in_words_or_not_at_all(situation: Situation) -> None:
    for candidate in decide(situation).candidates:
        assert (candidate.rejected_by is None) == (candidate.detail == "")
        assert candidate.rejected_by is None or candidate.prediction is None


@given(situations)
def test_the_margin_is_the_distance_to_the_next_best(situation: Situation) -> None:
    decision = decide(situation)

    if decision.placement is None:
        assert decision.margin_s is None
        return
    assert decision.prediction is not None
    others = [
        candidate.prediction.ttft_s
        for candidate in decision.candidates
        if candidate.prediction and candidate.worker_id != decision.placement.prefill_worker
    ]
    expected = min(others) - decision.prediction.ttft_s if others else None
    assert decision.margin_s == expected


@given(situations, st.integers(1, 1_000_000), st.sampled_from(WORKER_IDS))
def test_more_queue_never_wins_a_worker_a_request(
    situation: Situation, tokens: int, loser: str
) -> None:
    situation = replace(situation, policy=LocalOnlyPolicy(Parameters()))
    workers = tuple(
        replace(worker, pending_tokens=worker.pending_tokens + tokens, prefill_s_per_token=0.001)
        if worker.worker_id == loser
        else replace(worker, prefill_s_per_token=0.001)
        for worker in situation.view.workers
    )
    before = tuple(replace(worker, prefill_s_per_token=0.001) for worker in situation.view.workers)
    was = decide(replace(situation, view=replace(situation.view, workers=before))).placement

    now = decide(replace(situation, view=replace(situation.view, workers=workers))).placement

    if was is None or now is None:
        assert was is now
    elif was.prefill_worker != loser:
        assert now.prefill_worker != loser
