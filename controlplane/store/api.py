"""
The only door to shared state: soft state, enough to choose well, never what correctness rests on.

Two implementations, `RedisStore` and `MemoryStore`, pass one contract suite (tests/contract).
Every call is bounded in time and raises `StoreTimeout` or `StoreUnavailable`; every write is
idempotent, because a call that timed out may have been done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol, TypeAlias

from controlplane.wire import BeatReply, KvLocation, Reservation, ReserveReply, WorkerBeat

#: Position in the event stream; opaque.
Cursor: TypeAlias = str

#: Documents that all replicas follow: what the planner publishes, and the live policy.
Topic: TypeAlias = Literal["plan", "policy"]
TOPICS: Final[tuple[Topic, ...]] = ("plan", "policy")

#: Answer to a claim of an idempotency key: it is ours now; a request with it still runs; it was
#: used for another request.
KeyClaim: TypeAlias = Literal["granted", "in_use", "mismatch"]


@dataclass(frozen=True, slots=True)
class WorkerSeen:
    """A worker reported; its inventory in the beat is a delta."""

    beat: WorkerBeat


@dataclass(frozen=True, slots=True)
class WorkerLeft:
    """A worker said goodbye."""

    worker_id: str
    incarnation: str


@dataclass(frozen=True, slots=True)
class Blamed:
    """A worker died while it ran this request; `fingerprint` names the request's content."""

    fingerprint: str
    worker_id: str
    incarnation: str


@dataclass(frozen=True, slots=True)
class Published:
    """A document of the operator or the planner has a new version."""

    topic: Topic
    version: int


StoreEvent: TypeAlias = WorkerSeen | WorkerLeft | Blamed | Published


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLoad:
    """What is reserved at one worker by all routers."""

    reserved_requests: int = 0
    reserved_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSnapshot:
    """Everything a router needs to build its view from nothing."""

    #: Live workers; each beat's inventory is full.
    beats: tuple[WorkerBeat, ...]
    #: Reservations by worker id.
    loads: Mapping[str, WorkerLoad]
    #: Reserved bytes by link id ("east>west").
    link_reserved_bytes: Mapping[str, int]
    #: Events after this cursor are not in the snapshot (some before it may come again: applying
    #: an event twice changes nothing).
    cursor: Cursor


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDecision:
    """One finished decision record."""

    #: Position in the list, for paging; opaque.
    cursor: Cursor
    #: The record's JSON, as the router wrote it.
    record: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A published document."""

    #: 1, 2, 3 ... while the store lives; a store that was lost begins again.
    version: int
    #: JSON of its publisher.
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetGrant:
    """Answer of a link's shared token bucket."""

    #: Bytes that may be sent now; 0 when the bucket is empty.
    granted_bytes: int
    #: Seconds until asking again is worth while; 0 when something was granted.
    retry_after_s: float


