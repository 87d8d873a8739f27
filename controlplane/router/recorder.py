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
from controlplane.router.records import DecisionRecord, encode_record
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
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._recent: OrderedDict[str, DecisionRecord] = OrderedDict()
        self._recent_max = recent_max
        self._pending: deque[tuple[Reservation | None, DecisionRecord | None]] = deque()
        self._pending_max = pending_max
        self._wake = asyncio.Event()

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
        """Records in memory, newest first."""
        return tuple(reversed(self._recent.values()))

    def find(self, decision_id: str) -> DecisionRecord | None:
        """A record that is still in memory."""
        return self._recent.get(decision_id)

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._pending:
                if not await self.flush():
                    await asyncio.sleep(_RETRY_S)

    async def flush(self) -> bool:
        """Write one batch; false when the store did not take it."""
        count = min(len(self._pending), _BATCH_MAX)
        batch = [self._pending.popleft() for _ in range(count)]
        finished = [
            (reservation, record.decision_id, encode_record(record))
            for reservation, record in batch
            if record is not None
        ]
        given_up = [reservation for reservation, record in batch if record is None]
        try:
            if finished:
                await self._store.finish(finished)
            for reservation in given_up:
                if reservation is not None:
                    await self._store.release(reservation)
        except StoreError:
            # Both calls are idempotent, so the whole batch may go again.
            self._metrics.store_errors_total.labels("finish").inc()
            self._pending.extendleft(reversed(batch))
            self._bound()
            return False
        return True

    def _push(self, reservation: Reservation | None, record: DecisionRecord | None) -> None:
        self._pending.append((reservation, record))
        self._bound()
        self._wake.set()

    def _bound(self) -> None:
        """Drop the oldest; their reservations expire by themselves."""
        while len(self._pending) > self._pending_max:
            self._pending.popleft()
            self._metrics.records_dropped_total.inc()
