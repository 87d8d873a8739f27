"""
The workers of a view by datacenter and kind, in order of load, so that a choice need not see all.

A kind is all that a request can ask of a worker: those of a pool can stand in for each other. What
keeps a worker out whatever the request is known beforehand, so of a thousand workers a choice looks
at the few with the least to do. Everything here follows from the workers alone: sites that are kept
up to date change by change equal those that are made of the view at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from operator import attrgetter
from typing import Final, Literal, NamedTuple, TypeAlias

from controlplane.domain.cluster import ClusterView, Role, WorkerView
from controlplane.domain.estimate import queue_time_s
from controlplane.domain.rows import Roll, Row

#: What keeps a worker from any request.
Standing: TypeAlias = Literal["ejected", "suspect", "draining", "full"]

#: Orders the workers of a pool: would a request wait, how much there is to do, the id.
Load: TypeAlias = tuple[bool, float, str]

#: What a worker is given that is used only because nearly nobody else is left.
_DOUBTFUL_SHARE: Final = 0.1

#: Prompts at which speeds are compared, and how many grades a factor of e has: workers of a pool
#: differ by a fifth in their time for either, and need not be told apart.
_SHORT_TOKENS, _LONG_TOKENS = 2048, 65_536
_GRADES_PER_E: Final = 5

_WORKER_ID: Final = attrgetter("worker_id")

#: Sorts behind every id.
_BEHIND: Final = chr(0x10FFFF)


class Kind(NamedTuple):
    """All that a request can ask of a worker but its load."""

    role: Role
    model: str
    fingerprint: str
    context_tokens_max: int
    can_resume: bool
    kv_bytes_per_token: int
    kv_state_bytes: int
    #: Of its prefill times and its share, in steps of about a fifth; empty for decode workers.
    grade: tuple[int, ...]


#: Where a worker belongs: its kind, what keeps it out, what orders it.
Filing: TypeAlias = tuple[Kind, Standing | None, Load]


class _ById:
    """
    Workers by id: no part of a value, made when somebody asks for it.

    Each change of a worker makes its pool and its site anew. Copying one tuple of five hundred workers
    for that touches as many objects, most of them in no cache; hardly anybody asks for the others.
    """

    __slots__ = ("_by_id",)


class _Counted(_ById):
    """How many workers of a pool have equally little to do: found once, as pools mostly stay."""

    __slots__ = ("_idlest",)


@dataclass(frozen=True, slots=True)
class Pool(_Counted):
    """Workers of one kind in one datacenter."""

    kind: Kind
    #: Those that take new work, those with the least to do first.
    by_load: Row
    #: Those that take none, by reason, each by id.
    out: Mapping[Standing, Row]

    @property
    def able(self) -> tuple[WorkerView, ...]:
        """Those that take new work, by id."""
        able: tuple[WorkerView, ...] | None = getattr(self, "_by_id", None)
        if able is None:
            able = tuple(sorted(self.by_load, key=_WORKER_ID))
            object.__setattr__(self, "_by_id", able)
        return able

    @property
    def idlest(self) -> int:
        """How many of `by_load` have equally little to do: the first of it and those like it."""
        count: int | None = getattr(self, "_idlest", None)
        if count is None:
            count = equally_loaded(self.by_load)
            object.__setattr__(self, "_idlest", count)
        return count

    @property
    def size(self) -> int:
        """How many there are, those that take no work included."""
        return len(self.by_load) + sum([len(workers) for workers in self.out.values()])


@dataclass(frozen=True, slots=True)
class Site(_ById):
    """A datacenter."""

    datacenter: str
    #: Sorted by kind; none is empty.
    pools: tuple[Pool, ...]
    #: Workers of all pools.
    size: int

    @property
    def workers(self) -> Mapping[str, WorkerView]:
        """Those of all pools by id, in no order."""
        workers: dict[str, WorkerView] | None = getattr(self, "_by_id", None)
        if workers is None:
            workers = {
                worker.worker_id: worker
                for pool in self.pools
                for part in (pool.by_load, *pool.out.values())
                for worker in part
            }
            object.__setattr__(self, "_by_id", workers)
        return workers


def share_of(worker: WorkerView) -> float:
    """
    Part of its usual work that a worker gets, 0 < share <= 1.

    One that suspicion or ejection would keep out, were it not needed, is tried as carefully as one
    that has just started.
    """
    is_doubtful = worker.is_suspect or worker.is_ejected
    return min(worker.share, _DOUBTFUL_SHARE) if is_doubtful else worker.share


def standing_of(worker: WorkerView) -> Standing | None:
    """What keeps a worker from any request; None when it takes new work."""
    if worker.is_ejected and not worker.is_needed:
        return "ejected"
    if worker.is_suspect and not worker.is_needed:
        return "suspect"
    if worker.is_draining:
        return "draining"
    return "full" if worker.pending_requests >= worker.requests_max else None


def kind_of(worker: WorkerView) -> Kind:
    """The kind of a worker; the same object for all workers of it."""
    return _the_same(
        Kind(
            worker.role,
            worker.model,
            worker.fingerprint,
            worker.context_tokens_max,
            worker.can_resume,
            worker.kv_bytes_per_token,
            worker.kv_state_bytes,
            _grade(
                worker.prefill_fixed_s,
                worker.prefill_s_per_token,
                worker.prefill_s_per_token_squared,
                share_of(worker),
            )
            if worker.role == "prefill"
            else (),
        )
    )


@lru_cache(maxsize=4096)
def _the_same(kind: Kind) -> Kind:
    """One object for equal kinds, which are compared and looked up in each decision."""
    return kind


def load_of(worker: WorkerView) -> Load:
    """What orders a worker in its pool; one that warms up has more to do than it says."""
    share = share_of(worker)
    if worker.role == "prefill":
        return (False, queue_time_s(worker) / share, worker.worker_id)
    must_wait = worker.pending_requests >= max(1.0, worker.slots * share)
    return (must_wait, (worker.pending_requests + 1) / share, worker.worker_id)


def filing_of(worker: WorkerView) -> Filing:
    """Kind, standing and load of a worker, found once."""
    try:
        return worker.filed
    except AttributeError:
        filing = (kind_of(worker), standing_of(worker), load_of(worker))
        worker.file(filing)
        return filing


def equally_loaded(by_load: Row | tuple[WorkerView, ...]) -> int:
    """How many of some workers in order of load have no more to do than the first."""
    if not by_load:
        return 0
    wait, load, _ = filing_of(by_load[0])[2]
    row = by_load if isinstance(by_load, Row) else Row((by_load,))
    return row.up_to((wait, load, _BEHIND), _load_in_order)


def _load_in_order(worker: WorkerView) -> Load:
    return filing_of(worker)[2]


@lru_cache(maxsize=4096)
def _grade(fixed_s: float, s_per_token: float, s_squared: float, share: float) -> tuple[int, ...]:
    times_s = [
        fixed_s + tokens * s_per_token + tokens * tokens * s_squared
        for tokens in (_SHORT_TOKENS, _LONG_TOKENS)
    ]
    speeds = [
        round(math.log(time_s) * _GRADES_PER_E) if time_s > 0 else -9999 for time_s in times_s
    ]
    return (*speeds, round(share * 10))


@dataclass(slots=True)
class _Draft:
    """A pool that can still change."""

    kind: Kind
    by_load: Roll[Load] = field(default_factory=Roll)
    out: dict[Standing, Roll[str]] = field(default_factory=dict)
    made: Pool | None = None

    def put(self, worker: WorkerView, standing: Standing | None, load: Load) -> None:
        if standing is None:
            self.by_load.put(load, worker)
        else:
            self.out.setdefault(standing, Roll()).put(worker.worker_id, worker)

    def drop(self, worker_id: str, standing: Standing | None, load: Load) -> None:
        if standing is None:
            self.by_load.drop(load)
            return
        roll = self.out[standing]
        roll.drop(worker_id)
        if roll.is_empty:
            del self.out[standing]

    def swap(self, worker: WorkerView, standing: Standing | None, before: Load, now: Load) -> None:
        if standing is not None:
            self.out[standing].swap(worker.worker_id, worker)
            return
        if before == now:
            self.by_load.swap(now, worker)
        else:
            self.by_load.drop(before)
            self.by_load.put(now, worker)

    @property
    def is_empty(self) -> bool:
        return self.by_load.is_empty and not self.out

    def make(self) -> Pool:
        if self.made is None:
            self.made = Pool(
                self.kind,
                self.by_load.row(),
                # In one order, whatever happened in which.
                {name: self.out[name].row() for name in sorted(self.out)},
            )
        return self.made


class SiteKeeper:
    """Sites of a view that changes a little at a time; what has not changed is not made anew."""

    def __init__(self) -> None:
        self._filed: dict[str, tuple[str, Kind, Standing | None, Load]] = {}
        self._workers: dict[str, WorkerView] = {}
        #: `get`, without a step between.
        self.find: Callable[[str], WorkerView | None] = self._workers.get
        #: Grows with every change; views of this version have the workers that `get` finds.
        self.version = 0
        self._drafts: dict[str, dict[Kind, _Draft]] = {}
        self._made: dict[str, Site] = {}
        self._sites: tuple[Site, ...] | None = ()

    def __repr__(self) -> str:
        return f"<SiteKeeper {len(self._filed)} workers in {len(self._drafts)} datacenters>"

    def get(self, worker_id: str) -> WorkerView | None:
        """The worker of this id, as it is now."""
        return self._workers.get(worker_id)

    def put(self, worker: WorkerView) -> None:
        """Take a worker, in place of what was known of it."""
        datacenter = worker.datacenter
        kind, standing, load = filing_of(worker)
        before = self._filed.get(worker.worker_id)
        if before is not None and before[:3] == (datacenter, kind, standing):
            draft = self._drafts[datacenter][kind]
            draft.swap(worker, standing, before[3], load)
        else:
            if before is not None:
                self.drop(worker.worker_id)
            drafts = self._drafts.setdefault(datacenter, {})
            draft = drafts.get(kind) or drafts.setdefault(kind, _Draft(kind))
            draft.put(worker, standing, load)
        self._filed[worker.worker_id] = (datacenter, kind, standing, load)
        self._workers[worker.worker_id] = worker
        self._changed(datacenter, draft)

    def drop(self, worker_id: str) -> None:
        """Forget a worker; nothing happens when it is not there."""
        before = self._filed.pop(worker_id, None)
        if before is None:
            return
        datacenter, kind, standing, load = before
        del self._workers[worker_id]
        drafts = self._drafts[datacenter]
        draft = drafts[kind]
        draft.drop(worker_id, standing, load)
        if draft.is_empty:
            del drafts[kind]
            if not drafts:
                del self._drafts[datacenter]
        self._changed(datacenter, draft)

    def sites(self) -> tuple[Site, ...]:
        """All that have a worker, sorted by name; the same objects until something changes."""
        if self._sites is None:
            self._sites = tuple([self._site(name) for name in sorted(self._drafts)])
        return self._sites

    def _site(self, name: str) -> Site:
        site = self._made.get(name)
        if site is None:
            drafts = self._drafts[name]
            pools = tuple([drafts[kind].make() for kind in sorted(drafts)])
            site = Site(name, pools, sum([pool.size for pool in pools]))
            self._made[name] = site
        return site

    def _changed(self, datacenter: str, draft: _Draft) -> None:
        draft.made = None
        self._made.pop(datacenter, None)
        self._sites = None
        self.version += 1


def sites_of(view: ClusterView) -> tuple[Site, ...]:
    """The sites of a view: those its maker kept, or made of its workers once."""
    sites = view.sites
    if sites is None:
        keeper = SiteKeeper()
        for worker in view.workers:
            keeper.put(worker)
        sites = keeper.sites()
        view.remember(sites)
    return sites