class StateStore(Protocol):
    """Soft state shared by routers and workers of one fleet."""

    @property
    def decode_errors_total(self) -> int:
        """Values found in the store that were garbage: skipped, or their key repaired."""

    async def ping(self) -> float:
        """Seconds of one round trip."""

    async def heartbeat(self, beat: WorkerBeat, *, ttl_s: float) -> BeatReply:
        """
        Register or refresh a worker, apply its inventory delta, tell the routers.

        A beat of another incarnation replaces the worker. A delta whose `sequence` does not
        follow the last one is not applied; the reply then asks for a full inventory.
        """

    async def deregister(self, worker_id: str, incarnation: str) -> None:
        """Remove a worker unless a newer incarnation took its place."""

    async def snapshot(self) -> StoreSnapshot:
        """The whole picture."""

    async def events(self, cursor: Cursor, *, wait_s: float) -> tuple[Cursor, Sequence[StoreEvent]]:
        """Events after the cursor, waiting up to `wait_s` for the first one."""

    async def reserve(self, reservation: Reservation) -> ReserveReply:
        """Claim capacity at both workers and the link, all or nothing."""

    async def finish(self, finished: Sequence[tuple[Reservation | None, str, bytes]]) -> None:
        """
        Release reservations and append decision records, in one round trip.

        Args:
            finished: Reservation (None if there was none), decision id, record as JSON. Releasing
                twice, or what was never granted, does nothing.
        """

    async def release(self, reservation: Reservation) -> None:
        """Release one reservation without a record: a decision that was given up."""

    async def take_link_budget(
        self, link: str, *, want_bytes: int, rate_bytes_per_s: float, burst_bytes: int
    ) -> BudgetGrant:
        """
        Take from the token bucket all senders of a link share.

        Grants between 0 and `want_bytes`; the sum of all grants in any window of `w` seconds is
        at most `rate * w + burst`.
        """

    async def put_segment(self, location: KvLocation) -> None:
        """Publish or renew a KV location for its lease."""

    async def drop_segment(self, segment_id: str) -> None:
        """Withdraw a KV location."""

    async def segments(self, *, count: int) -> Sequence[KvLocation]:
        """Up to `count` live KV locations."""

    async def decisions(
        self, *, count: int, before: Cursor | None = None
    ) -> Sequence[StoredDecision]:
        """The newest decision records, newest first; older than `before` if given."""

    async def decision(self, decision_id: str) -> StoredDecision | None:
        """One decision record, while it is among the kept ones."""

    async def claim_key(
        self, key: str, *, owner: str, digest: str, ttl_s: float, is_renewal: bool = False
    ) -> KeyClaim:
        """
        Claim an idempotency key for a request that begins.

        Args:
            key: Already hashed with its tenant; never the client's own text.
            owner: The router; the same owner may claim it again.
            digest: Of the request: a key stands for one request.
            ttl_s: The claim ends by itself after this, so a router that dies holds nothing back.
            is_renewal: Only prolong a claim of this owner; never take a key anew. What is not held
                any more (lost with the store, or released) answers "in_use".
        """

    async def release_key(self, key: str, *, owner: str, keep_s: float) -> None:
        """
        The request is over: a retry may run, another request may not use the key for `keep_s`.

        Releasing twice, or what another owner holds, does nothing.
        """

    async def blame(self, blamed: Blamed) -> None:
        """Tell all routers that a worker died while it ran a request."""

    async def publish(
        self, topic: Topic, body: bytes, *, expected_version: int | None = None
    ) -> Document | None:
        """
        Replace a document and tell all routers.

        Args:
            topic: Which.
            body: Its JSON.
            expected_version: The version it replaces (0 for none); None replaces whatever is there.

        Returns:
            The document that stands there now, or None when another version does. Publishing what
            stands there already is no new version, so a call that timed out can be repeated.

        Raises:
            RequestTooLarge: Over `StoreConfig.document_bytes_max`.
            MalformedRequest: Not JSON.
        """

    async def document(self, topic: Topic) -> Document | None:
        """The newest version of a document."""

    async def lead(self, topic: Topic, owner: str, *, ttl_s: float) -> bool:
        """
        Take the lead of a topic, or keep it.

        The lead says who should work, not who may write: a store that fails over may give it to two.
        So whoever leads publishes with `expected_version`.

        Args:
            topic: What is published.
            owner: The router; the same owner may lead again, which prolongs.
            ttl_s: The lead ends by itself after this.

        Returns:
            Whether the owner leads now.
        """

    async def resign(self, topic: Topic, owner: str) -> None:
        """Give the lead up; twice, or when another one leads, does nothing."""

    async def put_traffic(self, router: str, body: bytes, *, ttl_s: float) -> None:
        """
        Tell the planner what a router has served lately, in place of what it told before.

        Raises:
            RequestTooLarge: Over `StoreConfig.traffic_bytes_max`.
            MalformedRequest: Not JSON.
        """

    async def traffic(self) -> Sequence[bytes]:
        """What routers have told, those that end last first; `StoreConfig.routers_max` at most."""

    async def close(self) -> None:
        """Close connections."""
