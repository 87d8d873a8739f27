"""The pools of a cluster as one request sees them: who of each can take it, and why others cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import Final, Literal, TypeAlias

from controlplane.domain.cluster import ClusterView, WorkerView
from controlplane.domain.decision import RequestFeatures
from controlplane.domain.prefix import PrefixHit
from controlplane.domain.rows import Row
from controlplane.domain.sites import Kind, Pool, equally_loaded, filing_of, sites_of
from policies.filters import (
    Rejection,
    cannot_serve,
    is_of_another_kind,
    is_out_of_reach,
    may_not_be_in,
)

#: Whom a group's rejection is about: all of its workers, all that nothing worse is said of (those
#: that are full among them), or those alone that could take the request otherwise.
Scope: TypeAlias = Literal["all", "kind", "able"]

_WORKER_ID: Final = attrgetter("worker_id")

#: Why one worker is kept out by a rule of the policy's own; None when it is not.
Sift: TypeAlias = Callable[[WorkerView], Rejection | None]


@dataclass(slots=True)
class Group:
    """The workers of one pool, for one request."""

    datacenter: str
    pool: Pool
    #: Why none of those that are able can take it.
    rejection: Rejection | None
    scope: Scope
    #: Those that can, those with the least to do first.
    by_load: Row | tuple[WorkerView, ...]
    #: Those of them that hold something of the prompt (`search.find_holders`).
    held: list[WorkerView]
    #: Tokens that a prefill can resume from in the best of them.
    held_tokens: int
    #: What a crowd of workers holds of the prompt, whose members are not among them yet.
    crowd: PrefixHit | None
    #: Those of the pool's that are not among them, with the reason of each.
    singled: dict[str, Rejection]
    #: Fates that the pool tells of workers which have failed the request before.
    overruled: list[str]

    @property
    def kind(self) -> Kind:
        """All that its workers have in common."""
        return self.pool.kind

    @property
    def able(self) -> tuple[WorkerView, ...]:
        """Those that can, by id; in order of load they are had for less."""
        if self.by_load is self.pool.by_load:
            return self.pool.able
        return tuple(sorted(self.by_load, key=_WORKER_ID))

    @property
    def idlest(self) -> int:
        """How many of those that can have equally little to do, less than any other."""
        if self.by_load is self.pool.by_load:
            return self.pool.idlest
        return equally_loaded(self.by_load)

    @property
    def is_feasible(self) -> bool:
        """Some worker of it can take the request, as far as is known."""
        return self.rejection is None and bool(self.by_load)

    def hold(self, worker: WorkerView, resumable_tokens: int) -> None:
        """One of its workers that take new work holds so much of the prompt."""
        if worker.worker_id not in self.singled:
            self.held.append(worker)
            self.held_tokens = max(self.held_tokens, resumable_tokens)

    def bar(self, rejection: Rejection | None) -> None:
        """Keep its workers out, if there is a reason and none yet."""
        if self.rejection is None:
            self.rejection = rejection

    def single_out(self, rejections: dict[str, Rejection]) -> None:
        """Keep some of those out that could take the request."""
        self.singled.update(rejections)
        self.by_load = tuple([one for one in self.by_load if one.worker_id not in rejections])

    def overrule(self, worker: WorkerView, rejection: Rejection) -> None:
        """Keep one worker out for a reason that goes before those the pool may have."""
        _, standing, _ = filing_of(worker)
        if standing is None:
            self.single_out({worker.worker_id: rejection})
        else:
            self.singled[worker.worker_id] = rejection
            self.overruled.append(self._fate_of(standing))

    def why_not(
        self, request: RequestFeatures, worker: WorkerView, view: ClusterView
    ) -> Rejection | None:
        """Why one of its workers cannot take the request; None when it can."""
        return (
            cannot_serve(request, worker)
            or is_out_of_reach(worker, view)
            or self.singled.get(worker.worker_id)
            or self.rejection
        )

    def count_into(self, fates: dict[str, int]) -> None:
        """Add its workers by reason of rejection, and "feasible" for those that can take it."""
        by = self.rejection.by if self.rejection else "feasible"
        fates[by] = fates.get(by, 0) + len(self.by_load)
        for standing, workers in self.pool.out.items():
            fate = self._fate_of(standing)
            fates[fate] = fates.get(fate, 0) + len(workers)
        for one in self.singled.values():
            fates[one.by] = fates.get(one.by, 0) + 1
        for fate in self.overruled:
            fates[fate] -= 1

    def _fate_of(self, standing: str) -> str:
        is_covered = self.scope == "all" or (self.scope == "kind" and standing == "full")
        return self.rejection.by if self.rejection and is_covered else standing

    def members(self) -> Iterable[WorkerView]:
        """All workers of the pool, those that take new work first."""
        yield from self.pool.by_load
        for workers in self.pool.out.values():
            yield from workers


def survey(request: RequestFeatures, view: ClusterView, sift: Sift | None = None) -> list[Group]:
    """
    Every pool of the view in order of datacenter and kind, with what speaks against it.

    Args:
        request: What has to be placed.
        view: The cluster.
        sift: Keeps workers out one by one; asked of each that nothing else speaks against.
    """
    groups: list[Group] = []
    for site in sites_of(view):
        residency, reach = may_not_be_in(request, site.datacenter), is_out_of_reach(site, view)
        for pool in site.pools:
            scope: Scope = "able"
            rejection = residency or is_of_another_kind(request, pool.kind)
            if rejection is not None:
                scope = "all" if rejection is residency else "kind"
            groups.append(
                Group(
                    site.datacenter,
                    pool,
                    rejection or reach,
                    scope,
                    pool.by_load,
                    [],
                    0,
                    None,
                    {},
                    [],
                )
            )
    if request.excluded:
        _exclude(request, view, groups)
    if sift is not None:
        for group in groups:
            if group.is_feasible:
                _sift(group, sift)
    return groups


def _exclude(request: RequestFeatures, view: ClusterView, groups: list[Group]) -> None:
    """Who has failed the request before is out for that, unless it may not run there at all."""
    by_kind = {(group.datacenter, group.kind): group for group in groups}
    for worker_id in dict.fromkeys(request.excluded):
        worker = view.worker(worker_id)
        if worker is None:
            continue
        group = by_kind[worker.datacenter, filing_of(worker)[0]]
        if group.scope == "all":
            continue
        reason = cannot_serve(request, worker)
        assert reason is not None, "it has failed this request"
        group.overrule(worker, reason)


def _sift(group: Group, sift: Sift) -> None:
    asked = [(worker.worker_id, sift(worker)) for worker in group.able]
    rejections = {worker_id: why for worker_id, why in asked if why is not None}
    if rejections:
        group.single_out(rejections)
