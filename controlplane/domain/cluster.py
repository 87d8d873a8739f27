"""The cluster as a router sees it: immutable, stamped with epoch and age, shared by all requests."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from controlplane.domain.modes import Mode
from controlplane.domain.plan import Plan

if TYPE_CHECKING:
    from controlplane.domain.sites import Filing, Site, SiteKeeper

Role: TypeAlias = Literal["prefill", "decode"]


def link_id(from_datacenter: str, to_datacenter: str) -> str:
    """Name of a directed link: `east>west`."""
    return f"{from_datacenter}>{to_datacenter}"


class _Filed:
    """Where a worker belongs in its datacenter: no part of its value, found when it is first asked."""

    __slots__ = ("filed",)

    #: Its kind, standing and load; missing until somebody has found them: ask `filing_of`.
    filed: Filing


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerView(_Filed):
    """One worker: what it said of itself, and what routers have claimed of it since."""

    #: `<datacenter>/<name>`.
    worker_id: str
    datacenter: str
    role: Role
    #: One process life; a new one voids every location and reservation of the old.
    incarnation: str
    url: str
    model: str
    #: Only workers with equal fingerprints can exchange KV.
    fingerprint: str
    block_tokens: int
    context_tokens_max: int
    #: Requests it runs at the same time.
    slots: int
    #: Requests it takes, running and waiting.
    requests_max: int
    is_draining: bool = False
    #: It can go on with an output that another worker has begun (decode workers).
    can_resume: bool = False
    #: What is known of its prefix cache is a guess by what was sent to it: its engine does not tell.
    has_guessed_prefixes: bool = False
    #: Another worker can copy what its prefix cache holds.
    can_export_prefix: bool = False
    #: It failed a request a moment ago, or is silent, and gets no new work for a while.
    is_suspect: bool = False
    #: It failed too many requests and is out for longer.
    is_ejected: bool = False
    #: So few workers of its kind are available that suspicion and ejection do not keep it out.
    is_needed: bool = False
    #: Part of its usual work that it should take, 0 < share <= 1: less while it warms up.
    share: float = 1.0
    #: Part of one worker that it is, 0 < part <= 1: less than 1 for time that a decode worker lends.
    #: Its times are as long as that makes them; a second of them is so much of a whole worker's.
    lent_part: float = 1.0
    #: Requests waiting and running: its own count, and claims made since it counted.
    pending_requests: int = 0
    #: Prompt tokens it still has to compute: its own count, and claims made since.
    pending_tokens: int = 0
    #: Seconds of prefill those take: its own estimate, and that of claims made since; 0 from workers
    #: that do not tell, whose tokens count instead.
    pending_s: float = 0.0
    #: Seconds of prefill per uncached token, and of any prefill at all.
    prefill_s_per_token: float = 0.0
    prefill_fixed_s: float = 0.0
    #: Seconds per pair of tokens that attend to each other (the quadratic part).
    prefill_s_per_token_squared: float = 0.0
    #: Seconds of one decode step.
    decode_step_s: float = 0.0
    #: Size of KV: attention per token, linear-attention state per sequence.
    kv_bytes_per_token: int = 0
    kv_state_bytes: int = 0

    def file(self, filing: Filing) -> None:
        """Keep what `filing_of` found."""
        object.__setattr__(self, "filed", filing)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkView:
    """A directed pair of datacenters."""

    from_datacenter: str
    to_datacenter: str
    #: Budget that senders keep to, bits per second.
    capacity_bps: float
    #: Measured while bytes moved, bits per second; 0 until something was measured.
    goodput_bps: float = 0.0
    #: What it gives while it is asked for something, bits per second, by what receivers measured
    #: (`domain/link_rate.py`); 0 while none of them tells.
    measured_bps: float = 0.0
    #: Round trip, seconds.
    rtt_s: float = 0.0
    #: Bytes that running requests still have to move, as predicted.
    reserved_bytes: int = 0
    #: Transfers over it failed one after the other; it is left alone for a while.
    is_down: bool = False
    #: Bytes have moved over it a moment ago, so that it is known to work.
    is_measured: bool = True
    #: Part of what it gives that was used lately, 0 to 1.
    utilisation: float = 0.0
    #: Its bandwidth is what binds, with hysteresis (`domain/scarcity.py`).
    is_scarce: bool = False
    #: What a gigabyte over it costs at this time of the day, in the fleet's currency.
    egress_price_per_gb: float = 0.0

    @property
    def link_id(self) -> str:
        """`east>west`."""
        return link_id(self.from_datacenter, self.to_datacenter)

    @property
    def rate_bps(self) -> float:
        """
        Best guess of what a transfer gets when it is alone, bits per second.

        Receivers before 0.4 tell goodput alone. That includes waiting for other transfers, so it is
        trusted only to lower the configured budget by half: below that it says how busy the link
        was, not how fast.
        """
        if self.measured_bps > 0:
            return min(self.capacity_bps, self.measured_bps)
        if self.goodput_bps <= 0:
            return self.capacity_bps
        return min(self.capacity_bps, max(self.goodput_bps, self.capacity_bps / 2))


class _Derived:
    """
    What follows from the fields of a view: no part of its value, made when it is first needed.

    A router's view is made of its sites, which are kept up to date; the tuple of all workers is made
    only for those who ask for all.
    """

    __slots__ = ("_kept", "_link_places", "_sites", "_sites_by_name")

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> object:
            if name != "workers":
                raise AttributeError(name)
            workers = chain.from_iterable(site.workers.values() for site in self._sites)
            in_order = tuple(sorted(workers, key=_WORKER_ID))
            object.__setattr__(self, "workers", in_order)
            return in_order


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterView(_Derived):
    """Immutable picture of the cluster; a policy reads this and nothing else."""

    #: Grows with every change.
    epoch: int
    #: Seconds since the newest input from the store.
    age_s: float
    #: The datacenter of the router: decode stays near it when it can.
    home_datacenter: str
    #: Sorted by `worker_id`, in whatever order they were given.
    workers: tuple[WorkerView, ...]
    #: Sorted by `link_id`.
    links: tuple[LinkView, ...]
    #: Step of the degraded ladder (`domain/modes.py`).
    mode: Mode = "normal"
    #: Part of each prefix hit that is counted, 0 to 1: less when the view is old.
    prefix_trust: float = 1.0
    #: Workers that were known and are not kept in a record; 0 for every view that is decided on.
    workers_omitted: int = 0
    #: What the planner last published; None before the first plan, or when it is too old.
    plan: Plan | None = None

    def __post_init__(self) -> None:
        # Ties are broken by position, so equal pictures must have equal order.
        object.__setattr__(self, "workers", tuple(sorted(self.workers, key=_WORKER_ID)))
        object.__setattr__(self, "links", tuple(sorted(self.links, key=_LINK_ID)))

    @classmethod
    def of_sites(
        cls,
        sites: tuple[Site, ...],
        links: tuple[LinkView, ...],
        *,
        epoch: int,
        age_s: float,
        home_datacenter: str,
        mode: Mode,
        prefix_trust: float,
        plan: Plan | None = None,
        keeper: SiteKeeper | None = None,
        link_places: Mapping[tuple[str, str], int] | None = None,
    ) -> ClusterView:
        """
        A view of what is in order already; it takes no longer for many workers than for few.

        Whoever keeps the sites finds workers faster than the view does, as long as nothing changes.
        """
        view = object.__new__(cls)
        put = object.__setattr__
        put(view, "links", links)
        put(view, "epoch", epoch)
        put(view, "age_s", age_s)
        put(view, "home_datacenter", home_datacenter)
        put(view, "mode", mode)
        put(view, "prefix_trust", prefix_trust)
        put(view, "workers_omitted", 0)
        put(view, "plan", plan)
        put(view, "_sites", sites)
        if keeper is not None:
            put(view, "_kept", (keeper, keeper.version))
        if link_places is not None:
            put(view, "_link_places", link_places)
        return view

    @property
    def sites(self) -> tuple[Site, ...] | None:
        """The workers by datacenter and kind, once somebody has made them: ask `sites_of`."""
        return getattr(self, "_sites", None)

    def remember(self, sites: tuple[Site, ...]) -> None:
        """Keep what `sites_of` made of the workers."""
        object.__setattr__(self, "_sites", sites)

    def link(self, from_datacenter: str, to_datacenter: str) -> LinkView | None:
        """The link between two datacenters, if there is one."""
        at = self.link_places.get((from_datacenter, to_datacenter))
        return None if at is None else self.links[at]

    @property
    def link_places(self) -> Mapping[tuple[str, str], int]:
        """Where among the links each is, by its ends; for a view that is made of this one."""
        places: Mapping[tuple[str, str], int] | None = getattr(self, "_link_places", None)
        if places is None:
            places = {
                (link.from_datacenter, link.to_datacenter): at for at, link in enumerate(self.links)
            }
            object.__setattr__(self, "_link_places", places)
        return places

    @property
    def size(self) -> int:
        """How many workers there are."""
        sites = self.sites
        return len(self.workers) if sites is None else sum([one.size for one in sites])

    @property
    def is_kept_whole(self) -> bool:
        """A record keeps all its workers: it is no larger than `RECORDED_WORKERS_MAX`."""
        return self.size <= RECORDED_WORKERS_MAX

    @property
    def find(self) -> Callable[[str], WorkerView | None]:
        """What `worker` is, for whoever asks of many at once: to be used before anything changes."""
        kept: tuple[SiteKeeper, int] | None = getattr(self, "_kept", None)
        if kept is not None and kept[0].version == kept[1]:
            return kept[0].find
        return self.worker

    def worker(self, worker_id: str) -> WorkerView | None:
        """The worker of this id."""
        kept: tuple[SiteKeeper, int] | None = getattr(self, "_kept", None)
        if kept is not None and kept[0].version == kept[1]:
            return kept[0].get(worker_id)
        sites = self.sites
        if sites is None:
            return _find(self.workers, worker_id)
        by_name: dict[str, Site] | None = getattr(self, "_sites_by_name", None)
        if by_name is None:
            by_name = {site.datacenter: site for site in sites}
            object.__setattr__(self, "_sites_by_name", by_name)
        its_own = by_name.get(worker_id.partition("/")[0])
        found = its_own.workers.get(worker_id) if its_own is not None else None
        if found is not None:
            return found
        # Mostly there is none of this name; an id that does not tell its datacenter is looked for.
        for site in sites:
            found = site.workers.get(worker_id)
            if found is not None:
                return found
        return None


def _find(workers: Sequence[WorkerView], worker_id: str) -> WorkerView | None:
    at = bisect_left(workers, worker_id, key=_WORKER_ID)
    found = workers[at] if at < len(workers) else None
    return found if found is not None and found.worker_id == worker_id else None


_WORKER_ID: Final = attrgetter("worker_id")
_LINK_ID: Final = attrgetter("link_id")

#: A record keeps all workers of a view up to so many: 30 KB of JSON.
RECORDED_WORKERS_MAX: Final = 64


def recorded(view: ClusterView, named: Sequence[str]) -> ClusterView:
    """
    The part of a view that a decision record keeps.

    Up to `RECORDED_WORKERS_MAX` workers that is the whole, and a decision replays from it exactly.
    A larger one is cut to the workers that the decision names, its candidates: what a policy makes
    of a cluster may turn on every worker in it (round robin on their number, a tie on who is in
    it), so no cut replays in general, and `workers_omitted` says that this record does not.

    Args:
        view: What was decided on.
        named: Ids of the workers that the decision names.
    """
    if view.is_kept_whole:
        return view
    kept = [view.worker(worker_id) for worker_id in named]
    workers = tuple(worker for worker in kept if worker is not None)
    return replace(view, workers=workers, workers_omitted=view.size - len(workers))
