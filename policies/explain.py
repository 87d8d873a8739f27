"""What a decision keeps of the workers: a few by name with their figures, all by number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from itertools import chain, zip_longest
from typing import Final

from controlplane.domain.cluster import RECORDED_WORKERS_MAX, ClusterView, Role, WorkerView
from controlplane.domain.decision import (
    CANDIDATES_MAX,
    Candidate,
    Decision,
    Prediction,
    RequestFeatures,
)
from controlplane.domain.estimate import predict
from controlplane.domain.prefix import NO_HIT
from policies.filters import Rejection, counted
from policies.survey import Group

#: Of a large cluster: workers of each group where it was placed that could have taken it, and of
#: those that could not, for each pool and reason, and altogether.
_RUNNERS_UP: Final = 3
_REJECTED: Final = 2
_REJECTED_MAX: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One decision to explain."""

    request: RequestFeatures
    view: ClusterView
    prefills: Sequence[Group]
    decodes: Sequence[Group]
    #: None when nobody can decode.
    decode: WorkerView | None = None
    #: Chosen for prefill, if anybody was.
    prefill: WorkerView | None = None
    #: Prefill workers that were costed for the choice, by id.
    costed: Mapping[str, tuple[WorkerView, Prediction]] = field(default_factory=dict)

    @property
    def winners(self) -> frozenset[str]:
        """Who was chosen."""
        return frozenset(one.worker_id for one in (self.decode, self.prefill) if one is not None)


@dataclass(slots=True)
class _Looked:
    """A worker that is worth a line; of a thousand only a few become candidates of a record."""

    worker: WorkerView
    rejection: Rejection | None
    prediction: Prediction | None
    held_tokens: int

    def cost(self, winners: frozenset[str]) -> tuple[bool, bool, float, int, int, str]:
        """What orders candidates: winners, then those that could take it, the cheapest first."""
        return (
            self.worker.worker_id not in winners,
            self.rejection is not None,
            self.prediction.ttft_s if self.prediction else 0.0,
            -self.held_tokens,
            self.worker.pending_requests,
            self.worker.worker_id,
        )

    @property
    def fate(self) -> str:
        return self.rejection.by if self.rejection else "feasible"

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
            is_held_guessed=self.held_tokens > 0 and worker.has_guessed_prefixes,
        )


def explained(case: Case) -> tuple[tuple[Candidate, ...], dict[str, int]]:
    """The candidates to keep, winners among them, and the others as counts by reason."""
    by_role = _looked(case, case.decodes, "decode"), _looked(case, case.prefills, "prefill")
    fates = _fates(chain(case.decodes, case.prefills))
    looked = [*by_role[0], *by_role[1]]
    if len(looked) > CANDIDATES_MAX:
        looked = _trimmed(by_role[::-1], case.winners)
    for one in looked:
        fates[one.fate] -= 1
    return tuple([one.candidate() for one in looked]), {by: n for by, n in fates.items() if n}


def nothing(case: Case) -> Decision:
    """No placement: the counts by reason are the explanation."""
    missing = []
    groups: tuple[tuple[Role, Sequence[Group]], ...] = (
        ("prefill", case.prefills),
        ("decode", case.decodes),
    )
    for role, of_role in groups:
        fates = {by: count for by, count in _fates(of_role).items() if count}
        if not of_role:
            missing.append(f"no {role} worker is known")
        elif "feasible" not in fates:
            missing.append(f"no {role} worker can take it ({counted(fates)})")
    kept, omitted = explained(case)
    return Decision(
        placement=None,
        reason="no_candidate",
        explanation="; ".join(missing),
        prediction=None,
        candidates=kept,
        omitted=omitted,
    )


def _fates(groups: Iterable[Group]) -> dict[str, int]:
    fates: dict[str, int] = {}
    for group in groups:
        group.count_into(fates)
    return fates


def _looked(case: Case, groups: Sequence[Group], role: Role) -> list[_Looked]:
    """The workers of one role that are worth a line, by id."""
    worth: list[tuple[WorkerView, Group | None]]
    if case.view.size <= RECORDED_WORKERS_MAX:
        worth = [(one, group) for group in groups for one in group.members()]
    else:
        worth = _worth_a_line(case, groups, role)
    hits = case.request.prefix_hits
    looked = []
    for worker, group in sorted(worth, key=_id_of):
        # Nothing speaks against those that come without their group.
        rejection = group.why_not(case.request, worker, case.view) if group is not None else None
        hit = hits.get(worker.worker_id, NO_HIT)
        is_costed = role == "prefill" and rejection is None
        looked.append(
            _Looked(
                worker,
                rejection,
                _prediction(case, worker) if is_costed else None,
                hit.resumable_tokens if role == "prefill" else hit.attention_tokens,
            )
        )
    return looked


def _id_of(pair: tuple[WorkerView, Group | None]) -> str:
    return pair[0].worker_id


def _prediction(case: Case, worker: WorkerView) -> Prediction | None:
    if case.decode is None:
        return None
    known = case.costed.get(worker.worker_id)
    return known[1] if known else predict(case.request, worker, case.decode, case.view)


def _worth_a_line(
    case: Case, groups: Sequence[Group], role: Role
) -> list[tuple[WorkerView, Group | None]]:
    """Of a large cluster: who was chosen or costed, who is next where they are, some rejected."""
    found: dict[str, tuple[WorkerView, Group | None]] = {}
    if role == "prefill":
        for worker, _ in case.costed.values():
            found[worker.worker_id] = (worker, None)
    elif case.decode is not None:
        found[case.decode.worker_id] = (case.decode, None)
    sites = {one.datacenter for one in (case.decode, case.prefill) if one is not None}
    rejected = 0
    for group in groups:
        if group.is_feasible and group.datacenter in sites:
            for worker in group.by_load[:_RUNNERS_UP]:
                found[worker.worker_id] = (worker, None)
        if rejected == _REJECTED_MAX:
            continue
        for workers in _out_of(group):
            some = workers[: min(_REJECTED, _REJECTED_MAX - rejected)]
            rejected += len(some)
            found.update((worker.worker_id, (worker, group)) for worker in some)
    return list(found.values())


def _out_of(group: Group) -> Iterator[Sequence[WorkerView]]:
    """Workers of a group that cannot take the request, those with one reason together."""
    yield from group.pool.out.values()
    if group.rejection is not None:
        yield group.able


def _trimmed(by_role: Iterable[Sequence[_Looked]], winners: frozenset[str]) -> list[_Looked]:
    """The winners and the cheapest of the rest, of both roles."""
    # Of each role no more can be kept than of both together, so the rest need not be ordered.
    cheapest = (
        nsmallest(CANDIDATES_MAX, looked, key=lambda one: one.cost(winners)) for looked in by_role
    )
    # In turn, or one role would crowd out the other and the runner-up with it.
    ranked = [one for pair in zip_longest(*cheapest) for one in pair if one is not None]
    ranked.sort(key=lambda one: one.rejection is not None)
    return ranked[:CANDIDATES_MAX]
