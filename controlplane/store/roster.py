"""Workers that report, as plain data: what `heartbeat.lua` keeps in Redis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from controlplane.wire import Inventory, WorkerBeat

#: What a report says of its inventory when it was told already.
_NOTHING: Final = Inventory()


@dataclass(slots=True)
class Registration:
    """What is known of one worker."""

    #: Its last report, without inventory.
    beat: WorkerBeat
    expires_s: float
    #: Blocks and what is there, as `Inventory.stored`.
    stored: dict[str, str] = field(default_factory=dict)
    #: No delta was missed.
    is_complete: bool = False

    def in_full(self) -> WorkerBeat:
        """The last report with the whole inventory."""
        inventory = Inventory.model_validate({"is_full": True, "stored": self.stored})
        return self.beat.model_copy(update={"inventory": inventory})


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """What a beat did."""

    #: A delta was missed: everything must be sent again.
    wants_full_inventory: bool
    #: What to tell the routers: the beat with what was applied of it. None if it came too late.
    news: WorkerBeat | None = None
    #: Another incarnation took the worker's place.
    is_replaced: bool = False
    #: Only the newest part of the inventory is kept.
    is_cut: bool = False


def fitting(beat: WorkerBeat, *, blocks_max: int) -> tuple[WorkerBeat, bool]:
    """
    A beat whose inventory is not too large in itself.

    Returns:
        It with the last `blocks_max` of the blocks it stores, and whether there were more.
    """
    stored = beat.inventory.stored
    if len(stored) <= blocks_max:
        return beat, False
    newest = dict(list(stored.items())[-blocks_max:])
    inventory = beat.inventory.model_copy(update={"stored": newest})
    return beat.model_copy(update={"inventory": inventory}), True


class Roster:
    """Live workers."""

    def __init__(self, *, clock: Callable[[], float], blocks_max: int) -> None:
        """
        Nobody is there.

        Args:
            clock: Monotonic seconds.
            blocks_max: Of one worker's inventory.
        """
        self._clock = clock
        self._blocks_max = blocks_max
        self._workers: dict[str, Registration] = {}

    def __repr__(self) -> str:
        return f"<Roster {sorted(self._workers)}>"

    def find(self, worker_id: str) -> Registration | None:
        """A worker that is not over."""
        worker = self._workers.get(worker_id)
        if worker is not None and worker.expires_s <= self._clock():
            del self._workers[worker_id]
            return None
        return worker

    def is_live(self, worker_id: str, incarnation: str) -> bool:
        """Whether this very process is there."""
        worker = self.find(worker_id)
        return worker is not None and worker.beat.incarnation == incarnation

    def live(self) -> list[Registration]:
        """All that are not over, by name."""
        found = [self.find(worker_id) for worker_id in sorted(self._workers)]
        return [worker for worker in found if worker is not None]

    def remove(self, worker_id: str) -> None:
        """Forget a worker; twice does nothing."""
        self._workers.pop(worker_id, None)

    def report(self, beat: WorkerBeat, *, ttl_s: float) -> Reported:
        """
        Take a beat in, step by step as `heartbeat.lua` does.

        An inventory that grew too large begins anew with this delta, which is the newest part.

        Args:
            beat: The report.
            ttl_s: Seconds it stays without another one.
        """
        beat, is_cut = fitting(beat, blocks_max=self._blocks_max)
        known = self.find(beat.worker_id)
        is_same = known is not None and known.beat.incarnation == beat.incarnation
        if known is not None and is_same and beat.sequence <= known.beat.sequence:
            return Reported(wants_full_inventory=not known.is_complete)

        told = beat.inventory
        has_inventory = told.is_full or told.stored or told.removed
        bare = beat.model_copy(update={"inventory": _NOTHING}) if has_inventory else beat
        worker = Registration(bare, self._clock() + ttl_s)
        if known is not None and is_same:
            worker.stored = known.stored
            worker.is_complete = known.is_complete and beat.sequence == known.beat.sequence + 1
        if beat.inventory.is_full:
            worker.stored, worker.is_complete = {}, True
        if worker.is_complete:
            for block in beat.inventory.removed:
                worker.stored.pop(block, None)
            worker.stored.update(beat.inventory.stored)
            if len(worker.stored) > self._blocks_max:
                is_cut = True
                worker.stored = dict(beat.inventory.stored)
                newest = Inventory(is_full=True, stored=beat.inventory.stored)
                beat = beat.model_copy(update={"inventory": newest})
        self._workers[beat.worker_id] = worker
        return Reported(
            wants_full_inventory=not worker.is_complete,
            news=beat if worker.is_complete else bare,
            is_replaced=known is not None and not is_same,
            is_cut=is_cut,
        )
