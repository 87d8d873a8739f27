"""What a server's cache should hold by what was sent to it, where it does not tell. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from controlplane.domain.prefix import BlockHash, InventoryEntry


class RoutedBlocks:
    """A guess: the blocks of recent prompts, least recently sent out first, as many as fit the cache."""

    def __init__(self, *, blocks_max: int, has_state: bool) -> None:
        """
        Args:
            blocks_max: That the server's cache has room for.
            has_state: Of the model; servers keep the state at the last block of a prompt.
        """
        self._blocks_max = blocks_max
        self._has_state = has_state
        self.entries: OrderedDict[BlockHash, InventoryEntry] = OrderedDict()

    def __repr__(self) -> str:
        return f"<RoutedBlocks {len(self.entries)} of {self._blocks_max}>"

    def sent(self, hashes: Sequence[BlockHash]) -> set[BlockHash]:
        """
        A prompt was computed or received there.

        Args:
            hashes: Of its full blocks.

        Returns:
            Blocks whose entry has changed or gone.
        """
        changed: set[BlockHash] = set()
        # Last block first, so that a chain leaves from its end.
        for number in range(len(hashes) - 1, -1, -1):
            block = hashes[number]
            before = self.entries.pop(block, None)
            has_state = not self._has_state or number == len(hashes) - 1
            had_state = before is not None and before.has_state
            entry = InventoryEntry(has_attention=True, has_state=has_state or had_state)
            self.entries[block] = entry
            if entry != before:
                changed.add(block)
        while len(self.entries) > self._blocks_max:
            block, _ = self.entries.popitem(last=False)
            changed.add(block)
        return changed

    def clear(self) -> None:
        """The server has begun anew."""
        self.entries.clear()
