"""
The steps all built-in policies share: filter, choose a decode worker, cost prefill workers, pick.

A policy adds its rule as a function that sorts prefill candidates into preferred ones and others,
and gets back a `Decision` with every candidate explained.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from itertools import zip_longest
from random import Random
from typing import Final, TypeAlias

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
from policies.filters import (
    Rejection,
    cannot_be_fed,
    cannot_hand_over,
    cannot_serve,
    counted,
    is_out_of_reach,
    unwise_offloads,
)


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


#: What a worker is given that is used only because nearly nobody else is left.
_DOUBTFUL_SHARE: Final = 0.1


@dataclass(slots=True)
class _Looked:
    """A worker that was looked at; of a thousand only a few become candidates of a record."""

    worker: WorkerView
    rejection: Rejection | None
    prediction: Prediction | None
    held_tokens: int

    def cost(self, winners: Sequence[str]) -> tuple[bool, bool, float, int, int, str]:
        """What orders candidates: winners, then those that could take it, the cheapest first."""
        return (
            self.worker.worker_id not in winners,
            self.rejection is not None,
            self.prediction.ttft_s if self.prediction else 0.0,
            -self.held_tokens,
            self.worker.pending_requests,
            self.worker.worker_id,
        )

    def candidate(self) -> Candidate:
        """As a record keeps it."""
        worker, rejection = self.worker, self.rejection
        return Candidate(
            worker_id=worker.worker_id,
            datacenter=worker.datacenter,
            role=worker.role,
            rejected_by=rejection.by if rejection else None,
            detail=rejection.detail if rejection else "",
            prediction=self.prediction,
            pending_requests=worker.pending_requests,
            held_tokens=self.held_tokens,
        )


#: A policy's own rule. Gets every feasible prefill worker (at least one) and the decode worker.
Rule: TypeAlias = Callable[[Sequence[Option], WorkerView], Choice]


def place(request: RequestFeatures, view: ClusterView, rng: Random, rule: Rule) -> Decision:
    """Run the pipeline: one decision, every candidate in it explained."""
    request = request.discounted(view.prefix_trust)
    looked: list[_Looked] = []
    prefills = [
        (worker, cannot_serve(request, worker) or is_out_of_reach(worker, view))
        for worker in view.workers
        if worker.role == "prefill"
    ]
    able = [worker for worker, rejection in prefills if rejection is None]
    decode = _pick_decode(request, able, view, rng, looked)
    options = _cost_prefill(request, prefills, decode, view, looked)
    if decode is None or not options:
        return _nothing(looked)
    choice = rule(options, decode)
    ranked = sorted(choice.preferred, key=_cost_for_its_share)
    best = _cost_for_its_share(ranked[0])
    tied = [option for option in ranked if _cost_for_its_share(option) == best]
    winner = tied[rng.randrange(len(tied))] if len(tied) > 1 else tied[0]
    kept, omitted = _trim(looked, winner.worker.worker_id, decode.worker_id)
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


def _share(worker: WorkerView) -> float:
    """
    Part of its usual work that a worker gets.

    One that suspicion or ejection would keep out, were it not needed, is tried as carefully as one
    that has just started.
    """
    is_doubtful = worker.is_suspect or worker.is_ejected
    return min(worker.share, _DOUBTFUL_SHARE) if is_doubtful else worker.share


def _cost_for_its_share(option: Option) -> float:
    """Predicted TTFT as if the worker were so much slower as its share is smaller."""
    return option.prediction.ttft_s / _share(option.worker)


def _pick_decode(
    request: RequestFeatures,
    able: Sequence[WorkerView],
    view: ClusterView,
    rng: Random,
    looked: list[_Looked],
) -> WorkerView | None:
    """
    The decode worker: near the router, with a free slot, holding most of the prompt, least busy.

    Decode stays in the router's datacenter when any worker there can take the request and get its
    KV from one of the prefill workers that are `able`. A worker that warms up counts as busier,
    and with fewer slots, than it is.
    """
    feasible: list[tuple[tuple[bool, bool, int, float], WorkerView]] = []
    # Whether it can be fed depends on these two alone, and a large cluster has few of them.
    unfed: dict[tuple[str, str], Rejection | None] = {}
    for worker in view.workers:
        if worker.role != "decode":
            continue
        kind = (worker.datacenter, worker.fingerprint)
        if kind not in unfed:
            unfed[kind] = cannot_be_fed(worker, able, view)
        rejection = cannot_serve(request, worker) or is_out_of_reach(worker, view) or unfed[kind]
        held_tokens = request.hit(worker.worker_id).attention_tokens
        looked.append(_Looked(worker, rejection, None, held_tokens))
        if rejection is None:
            is_away = worker.datacenter != view.home_datacenter
            share = _share(worker)
            must_wait = worker.pending_requests >= max(1.0, worker.slots * share)
            load = (worker.pending_requests + 1) / share
            feasible.append(((is_away, must_wait, -held_tokens, load), worker))
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
    looked: list[_Looked],
) -> list[Option]:
    """The prefill workers that could take it; without a decode worker they cost nothing yet."""
    options: list[Option] = []
    if decode is not None:
        prefills = _that_should_hand_over(prefills, decode, view)
    for worker, rejection in prefills:
        prediction = None
        if decode is not None and rejection is None:
            prediction = predict(request, worker, decode, view)
            options.append(Option(worker, prediction))
        held_tokens = request.hit(worker.worker_id).resumable_tokens
        looked.append(_Looked(worker, rejection, prediction, held_tokens))
    return options


def _that_should_hand_over(
    prefills: Sequence[tuple[WorkerView, Rejection | None]], decode: WorkerView, view: ClusterView
) -> list[tuple[WorkerView, Rejection | None]]:
    """The same workers, with what speaks against each as the source of this decode worker."""
    # What keeps KV from getting there depends on these two alone, and there are few of them.
    barred: dict[tuple[str, str], Rejection | None] = {}
    asked: list[tuple[WorkerView, Rejection | None]] = []
    for worker, refusal in prefills:
        kind = (worker.datacenter, worker.fingerprint)
        if kind not in barred:
            barred[kind] = cannot_hand_over(worker, decode, view)
        asked.append((worker, refusal or barred[kind]))
    able = [worker for worker, rejection in asked if rejection is None]
    unwise = unwise_offloads(able, decode, view)
    if not unwise:
        return asked
    return [(worker, rejection or unwise.get(worker.datacenter)) for worker, rejection in asked]


def _margin_s(winner: Option, options: Sequence[Option]) -> float | None:
    others = [option.prediction.ttft_s for option in options if option is not winner]
    return min(others) - winner.prediction.ttft_s if others else None


def _nothing(looked: Sequence[_Looked]) -> Decision:
    """No placement: the counts by reason are the explanation."""
    missing = []
    for role in ("prefill", "decode"):
        named = [one for one in looked if one.worker.role == role]
        counts: Counter[str] = Counter(one.rejection.by for one in named if one.rejection)
        if not named:
            missing.append(f"no {role} worker is known")
        elif sum(counts.values()) == len(named):
            missing.append(f"no {role} worker can take it ({counted(counts)})")
    kept, omitted = _trim(looked)
    return Decision(
        placement=None,
        reason="no_candidate",
        explanation="; ".join(missing),
        prediction=None,
        candidates=kept,
        omitted=omitted,
    )


def _trim(looked: Sequence[_Looked], *winners: str) -> tuple[tuple[Candidate, ...], dict[str, int]]:
    """The winners and the cheapest of the rest, of both roles; the others as counts by reason."""
    if len(looked) <= CANDIDATES_MAX:
        return tuple([one.candidate() for one in looked]), {}
    # Of each role no more can be kept than of both together, so the rest need not be ordered.
    by_role = (
        nsmallest(
            CANDIDATES_MAX,
            (one for one in looked if one.worker.role == role),
            key=lambda one: one.cost(winners),
        )
        for role in ("prefill", "decode")
    )
    # In turn, or one role would crowd out the other and the runner-up with it.
    ranked = [one for pair in zip_longest(*by_role) for one in pair if one is not None]
    ranked.sort(key=lambda one: one.rejection is not None)
    kept = ranked[:CANDIDATES_MAX]
    rest = Counter(map(_fate, looked))
    rest.subtract(map(_fate, kept))
    return tuple([one.candidate() for one in kept]), {fate: n for fate, n in rest.items() if n}


def _fate(looked: _Looked) -> str:
    return looked.rejection.by if looked.rejection else "feasible"
