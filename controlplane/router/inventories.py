"""Which prefixes are cached where, from changes that may come twice, late, or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from controlplane.domain.prefix import BlockHash
from controlplane.domain.prefix_hits import Hits
from controlplane.domain.prefix_index import PrefixIndex
from controlplane.router.known import KnownWorker
from controlplane.wire import WorkerBeat

#: A change that was missed may still come in full by itself within this.
_GAP_S: Final = 2.0


class Inventories:
    """The prefix index of one router, and the workers of which it has missed something."""

    def __init__(self) -> None:
        self._index = PrefixIndex()
        #: Workers of whose inventory a change was missed, and since when.
        self._gaps: dict[str, float] = {}

    def __repr__(self) -> str:
        return repr(self._index)

    def take(self, known: KnownWorker, beat: WorkerBeat, now_s: float) -> None:
        """
        Take a change of an inventory in its turn, whatever else has been heard of its worker.

        An answer to a probe may have come before the heartbeat of the same number, or of an earlier
        one; and a number that is left out means a change that was missed.
        """
        newest = known.inventory_sequence
        inventory = beat.inventory
        if beat.sequence < newest or (beat.sequence == newest and not inventory.is_full):
            return
        known.inventory_sequence = beat.sequence
        if inventory.is_full:
            self._gaps.pop(beat.worker_id, None)
        elif beat.sequence > newest + 1:
            self._gaps.setdefault(beat.worker_id, now_s)
        if inventory.is_full or inventory.stored or inventory.removed:
            self._index.apply(beat.worker_id, inventory.to_delta())

    def forget(self, worker_id: str) -> None:
        """A process has ended, and its cache with it."""
        self._gaps.pop(worker_id, None)
        self._index.forget(worker_id)

    def read_anew(self) -> None:
        """A snapshot has all the store knows; what is missing in it, only the worker can tell."""
        self._gaps.clear()

    def has_missed(self, now_s: float) -> bool:
        """A change of some inventory was missed and has not come again by itself."""
        return any(since_s <= now_s - _GAP_S for since_s in self._gaps.values())

    def match(self, hashes: Sequence[BlockHash], *, block_tokens: int) -> Hits:
        """Prefix hits of a prompt at every worker that has any."""
        return self._index.match(hashes, block_tokens=block_tokens)

    def held_blocks(self, worker_id: str) -> int:
        """Blocks in a worker's prefix cache, as far as it is known."""
        return self._index.held_blocks(worker_id)
