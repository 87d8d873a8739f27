"""The recorder of a replay: figures instead of records, and reservations given back at once."""

from __future__ import annotations

from collections.abc import Callable

from controlplane.observe.metrics import RouterMetrics
from controlplane.replay.results import Tally
from controlplane.router.recorder import Recorder
from controlplane.router.records import DecisionRecord
from controlplane.store.api import StateStore
from controlplane.wire import Reservation


class TallyRecorder(Recorder):
    """Takes the place of the one that writes decision records to the store."""

    def __init__(
        self, store: StateStore, metrics: RouterMetrics, tally: Tally, clock: Callable[[], float]
    ) -> None:
        super().__init__(store, metrics, recent_max=1, pending_max=1 << 20)
        self._tally = tally
        self._clock = clock

    def add(self, record: DecisionRecord, reservation: Reservation | None) -> None:
        """Count a finished request; its reservation is released by `run`."""
        self._tally.finished(record, self._clock())
        if reservation is not None:
            self.release(reservation)
