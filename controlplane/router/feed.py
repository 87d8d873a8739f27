"""Keeps the view fed: a snapshot, then events; again from the start when the store was away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from controlplane.domain.health import WorkerState
from controlplane.errors import StoreError
from controlplane.observe.logs import get_logger
from controlplane.router.view import ViewTracker
from controlplane.store.api import Blamed, Cursor, Published, StateStore, StoreEvent

_log = get_logger()

#: One wait for events; also how often silent workers are looked for.
_WAIT_S = 0.5

#: Everything is read anew so often, whatever the events said. Rarely, because what was missed is
#: noticed by itself, and reading the inventories of a thousand workers takes a second.
RESYNC_S: Final = 300.0

#: What was missed is not asked for more often than this.
_RESYNC_S_MIN: Final = 5.0

#: A busy stream is read so often at most, several events at a time: a call costs more than what
#: it brings. A quiet one is read at once, so many times in a row.
_READS_PER_S: Final = 10.0

#: Workers of a snapshot that are taken in one turn of the loop: 5 ms with 1,000 blocks each.
_BEATS_AT_ONCE: Final = 2

#: Pause after a failed call, while requests go on from the last view.
_BACKOFF_S = 0.25


class ViewFeed:
    """The task that follows the store for one router."""

    def __init__(
        self,
        store: StateStore,
        tracker: ViewTracker,
        clock: Callable[[], float],
        *,
        on_blamed: Callable[[Blamed], None] | None = None,
        on_published: Callable[[Published], None] | None = None,
        on_synced: Callable[[], None] | None = None,
    ) -> None:
        """
        Follow nothing yet.

        Args:
            store: What to follow.
            tracker: Takes what workers say.
            clock: Monotonic seconds.
            on_blamed: Told of each request that a worker died of, wherever it ran.
            on_published: Told of each new version of a document.
            on_synced: Told when everything has been read anew: events may have been missed.
        """
        self._store = store
        self._tracker = tracker
        self._clock = clock
        self._on_blamed = on_blamed
        self._on_published = on_published
        self._on_synced = on_synced
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
        beats = snapshot.beats
        # Inventories are large: a thousand of them at once would hold up all requests for a second.
        for start in range(0, max(1, len(beats)), _BEATS_AT_ONCE):
            part = beats[start : start + _BEATS_AT_ONCE]
            self._tracker.apply_snapshot(replace(snapshot, beats=part))
            await asyncio.sleep(0)
        self.is_synced.set()
        if self._on_synced is not None:
            self._on_synced()
        return snapshot.cursor

    async def _follow(self, cursor: Cursor) -> None:
        """Take events until it is time to read everything again."""
        read_s = told_s = self._clock()
        reads_left = _READS_PER_S
        while self._clock() < read_s + RESYNC_S:
            if self._clock() > read_s + _RESYNC_S_MIN and self._tracker.needs_snapshot():
                return
            cursor, events = await self._store.events(cursor, wait_s=_WAIT_S)
            now_s = self._clock()
            refilled = (now_s - told_s) * _READS_PER_S
            reads_left, told_s = min(_READS_PER_S, reads_left + refilled) - 1, now_s
            for worker_id in self._tracker.apply_events(events):
                _log.info("worker.registered", worker=worker_id)
            self._pass_on(events)
            for worker_id in self._tracker.expire():
                _log.warning("worker.lost", worker=worker_id)
            # Silence and age change states without any news; this way they are noticed, and logged,
            # also when nobody asks for the picture.
            self._tracker.view()
            if reads_left < 1:
                await asyncio.sleep(1 / _READS_PER_S)

    def _pass_on(self, events: Sequence[StoreEvent]) -> None:
        """Tell others what concerns them and not the view."""
        for event in events:
            if isinstance(event, Blamed) and self._on_blamed is not None:
                self._on_blamed(event)
            elif isinstance(event, Published) and self._on_published is not None:
                self._on_published(event)


def log_state(worker_id: str, incarnation: str, before: WorkerState, after: WorkerState) -> None:
    """Log that a worker has got into trouble, or out of it."""
    if after == "suspect":
        _log.warning("worker.suspected", worker=worker_id, incarnation=incarnation)
    elif after == "ejected":
        _log.warning("worker.ejected", worker=worker_id, incarnation=incarnation)
    elif before in {"suspect", "ejected"} and after != "draining":
        _log.info("worker.recovered", worker=worker_id, incarnation=incarnation, cause=before)
