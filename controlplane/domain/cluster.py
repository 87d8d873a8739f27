"""The cluster as a router sees it: immutable, stamped with epoch and age, shared by all requests."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Final, Literal, TypeAlias

from controlplane.domain.modes import Mode

Role: TypeAlias = Literal["prefill", "decode"]


def link_id(from_datacenter: str, to_datacenter: str) -> str:
    """Name of a directed link: `east>west`."""
    return f"{from_datacenter}>{to_datacenter}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerView:
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
    #: It failed a request a moment ago, or is silent, and gets no new work for a while.
    is_suspect: bool = False
    #: It failed too many requests and is out for longer.
    is_ejected: bool = False
    #: So few workers of its kind are available that suspicion and ejection do not keep it out.
    is_needed: bool = False
    #: Part of its usual work that it should take, 0 < share <= 1: less while it warms up.
    share: float = 1.0
    #: Requests waiting and running: its own count, and claims made since it counted.
    pending_requests: int = 0
    #: Prompt tokens it still has to compute: its own count, and claims made since.
    pending_tokens: int = 0
    #: Seconds of prefill per uncached token, and of any prefill at all.
    prefill_s_per_token: float = 0.0
    prefill_fixed_s: float = 0.0
    #: Seconds of one decode step.
    decode_step_s: float = 0.0
    #: Size of KV: attention per token, linear-attention state per sequence.
    kv_bytes_per_token: int = 0
    kv_state_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkView:
    """A directed pair of datacenters."""

    from_datacenter: str
    to_datacenter: str
    #: Budget that senders keep to, bits per second.
    capacity_bps: float
    #: Measured while bytes moved, bits per second; 0 until something was measured.
    goodput_bps: float = 0.0
    #: Round trip, seconds.
    rtt_s: float = 0.0
    #: Bytes that running requests still have to move, as predicted.
    reserved_bytes: int = 0
    #: Transfers over it failed one after the other; it is left alone for a while.
    is_down: bool = False
    #: Bytes have moved over it a moment ago, so that it is known to work.
    is_measured: bool = True

    @property
    def link_id(self) -> str:
        """`east>west`."""
        return link_id(self.from_datacenter, self.to_datacenter)

    @property
    def rate_bps(self) -> float:
        """
        Best guess of what a transfer gets when it is alone, bits per second.

        Measured goodput includes waiting for other transfers, so it is trusted only to lower
        the configured budget by half: below that it says how busy the link was, not how fast.
        """
        if self.goodput_bps <= 0:
            return self.capacity_bps
        return min(self.capacity_bps, max(self.goodput_bps, self.capacity_bps / 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterView:
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

    def __post_init__(self) -> None:
        # Ties are broken by position, so equal pictures must have equal order.
        object.__setattr__(self, "workers", tuple(sorted(self.workers, key=_WORKER_ID)))
        object.__setattr__(self, "links", tuple(sorted(self.links, key=_LINK_ID)))

    @classmethod
    def of_sorted(
        cls,
        workers: tuple[WorkerView, ...],
        links: tuple[LinkView, ...],
        *,
        epoch: int,
        age_s: float,
        home_datacenter: str,
        mode: Mode,
        prefix_trust: float,
    ) -> ClusterView:
        """A view of what is sorted already: sorting a thousand workers takes longer than the rest."""
        view = object.__new__(cls)
        put = object.__setattr__
        put(view, "workers", workers)
        put(view, "links", links)
        put(view, "epoch", epoch)
        put(view, "age_s", age_s)
        put(view, "home_datacenter", home_datacenter)
        put(view, "mode", mode)
        put(view, "prefix_trust", prefix_trust)
        put(view, "workers_omitted", 0)
        return view

    def link(self, from_datacenter: str, to_datacenter: str) -> LinkView | None:
        """The link between two datacenters, if there is one."""
        wanted = link_id(from_datacenter, to_datacenter)
        at = bisect_left(self.links, wanted, key=_LINK_ID)
        found = self.links[at] if at < len(self.links) else None
        return found if found is not None and found.link_id == wanted else None

    def worker(self, worker_id: str) -> WorkerView | None:
        """The worker of this id."""
        at = bisect_left(self.workers, worker_id, key=_WORKER_ID)
        found = self.workers[at] if at < len(self.workers) else None
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
    if len(view.workers) <= RECORDED_WORKERS_MAX:
        return view
    kept = [view.worker(worker_id) for worker_id in named]
    workers = tuple(worker for worker in kept if worker is not None)
    return replace(view, workers=workers, workers_omitted=len(view.workers) - len(workers))
