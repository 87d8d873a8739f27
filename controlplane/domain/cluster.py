"""The cluster as a router sees it: immutable, stamped with epoch and age, shared by all requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

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
    #: It failed a request a moment ago and gets no new work for a while.
    is_suspect: bool = False
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

    def __post_init__(self) -> None:
        # Ties are broken by position, so equal pictures must have equal order.
        workers = tuple(sorted(self.workers, key=lambda worker: worker.worker_id))
        links = tuple(sorted(self.links, key=lambda link: link.link_id))
        object.__setattr__(self, "workers", workers)
        object.__setattr__(self, "links", links)

    def link(self, from_datacenter: str, to_datacenter: str) -> LinkView | None:
        """The link between two datacenters, if there is one."""
        for link in self.links:
            if link.from_datacenter == from_datacenter and link.to_datacenter == to_datacenter:
                return link
        return None

    def worker(self, worker_id: str) -> WorkerView | None:
        """The worker of this id."""
        for worker in self.workers:
            if worker.worker_id == worker_id:
                return worker
        return None
