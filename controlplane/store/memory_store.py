"""`StateStore` in one process: the twin of Redis for tests, and for a fleet in one process."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from functools import cache
from itertools import islice

from controlplane.config import StoreConfig
from controlplane.errors import StoreUnavailable
from controlplane.store.api import (
    Blamed,
    BudgetGrant,
    Cursor,
    Document,
    KeyClaim,
    Published,
    StoredDecision,
    StoreEvent,
    StoreSnapshot,
    Topic,
    WorkerLeft,
    WorkerLoad,
    WorkerSeen,
)
from controlplane.store.budget import TokenBucket, check_budget
from controlplane.store.claims import KeyClaims
from controlplane.store.codec import FIRST, check_cursor, check_document
from controlplane.store.ledger import Ledger
from controlplane.store.roster import Roster
from controlplane.wire import (
    BeatReply,
    KvLocation,
    RefusedBy,
    Reservation,
    ReserveReply,
    WorkerBeat,
)

#: Events of one answer, as in Redis.
_EVENTS_BATCH = 512


class MemoryStore:
    """
    The contract without a network: same answers, same bounds, same expiry, by an injected clock.

    Nothing here awaits but `events`, so every method is atomic as the scripts are.
    """

    def __init__(self, *, config: StoreConfig, clock: Callable[[], float] = time.monotonic) -> None:
        """
        An empty store.

        Args:
            config: Its bounds are used, its deadlines are not needed.
            clock: Monotonic seconds; expiry and budgets follow it.
        """
        self._config = config
        self._clock = clock
        self._ledger = Ledger(clock=clock, links_max=config.links_max)
        self._roster = Roster(clock=clock, blocks_max=config.inventory_blocks_max)
        self._buckets: dict[str, TokenBucket] = {}
        self._events: deque[tuple[int, StoreEvent]] = deque(maxlen=config.events_max)
        self._event_number = 0
        self._segments: dict[str, tuple[float, KvLocation]] = {}
        self._decisions: OrderedDict[str, StoredDecision] = OrderedDict()
        self._decision_number = 0
        self._claims = KeyClaims(clock=clock)
        self._documents: dict[Topic, Document] = {}
        #: Who leads, and until when.
        self._leaders: dict[Topic, tuple[str, float]] = {}
        #: What routers have told, and until when it holds.
        self._traffic: dict[str, tuple[float, bytes]] = {}
        #: Who waits for the next event.
        self._waiting: dict[asyncio.Future[bool], None] = {}
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<MemoryStore {self._roster!r} {self._ledger!r}, {len(self._decisions)} decisions>"

    @property
    def decode_errors_total(self) -> int:
        """Always 0: nobody else writes here."""
        return 0

    async def ping(self) -> float:
        """No time at all."""
        self._check_open()
        return 0.0

    # --- Workers ------------------------------------------------------------------------------

    async def heartbeat(self, beat: WorkerBeat, *, ttl_s: float) -> BeatReply:
        """
        Register or refresh a worker; see `Roster.report`.

        Raises:
            StoreUnavailable: Also if the fleet has `StoreConfig.workers_max` other workers.
        """
        self._check_open()
        is_new = self._roster.find(beat.worker_id) is None
        if is_new and len(self._roster.live()) >= self._config.workers_max:
            raise StoreUnavailable(
                f"heartbeat: the fleet has {self._config.workers_max} workers, which is all it may"
            )
        reported = self._roster.report(beat, ttl_s=ttl_s)
        if reported.is_replaced:
            self._ledger.forget_worker(beat.worker_id)
        if reported.news is not None:
            self._tell(WorkerSeen(reported.news))
        return _reply_to(reported.wants_full_inventory, reported.is_cut)

    async def deregister(self, worker_id: str, incarnation: str) -> None:
        """Remove a worker unless another incarnation took its place."""
        self._check_open()
        known = self._roster.find(worker_id)
        if known is not None and known.beat.incarnation != incarnation:
            return
        self._roster.remove(worker_id)
        self._ledger.forget_worker(worker_id)
        self._tell(WorkerLeft(worker_id, incarnation))

    def _tell(self, event: StoreEvent) -> None:
        self._event_number += 1
        self._events.append((self._event_number, event))
        self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(True)

    async def _has_news(self, within_s: float) -> bool:
        """Wait for the next event; false when there was none in time."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        self._waiting[waiter] = None
        # A timer and a future: `asyncio.timeout` and an event take three times as long, and a
        # router waits here all the time.
        timer = loop.call_later(within_s, self._give_up, waiter)
        try:
            return await waiter
        finally:
            timer.cancel()
            self._waiting.pop(waiter, None)

    def _give_up(self, waiter: asyncio.Future[bool]) -> None:
        if not waiter.done():
            waiter.set_result(False)

    # --- What routers see ---------------------------------------------------------------------

    async def snapshot(self) -> StoreSnapshot:
        """The whole picture."""
        self._check_open()
        beats = [worker.in_full() for worker in self._roster.live()]
        amounts = {beat.worker_id: self._ledger.at_worker(beat.worker_id) for beat in beats}
        return StoreSnapshot(
            beats=tuple(beats),
            loads={
                name: WorkerLoad(reserved_requests=len(each), reserved_tokens=sum(each))
                for name, each in amounts.items()
            },
            link_reserved_bytes=self._ledger.by_link(),
            cursor=_cursor(self._event_number) if self._event_number else FIRST,
        )

    async def events(self, cursor: Cursor, *, wait_s: float) -> tuple[Cursor, Sequence[StoreEvent]]:
        """
        Events after the cursor, in order, waiting for the first one.

        Nothing is left out as long as the reader is at most `StoreConfig.events_max` behind.

        Raises:
            MalformedRequest: Not a cursor.
        """
        self._check_open()
        check_cursor(cursor)
        after = _number(cursor)
        if self._event_number <= after and wait_s > 0:
            if not await self._has_news(wait_s):
                return cursor, ()
            self._check_open()
        # Numbers follow each other, so the first that is new is found without looking at the rest.
        begin = max(0, len(self._events) - max(0, self._event_number - after))
        news = list(islice(self._events, begin, begin + _EVENTS_BATCH))
        return (_cursor(news[-1][0]) if news else cursor), [event for _, event in news]

    # --- Reservations -------------------------------------------------------------------------

    async def reserve(self, reservation: Reservation) -> ReserveReply:
        """Claim capacity, all or nothing; the steps are those of `reserve.lua`."""
        self._check_open()
        is_at_prefill, is_at_decode, *_ = self._ledger.release(reservation)
        refused_by = self._refusal(
            reservation, is_at_prefill=is_at_prefill, is_at_decode=is_at_decode
        )
        if refused_by is None:
            self._ledger.claim(reservation)
        prefill_tokens = self._ledger.at_worker(reservation.prefill_worker)
        link = reservation.link
        return ReserveReply(
            refused_by=refused_by,
            prefill_reserved_tokens=sum(prefill_tokens),
            prefill_reserved_requests=len(prefill_tokens),
            decode_reserved_requests=len(self._ledger.at_worker(reservation.decode_worker)),
            link_reserved_bytes=sum(self._ledger.at_link(link)) if link is not None else 0,
        )

    def _refusal(
        self, wanted: Reservation, *, is_at_prefill: bool, is_at_decode: bool
    ) -> RefusedBy | None:
        if not self._roster.is_live(wanted.prefill_worker, wanted.prefill_incarnation):
            return "prefill_gone"
        if not self._roster.is_live(wanted.decode_worker, wanted.decode_incarnation):
            return "decode_gone"
        at_prefill = len(self._ledger.at_worker(wanted.prefill_worker))
        if not is_at_prefill and at_prefill >= wanted.prefill_requests_max:
            return "prefill_full"
        at_decode = len(self._ledger.at_worker(wanted.decode_worker))
        if not is_at_decode and at_decode >= wanted.decode_requests_max:
            return "decode_full"
        return None

    async def finish(self, finished: Sequence[tuple[Reservation | None, str, bytes]]) -> None:
        """Release reservations and append records; a second time appends nothing."""
        self._check_open()
        for reservation, decision_id, record in finished:
            if reservation is not None:
                await self.release(reservation)
            if decision_id in self._decisions:
                continue
            self._decision_number += 1
            cursor = _cursor(self._decision_number)
            self._decisions[decision_id] = StoredDecision(cursor=cursor, record=record)
            while len(self._decisions) > self._config.decisions_max:
                self._decisions.popitem(last=False)

    async def release(self, reservation: Reservation) -> None:
        """Release one reservation; twice, or one never granted, does nothing."""
        self._check_open()
        self._ledger.release(reservation)

    async def take_link_budget(
        self, link: str, *, want_bytes: int, rate_bytes_per_s: float, burst_bytes: int
    ) -> BudgetGrant:
        """
        Take from a link's bucket.

        Raises:
            ValueError: See `check_budget`.
        """
        self._check_open()
        check_budget(
            want_bytes=want_bytes, rate_bytes_per_s=rate_bytes_per_s, burst_bytes=burst_bytes
        )
        now_s = self._clock()
        bucket = self._buckets.setdefault(link, TokenBucket(burst_bytes, now_s))
        return bucket.take(
            want_bytes=want_bytes,
            rate_bytes_per_s=rate_bytes_per_s,
            burst_bytes=burst_bytes,
            now_s=now_s,
        )

    # --- KV locations and decision records ----------------------------------------------------

    async def put_segment(self, location: KvLocation) -> None:
        """Publish or renew a KV location for its lease."""
        self._check_open()
        self._segments[location.segment_id] = (self._clock() + location.lease_s, location)
        if len(self._segments) > self._config.segments_max:
            del self._segments[min(self._segments, key=lambda name: self._segments[name][0])]

    async def drop_segment(self, segment_id: str) -> None:
        """Withdraw a KV location; twice does nothing."""
        self._check_open()
        self._segments.pop(segment_id, None)

    async def segments(self, *, count: int) -> Sequence[KvLocation]:
        """Up to `count` live KV locations, those with the longest lease left first."""
        self._check_open()
        now_s = self._clock()
        self._segments = {name: item for name, item in self._segments.items() if item[0] > now_s}
        newest = sorted(self._segments.values(), key=lambda item: item[0], reverse=True)
        return [location for _, location in newest[: max(0, count)]]

    async def decisions(
        self, *, count: int, before: Cursor | None = None
    ) -> Sequence[StoredDecision]:
        """
        The newest decision records, newest first; older than `before` if given.

        Raises:
            MalformedRequest: `before` is not a cursor.
        """
        self._check_open()
        if before is not None:
            check_cursor(before)
        older = (
            record
            for record in reversed(self._decisions.values())
            if before is None or _number(record.cursor) < _number(before)
        )
        return list(islice(older, max(0, count)))

    async def decision(self, decision_id: str) -> StoredDecision | None:
        """One decision record, while it is among the newest `StoreConfig.decisions_max`."""
        self._check_open()
        return self._decisions.get(decision_id)

    # --- Idempotency keys, blames and documents -----------------------------------------------

    async def claim_key(
        self, key: str, *, owner: str, digest: str, ttl_s: float, is_renewal: bool = False
    ) -> KeyClaim:
        """Claim an idempotency key; see `KeyClaims.claim`."""
        self._check_open()
        return self._claims.claim(
            key, owner=owner, digest=digest, ttl_s=ttl_s, is_renewal=is_renewal
        )

    async def release_key(self, key: str, *, owner: str, keep_s: float) -> None:
        """End the claim of an idempotency key."""
        self._check_open()
        self._claims.release(key, owner=owner, keep_s=keep_s)

    async def blame(self, blamed: Blamed) -> None:
        """Tell the routers that a worker died while it ran a request."""
        self._check_open()
        self._tell(blamed)

    async def publish(
        self, topic: Topic, body: bytes, *, expected_version: int | None = None
    ) -> Document | None:
        """
        Replace a document and tell the routers; the steps are those of `publish.lua`.

        Raises:
            RequestTooLarge: Over `StoreConfig.document_bytes_max`.
            MalformedRequest: Not JSON.
        """
        self._check_open()
        check_document(body, bytes_max=self._config.document_bytes_max)
        known = self._documents.get(topic)
        version = known.version if known is not None else 0
        is_there = known is not None and known.body == body
        if is_there and expected_version in {None, version, version - 1}:
            return known
        if expected_version not in {None, version}:
            return None
        document = Document(version=version + 1, body=body)
        self._documents[topic] = document
        self._tell(Published(topic, document.version))
        return document

    async def document(self, topic: Topic) -> Document | None:
        """The newest version of a document."""
        self._check_open()
        return self._documents.get(topic)

    # --- The planner --------------------------------------------------------------------------

    async def lead(self, topic: Topic, owner: str, *, ttl_s: float) -> bool:
        """Take or keep the lead of a topic; the steps are those of `lead.lua`."""
        self._check_open()
        now_s = self._clock()
        leader, until_s = self._leaders.get(topic, (owner, now_s))
        if leader != owner and until_s > now_s:
            return False
        self._leaders[topic] = (owner, now_s + ttl_s)
        return True

    async def resign(self, topic: Topic, owner: str) -> None:
        """Give the lead of a topic up."""
        self._check_open()
        if self._leaders.get(topic, ("", 0.0))[0] == owner:
            del self._leaders[topic]

    async def put_traffic(self, router: str, body: bytes, *, ttl_s: float) -> None:
        """
        Tell what a router has served lately.

        Raises:
            RequestTooLarge: Over `StoreConfig.traffic_bytes_max`.
            MalformedRequest: Not JSON.
        """
        self._check_open()
        check_document(body, bytes_max=self._config.traffic_bytes_max)
        self._traffic[router] = (self._clock() + ttl_s, body)
        if len(self._traffic) > self._config.routers_max:
            del self._traffic[min(self._traffic, key=lambda name: self._traffic[name][0])]

    async def traffic(self) -> Sequence[bytes]:
        """What routers have told, those that end last first."""
        self._check_open()
        now_s = self._clock()
        self._traffic = {name: item for name, item in self._traffic.items() if item[0] > now_s}
        newest = sorted(self._traffic.values(), key=lambda item: item[0], reverse=True)
        return [body for _, body in newest]

    async def close(self) -> None:
        """Later calls raise `StoreUnavailable`, and so do those that wait."""
        self._is_closed = True
        self._wake()

    def _check_open(self) -> None:
        if self._is_closed:
            raise StoreUnavailable("this store was closed")


@cache
def _reply_to(wants_full_inventory: bool, is_inventory_cut: bool) -> BeatReply:  # noqa: FBT001 - keys of a cache
    """One of four answers, each of which is checked once."""
    return BeatReply(wants_full_inventory=wants_full_inventory, is_inventory_cut=is_inventory_cut)


def _cursor(number: int) -> Cursor:
    return f"{number}-0"


def _number(cursor: Cursor) -> int:
    return int(cursor.partition("-")[0])
