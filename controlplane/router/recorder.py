"""
Keeps finished decision records: the newest in memory, all of them in the store.

Writing happens behind the request: records wait in a bounded queue and go to the store in
batches, together with the release of their reservations. A store that is away costs records, not
requests; what is dropped is counted.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque

from controlplane.errors import StoreError
from controlplane.observe.logs import get_logger
from controlplane.observe.metrics import RouterMetrics
from controlplane.router.records import DecisionRecord, decode_record, encode_record
from controlplane.store.api import StateStore
from controlplane.wire import Reservation

_log = get_logger()

#: Items of one round trip; the store's call must stay far below its timeout.
_BATCH_MAX = 64

#: While the store is away, try again at this pace.
_RETRY_S = 0.5


class Recorder:
    """Decision records of one router."""

    def __init__(
        self,
        store: StateStore,
        metrics: RouterMetrics,
        *,
        recent_max: int,
        pending_max: int,
        gather_s: float = 0.0,
    ) -> None:
        """
        An empty one.

        Args:
            store: Where records go.
            metrics: Counts what fails and what is dropped.
            recent_max: Records in memory.
            pending_max: Records waiting for the store.
            gather_s: Seconds to wait for more before writing, >= 0. Reservations are released
                so much later, and a round trip serves so many more.
        """
        self._store = store
        self._metrics = metrics
        #: As JSON once they were written: a record is a hundred objects, and a collection of
        #: garbage that has to visit a thousand records stops all requests for 50 ms.
        self._recent: OrderedDict[str, DecisionRecord | bytes] = OrderedDict()
        self._recent_max = recent_max
        self._pending: deque[tuple[Reservation | None, DecisionRecord | None]] = deque()
        self._pending_max = pending_max
        self._gather_s = gather_s
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<Recorder {len(self._recent)} recent, {len(self._pending)} pending>"

    def add(self, record: DecisionRecord, reservation: Reservation | None) -> None:
        """Take a finished record; its reservation, if any, is released with it."""
        self._recent[record.decision_id] = record
        if len(self._recent) > self._recent_max:
            self._recent.popitem(last=False)
        self._push(reservation, record)

    def release(self, reservation: Reservation) -> None:
        """Release a reservation whose attempt was given up."""
        self._push(reservation, None)

    def recent(self) -> tuple[DecisionRecord, ...]:
        """Records in memory, newest first; decoding all takes 0.1 s."""
        return tuple(map(_decoded, reversed(self._recent.values())))

    def recent_ids(self) -> tuple[str, ...]:
        """Decision ids of the records in memory, newest first."""
        return tuple(reversed(self._recent))

    def find(self, decision_id: str) -> DecisionRecord | None:
        """A record that is still in memory."""
        kept = self._recent.get(decision_id)
        return None if kept is None else _decoded(kept)

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._wake.wait()
            if self._gather_s:
                await asyncio.sleep(self._gather_s)
            self._wake.clear()
            while self._pending:
                if not await self.flush():
                    await asyncio.sleep(_RETRY_S)

    async def flush(self) -> bool:
        """Write all that waits, batch by batch; false when the store did not take one."""
        # In turn, so that the last thing a router does waits for what is on its way already.
        async with self._turn:
            while self._pending:
                if not await self._write_batch():
                    return False
        return True

    async def _write_batch(self) -> bool:
        count = min(len(self._pending), _BATCH_MAX)
        batch = [self._pending.popleft() for _ in range(count)]
        finished = [
            (reservation, record.decision_id, self._encoded(record))
            for reservation, record in batch
            if record is not None
        ]
        given_up = [reservation for reservation, record in batch if record is None]
        is_written = False
        try:
            if finished:
                await self._store.finish(finished)
            for reservation in given_up:
                if reservation is not None:
                    await self._store.release(reservation)
            is_written = True
        except StoreError:
            self._metrics.store_errors_total.labels("finish").inc()
        finally:
            if not is_written:
                # Also when it was cancelled. Both calls are idempotent: the batch may go again.
                self._pending.extendleft(reversed(batch))
                self._bound()
        return is_written

    def _encoded(self, record: DecisionRecord) -> bytes:
        """A record as JSON, which takes its place in memory."""
        data = encode_record(record)
        if record.decision_id in self._recent:
            self._recent[record.decision_id] = data
        return data

    def _push(self, reservation: Reservation | None, record: DecisionRecord | None) -> None:
        self._pending.append((reservation, record))
        self._bound()
        self._wake.set()

    def _bound(self) -> None:
        """Drop the oldest; their reservations expire by themselves."""
        while len(self._pending) > self._pending_max:
            self._pending.popleft()
            self._metrics.records_dropped_total.inc()


def _decoded(kept: DecisionRecord | bytes) -> DecisionRecord:
    return decode_record(kept) if isinstance(kept, bytes) else kept
