"""What a replayed fleet consists of: plain figures of workers, links and their changes in time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from controlplane.domain.cluster import Role, link_id
from controlplane.domain.throughput.profile import DecodeProfile, KvSize, PrefillProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What an instance of one kind can do, in either role."""

    #: None for a kind that never prefills.
    prefill: PrefillProfile | None
    #: None for a kind that never decodes.
    decode: DecodeProfile | None
    kv: KvSize
    #: Blocks of a prefix cache.
    cache_blocks: int = 0
    #: A linear-attention state is kept at the end of a prompt and at every so many blocks; 0 for a
    #: model that has no such state, which can go on from any block.
    snapshot_blocks: int = 8
    #: Roles that a planner may give it; empty when it always keeps the one it has.
    roles: tuple[Role, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """One instance."""

    #: `datacenter/name`.
    worker_id: str
    datacenter: str
    role: Role
    hardware: Hardware


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSpec:
    """A directed link."""

    from_datacenter: str
    to_datacenter: str
    capacity_bps: float
    rtt_s: float = 0.0
    #: Currency of the fleet per gigabyte that crosses it.
    egress_price_per_gb: float = 0.0

    @property
    def link_id(self) -> str:
        """`east>west`."""
        return link_id(self.from_datacenter, self.to_datacenter)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkStep:
    """From then on a link has another capacity; 0 is an outage."""

    at_s: float
    link: str
    capacity_bps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Workers that die, without a word, and may come back as new processes."""

    at_s: float
    workers: tuple[str, ...]
    #: Seconds until they are back; None for never.
    back_after_s: float | None = None


Change: TypeAlias = LinkStep | Loss


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldSpec:
    """A fleet as it is at the beginning, and what changes by itself."""

    workers: tuple[WorkerSpec, ...]
    links: tuple[LinkSpec, ...]
    #: The datacenter of the router, near the users.
    home: str
    #: Of the longest request, prompt and output.
    context_tokens_max: int = 1 << 20
    block_tokens: int = 512
    #: Requests that a worker takes beyond those it runs.
    queue_requests: int = 64
    changes: tuple[Change, ...] = ()


#: How requests come: when the trace says, or each when another one has ended.
ArrivalKind: TypeAlias = Literal["open", "closed"]
