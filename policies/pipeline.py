"""
The steps all built-in policies share: filter, choose a decode worker, cost prefill workers, pick.

A policy adds its rule as a function that sorts prefill candidates into preferred ones and others,
and gets back a `Decision` with every candidate explained.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from policies.filters import cannot_hand_over, cannot_serve


@dataclass(frozen=True, slots=True)
class Option:
    """A prefill worker that could take the request, with its predicted cost."""

    worker: WorkerView
    prediction: Prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A rule's answer: among whom to pick, and why."""

    preferred: Sequence[Option]
    reason: Reason
    explanation: str


#: A policy's own rule. Gets every feasible prefill worker (at least one) and the decode worker.
Rule: TypeAlias = Callable[[Sequence[Option], WorkerView], Choice]


def place(request: RequestFeatures, view: ClusterView, rng: Random, rule: Rule) -> Decision:
    """Run the pipeline: one decision, every candidate in it explained."""
    candidates: list[Candidate] = []
    decode = _pick_decode(request, view, rng, candidates)
    options = [] if decode is None else _cost_prefill(request, decode, view, candidates)
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
    request: RequestFeatures, view: ClusterView, rng: Random, candidates: list[Candidate]
) -> WorkerView | None:
    """
    The decode worker: near the router, with a free slot, holding most of the prompt, least busy.

    Decode stays in the router's datacenter when any worker there can take the request.
    """
    feasible: list[tuple[tuple[bool, bool, int, int], WorkerView]] = []
    for worker in view.workers:
        if worker.role != "decode":
            continue
        rejection = cannot_serve(request, worker)
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
    request: RequestFeatures, decode: WorkerView, view: ClusterView, candidates: list[Candidate]
) -> list[Option]:
    options: list[Option] = []
    for worker in view.workers:
        if worker.role != "prefill":
            continue
        rejection = cannot_serve(request, worker) or cannot_hand_over(worker, decode, view)
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
        counts = Counter(candidate.rejected_by for candidate in named if candidate.rejected_by)
        if not named:
            missing.append(f"no {role} worker is known")
        elif sum(counts.values()) == len(named):
            reasons = ", ".join(f"{count} {by}" for by, count in sorted(counts.items()))
            missing.append(f"no {role} worker can take it ({reasons})")
    kept, omitted = _trim(candidates)
    return Decision(
        placement=None,
        reason="no_candidate",
        explanation="; ".join(missing) or "no prefill worker can hand over to a decode worker",
        prediction=None,
        candidates=kept,
        omitted=omitted,
    )


def _trim(
    candidates: list[Candidate], *winners: str
) -> tuple[tuple[Candidate, ...], dict[str, int]]:
    """The winners and the cheapest of the rest; the others as counts by reason."""
    if len(candidates) <= CANDIDATES_MAX:
        return tuple(candidates), {}

    def cost(candidate: Candidate) -> tuple[bool, bool, float, str]:
        ttft_s = candidate.prediction.ttft_s if candidate.prediction else 0.0
        return (
            candidate.worker_id not in winners,
            candidate.rejected_by is not None,
            ttft_s,
            candidate.worker_id,
        )

    ranked = sorted(candidates, key=cost)
    rest: Counter[str] = Counter(
        candidate.rejected_by or "feasible" for candidate in ranked[CANDIDATES_MAX:]
    )
    return tuple(ranked[:CANDIDATES_MAX]), dict(rest)
