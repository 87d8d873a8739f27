"""
The steps all built-in policies share: filter, choose a decode worker, cost prefill workers, pick.

A policy adds its rule as a function that sorts prefill candidates into preferred ones and others,
and gets back a `Decision` with every candidate explained.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from random import Random
from typing import TypeAlias

from controlplane.domain.cluster import ClusterView, WorkerView
from controlplane.domain.decision import (
    CANDIDATES_MAX,
    Candidate,
    Decision,
    Placement,
    Prediction,
    Reason,
    RequestFeatures,
)
from controlplane.domain.estimate import predict
from policies.filters import Rejection, cannot_be_fed, cannot_hand_over, cannot_serve, counted


@dataclass(frozen=True, slots=True)
class Option:
    """A prefill worker that could take the request, with its predicted cost."""

    worker: WorkerView
    prediction: Prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A rule's answer: among whom to pick, and why."""

    #: At least one of the options.
    preferred: Sequence[Option]
    reason: Reason
    explanation: str


#: A policy's own rule. Gets every feasible prefill worker (at least one) and the decode worker.
Rule: TypeAlias = Callable[[Sequence[Option], WorkerView], Choice]


def place(request: RequestFeatures, view: ClusterView, rng: Random, rule: Rule) -> Decision:
    """Run the pipeline: one decision, every candidate in it explained."""
    candidates: list[Candidate] = []
    prefills = [
        (worker, cannot_serve(request, worker))
        for worker in view.workers
        if worker.role == "prefill"
    ]
    able = [worker for worker, rejection in prefills if rejection is None]
    decode = _pick_decode(request, able, view, rng, candidates)
    options = _cost_prefill(request, prefills, decode, view, candidates)
    if decode is None or not options:
        return _nothing(candidates)
    choice = rule(options, decode)
    ranked = sorted(choice.preferred, key=lambda option: option.prediction.ttft_s)
    best = ranked[0].prediction.ttft_s
    tied = [option for option in ranked if option.prediction.ttft_s == best]
    winner = tied[rng.randrange(len(tied))] if len(tied) > 1 else tied[0]
    kept, omitted = _trim(candidates, winner.worker.worker_id, decode.worker_id)
    return Decision(
        placement=Placement(
            prefill_worker=winner.worker.worker_id,
            prefill_datacenter=winner.worker.datacenter,
            decode_worker=decode.worker_id,
            decode_datacenter=decode.datacenter,
        ),
        reason=choice.reason,
        explanation=choice.explanation,
        prediction=winner.prediction,
        candidates=kept,
        omitted=omitted,
        margin_s=_margin_s(winner, options),
    )


def _pick_decode(
    request: RequestFeatures,
    able: Sequence[WorkerView],
    view: ClusterView,
    rng: Random,
    candidates: list[Candidate],
) -> WorkerView | None:
    """
    The decode worker: near the router, with a free slot, holding most of the prompt, least busy.

    Decode stays in the router's datacenter when any worker there can take the request and get its
    KV from one of the prefill workers that are `able`.
    """
    feasible: list[tuple[tuple[bool, bool, int, int], WorkerView]] = []
    # Whether it can be fed depends on these two alone, and a large cluster has few of them.
    unfed: dict[tuple[str, str], Rejection | None] = {}
    for worker in view.workers:
        if worker.role != "decode":
            continue
        kind = (worker.datacenter, worker.fingerprint)
        if kind not in unfed:
            unfed[kind] = cannot_be_fed(worker, able, view)
        rejection = cannot_serve(request, worker) or unfed[kind]
        held_tokens = request.hit(worker.worker_id).attention_tokens
        candidates.append(
            Candidate(
                worker_id=worker.worker_id,
                datacenter=worker.datacenter,
                role="decode",
                rejected_by=rejection.by if rejection else None,
                detail=rejection.detail if rejection else "",
                pending_requests=worker.pending_requests,
                held_tokens=held_tokens,
            )
        )
        if rejection is None:
            is_away = worker.datacenter != view.home_datacenter
            must_wait = worker.pending_requests >= worker.slots
            feasible.append(((is_away, must_wait, -held_tokens, worker.pending_requests), worker))
    if not feasible:
        return None
    best = min(key for key, _ in feasible)
    tied = [worker for key, worker in feasible if key == best]
    return tied[rng.randrange(len(tied))] if len(tied) > 1 else tied[0]


def _cost_prefill(
    request: RequestFeatures,
    prefills: Sequence[tuple[WorkerView, Rejection | None]],
    decode: WorkerView | None,
    view: ClusterView,
    candidates: list[Candidate],
) -> list[Option]:
    """The prefill workers that could take it; without a decode worker they cost nothing yet."""
    options: list[Option] = []
    for worker, refusal in prefills:
        rejection, prediction = refusal, None
        if decode is not None and rejection is None:
            rejection = cannot_hand_over(worker, decode, view)
            prediction = None if rejection else predict(request, worker, decode, view)
        candidates.append(
            Candidate(
                worker_id=worker.worker_id,
                datacenter=worker.datacenter,
                role="prefill",
                rejected_by=rejection.by if rejection else None,
                detail=rejection.detail if rejection else "",
                prediction=prediction,
                pending_requests=worker.pending_requests,
                held_tokens=request.hit(worker.worker_id).resumable_tokens,
            )
        )
        if prediction is not None:
            options.append(Option(worker, prediction))
    return options


def _margin_s(winner: Option, options: Sequence[Option]) -> float | None:
    others = [option.prediction.ttft_s for option in options if option is not winner]
    return min(others) - winner.prediction.ttft_s if others else None


def _nothing(candidates: list[Candidate]) -> Decision:
    """No placement: the counts by reason are the explanation."""
    missing = []
    for role in ("prefill", "decode"):
        named = [candidate for candidate in candidates if candidate.role == role]
        counts: Counter[str] = Counter(one.rejected_by for one in named if one.rejected_by)
        if not named:
            missing.append(f"no {role} worker is known")
        elif sum(counts.values()) == len(named):
            missing.append(f"no {role} worker can take it ({counted(counts)})")
    kept, omitted = _trim(candidates)
    return Decision(
        placement=None,
        reason="no_candidate",
        explanation="; ".join(missing),
        prediction=None,
        candidates=kept,
        omitted=omitted,
    )


def _trim(
    candidates: list[Candidate], *winners: str
) -> tuple[tuple[Candidate, ...], dict[str, int]]:
    """The winners and the cheapest of the rest, of both roles; the others as counts by reason."""
    if len(candidates) <= CANDIDATES_MAX:
        return tuple(candidates), {}

    def cost(candidate: Candidate) -> tuple[bool, bool, float, int, int, str]:
        return (
            candidate.worker_id not in winners,
            candidate.rejected_by is not None,
            candidate.prediction.ttft_s if candidate.prediction else 0.0,
            -candidate.held_tokens,
            candidate.pending_requests,
            candidate.worker_id,
        )

    ordered = sorted(candidates, key=cost)
    by_role = ([one for one in ordered if one.role == role] for role in ("prefill", "decode"))
    # In turn, or one role would crowd out the other and the runner-up with it.
    ranked = [one for pair in zip_longest(*by_role) for one in pair if one is not None]
    ranked.sort(key=lambda one: one.rejected_by is not None)
    rest: Counter[str] = Counter(
        candidate.rejected_by or "feasible" for candidate in ranked[CANDIDATES_MAX:]
    )
    return tuple(ranked[:CANDIDATES_MAX]), dict(rest)
