"""
A worker's prefix cache: whole blocks, the least recently used leave first.

The rule of hybrid models, simplified: attention KV is kept for each block, a linear-attention state
at the last whole block of each prompt and at every `snapshot_blocks`-th. A prefill goes on from the
longest position that has both. What a state takes of the memory is counted in blocks with the rest:
the number of blocks is the whole budget.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from controlplane.domain.prefix import BlockHash
from controlplane.wire import Inventory

_ATTENTION: Final = "a"
_BOTH: Final = "as"


class Told:
    """What has changed since somebody last told of it."""

    __slots__ = ("removed", "stored")

    def __init__(self) -> None:
        self.stored: dict[BlockHash, str] = {}
        self.removed: dict[BlockHash, None] = {}


class BlockCache:
    """Block hashes and what is held of each."""

    def __init__(self, blocks_max: int, *, snapshot_blocks: int) -> None:
        """
        An empty one.

        Args:
            blocks_max: >= 0.
            snapshot_blocks: A state is kept at every so many blocks; 0 for one at each.
        """
        self._blocks: OrderedDict[BlockHash, str] = OrderedDict()
        self._blocks_max = blocks_max
        self._every = snapshot_blocks
        self._listeners: list[Told] = []

    def __repr__(self) -> str:
        return f"<BlockCache {len(self._blocks)} of {self._blocks_max} blocks>"

    def __len__(self) -> int:
        return len(self._blocks)

    def held(self, hashes: Sequence[BlockHash]) -> tuple[int, int]:
        """Leading blocks of a prompt whose attention is here, and how many a prefill can go on from."""
        blocks = self._blocks
        attention = resumable = 0
        for name in hashes:
            kind = blocks.get(name)
            if kind is None:
                break
            attention += 1
            if kind == _BOTH:
                resumable = attention
            blocks.move_to_end(name)
        return attention, resumable

    def put(self, hashes: Sequence[BlockHash], *, has_states: bool) -> None:
        """
        Keep all blocks of a prompt.

        Args:
            hashes: Of its blocks, in order.
            has_states: It was computed here; what decode receives is attention alone, and one state.
        """
        if not hashes or not self._blocks_max:
            return
        blocks, last = self._blocks, len(hashes)
        fresh: dict[BlockHash, str] = {}
        for number, name in enumerate(hashes, start=1):
            has_state = has_states and (
                number == last or not self._every or number % self._every == 0
            )
            known = blocks.get(name)
            if known is None or (has_state and known != _BOTH):
                blocks[name] = fresh[name] = _BOTH if has_state else _ATTENTION
            blocks.move_to_end(name)
        gone = [blocks.popitem(last=False)[0] for _ in range(len(blocks) - self._blocks_max)]
        for told in self._listeners:
            told.stored.update(fresh)
            for name in gone:
                told.removed[name] = None
                told.stored.pop(name, None)

    def clear(self) -> None:
        """Lose everything, as a process does that ends."""
        self._blocks.clear()
        self._listeners.clear()

    def listen(self) -> Told:
        """Somebody who tells of changes from now on."""
        told = Told()
        self._listeners.append(told)
        return told

    def forget(self, told: Told) -> None:
        """Nobody tells of these changes any more."""
        if told in self._listeners:
            self._listeners.remove(told)

    def take_inventory(self, told: Told, *, is_full: bool) -> Inventory:
        """Changes since the last call, or everything, as a heartbeat tells it."""
        stored, removed = told.stored, told.removed
        if is_full:
            stored, removed = dict(self._blocks), {}
        elif not stored and not removed:
            return _NO_CHANGE
        told.stored, told.removed = {}, {}
        # Made here a moment ago: there is nothing in it to check.
        return Inventory.model_construct(
            is_full=is_full,
            stored={name.hex(): kind for name, kind in stored.items()},  # type: ignore[misc]
            removed=tuple(name.hex() for name in removed),
        )


_NO_CHANGE: Final = Inventory()
