"""One prefix cache, told of by several registrations of its process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from controlplane.domain.prefix import BlockHash, InventoryDelta, InventoryEntry

#: Changes that are kept for a reader who does not come; beyond that it is told everything.
_CHANGES_MAX: Final = 4_096


class TakeDelta(Protocol):
    """Changes of a prefix cache since the last call, or all of it; as `Engine` has it."""

    def __call__(self, *, is_full: bool) -> InventoryDelta:
        """The next delta."""


class SharedInventory:
    """
    Hands each change of a cache to every reader.

    An engine tells each change once. What one reader takes is kept for the others until they ask; a
    full report that one of them takes makes the next one of the others full too.
    """

    def __init__(self, take: TakeDelta) -> None:
        """
        Args:
            take: The engine's own.
        """
        self._take = take
        self._readers: set[InventoryReader] = set()

    def __repr__(self) -> str:
        return f"<SharedInventory {len(self._readers)} readers>"

    def reader(self) -> InventoryReader:
        """A reader that knows nothing yet; `close` ends it."""
        reader = InventoryReader(self._read, self._readers.discard)
        self._readers.add(reader)
        return reader

    def _read(self, reader: InventoryReader, *, is_full: bool) -> InventoryDelta:
        delta = self._take(is_full=is_full)
        for other in self._readers - {reader}:
            other.miss(delta)
        return delta


class InventoryReader:
    """One registration's view of the cache."""

    def __init__(
        self,
        read: Callable[..., InventoryDelta],
        on_close: Callable[[InventoryReader], None],
    ) -> None:
        self._read = read
        self._on_close = on_close
        #: Changes that others have taken; None for a block that has gone.
        self._missed: dict[BlockHash, InventoryEntry | None] = {}
        self._wants_full = True

    def __repr__(self) -> str:
        return f"<InventoryReader {len(self._missed)} changes missed>"

    def take(self, *, is_full: bool) -> InventoryDelta:
        """Changes since this reader's last call, or everything."""
        delta = self._read(self, is_full=is_full or self._wants_full)
        missed, self._missed = self._missed, {}
        if delta.is_full:
            self._wants_full = False
            return delta
        changes: dict[BlockHash, InventoryEntry | None] = {
            **missed, **dict.fromkeys(delta.removed), **delta.stored
        }  # fmt: skip
        return InventoryDelta(
            is_full=False,
            stored={block: entry for block, entry in changes.items() if entry is not None},
            removed=tuple(block for block, entry in changes.items() if entry is None),
        )

    def miss(self, delta: InventoryDelta) -> None:
        """Another reader took a delta that this one has not seen."""
        if delta.is_full:
            self._wants_full = True
        if self._wants_full:
            self._missed.clear()
            return
        self._missed.update(dict.fromkeys(delta.removed))
        self._missed.update(delta.stored)
        if len(self._missed) > _CHANGES_MAX:
            self._wants_full = True
            self._missed.clear()

    def close(self) -> None:
        """Take no more. Idempotent."""
        self._on_close(self)
