"""Publishes KV locations in the store, behind the requests that make them."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from controlplane.errors import StoreError
from controlplane.store.api import StateStore
from controlplane.wire import KvLocation
from workers.metrics import WorkerMetrics

#: Changes that wait for the store; the oldest are dropped beyond that, their leases end anyway.
_PENDING_MAX = 4096
_RETRY_S = 0.5


class LocationPublisher:
    """
    Puts and drops locations in the background, the newest word on each segment only.

    The router hands locations to decode workers itself; what stands in the store is for people
    and for routers that did not start the prefill.
    """

    def __init__(self, store: StateStore, metrics: WorkerMetrics) -> None:
        self._store = store
        self._metrics = metrics
        #: Segment id to its location, or None when it is gone.
        self._pending: OrderedDict[str, KvLocation | None] = OrderedDict()
        self._wake = asyncio.Event()

    def put(self, location: KvLocation) -> None:
        """A segment can be read, or its lease was renewed."""
        self._push(location.segment_id, location)

    def drop(self, segment_id: str) -> None:
        """A segment can no longer be read."""
        self._push(segment_id, None)

    async def run(self) -> None:
        """Publish until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._pending:
                segment_id, location = self._pending.popitem(last=False)
                try:
                    if location is None:
                        await self._store.drop_segment(segment_id)
                    else:
                        await self._store.put_segment(location)
                except StoreError:
                    self._metrics.store_errors_total.labels("segment").inc()
                    # A newer word may have come meanwhile; it wins.
                    self._pending.setdefault(segment_id, location)
                    self._pending.move_to_end(segment_id, last=False)
                    await asyncio.sleep(_RETRY_S)

    def _push(self, segment_id: str, location: KvLocation | None) -> None:
        self._pending.pop(segment_id, None)
        self._pending[segment_id] = location
        if len(self._pending) > _PENDING_MAX:
            self._pending.popitem(last=False)
        self._wake.set()
