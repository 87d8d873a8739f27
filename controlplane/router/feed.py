"""Keeps the view fed: a snapshot, then events; again from the start when the store was away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from controlplane.errors import StoreError
from controlplane.observe.logs import get_logger
from controlplane.router.view import ViewTracker
from controlplane.store.api import Cursor, StateStore

_log = get_logger()

#: One wait for events; also how often silent workers are looked for.
_WAIT_S = 0.5

#: Everything is read anew so often, whatever the events said: trimmed streams heal by themselves.
_RESYNC_S = 30.0

#: Pause after a failed call, while requests go on from the last view.
_BACKOFF_S = 0.25


class ViewFeed:
    """The task that follows the store for one router."""

    def __init__(self, store: StateStore, tracker: ViewTracker, clock: Callable[[], float]) -> None:
        self._store = store
        self._tracker = tracker
        self._clock = clock
        #: The first snapshot has been taken.
        self.is_synced = asyncio.Event()

    async def run(self) -> None:
        """Follow until cancelled."""
        is_away = False
        while True:
            try:
                cursor = await self._sync()
                if is_away:
                    is_away = False
                    _log.info("store.restored")
                await self._follow(cursor)
            except StoreError as error:
                self._tracker.store_lost()
                if not is_away:
                    is_away = True
                    _log.error("store.degraded", cause=error.code)
                await asyncio.sleep(_BACKOFF_S)

    async def _sync(self) -> Cursor:
        snapshot = await self._store.snapshot()
        self._tracker.apply_snapshot(snapshot)
        self.is_synced.set()
        return snapshot.cursor

    async def _follow(self, cursor: Cursor) -> None:
        """Take events until it is time to read everything again."""
        resync_s = self._clock() + _RESYNC_S
        while self._clock() < resync_s:
            cursor, events = await self._store.events(cursor, wait_s=_WAIT_S)
            for worker_id in self._tracker.apply_events(events):
                _log.info("worker.registered", worker=worker_id)
            for worker_id in self._tracker.expire():
                _log.warning("worker.lost", worker=worker_id)
