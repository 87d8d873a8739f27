"""
An engine's blocks by our own chain. Pure.

Two keys: a block is told to routers by our hash of its tokens, and removed by the engine's own hash,
which nobody has to be able to compute. Groups of hybrid models have the same hash for the same
position, so what holds state there is told apart by group, and only groups of whole attention make
the chain: a group of states names as many tokens as lie before it, and one block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from controlplane.domain.prefix import BlockChain, BlockHash, InventoryEntry
from controlplane.domain.tokens import TokenIds, WidthBytes
from workers.engines.kv_events.decode import Cleared, EngineHash, Event, Removed, Stored

#: Blocks that are followed, 60 MB: four times what a worker may tell the store.
BLOCKS_MAX: Final = 262_144

#: Groups that hold every position of a prompt.
_WHOLE: Final = ("", "full_attention", "mla_attention", "sink_full_attention")


class BlockIndex:
    """One rank's cache."""

    def __init__(
        self,
        *,
        block_tokens: int,
        width_bytes: WidthBytes,
        has_state: bool = False,
        untold_scope: Callable[[], str | None] = lambda: None,
        blocks_max: int = BLOCKS_MAX,
    ) -> None:
        """
        Args:
            block_tokens: Of the router's chain.
            width_bytes: Of its tokens.
            has_state: The model has groups of states, whether any was heard of yet or not.
            untold_scope: Scope of blocks whose server does not tell salts; None to pass them over.
            blocks_max: Blocks that are followed; more are passed over.
        """
        self._block_tokens = block_tokens
        self._width_bytes = width_bytes
        self._has_state = has_state
        self._untold_scope = untold_scope
        self._blocks_max = blocks_max
        self._chains: dict[EngineHash, BlockChain] = {}
        #: Memories that a group's block is in, as bits.
        self._held: dict[int, dict[EngineHash, int]] = {}
        #: Whether a group holds whole attention.
        self._groups: dict[int, bool] = {}
        self._media: dict[str, int] = {}
        #: What is held, by our hash.
        self.entries: dict[BlockHash, InventoryEntry] = {}

    def __repr__(self) -> str:
        return f"<BlockIndex {len(self.entries)} blocks, {len(self._groups)} groups>"

    def apply(self, events: Iterable[Event]) -> set[BlockHash]:
        """
        Take the events of one batch.

        Returns:
            Blocks whose entry has changed or gone.
        """
        touched: dict[EngineHash, None] = {}
        changed: set[BlockHash] = set()
        for event in events:
            if isinstance(event, Stored):
                touched.update(dict.fromkeys(self._store(event)))
            elif isinstance(event, Removed):
                touched.update(dict.fromkeys(self._remove(event)))
            elif isinstance(event, Cleared):
                touched.clear()
                changed |= self.clear()
        # A state is told before the attention that places it; both are in one batch.
        for name in touched:
            block = self._settle(name)
            if block is not None:
                changed.add(block)
        return changed

    def clear(self) -> set[BlockHash]:
        """Forget everything; returns the blocks that were held."""
        gone = set(self.entries)
        self.entries.clear()
        self._chains.clear()
        self._held.clear()
        return gone

    # --- Parts --------------------------------------------------------------------------------

    def _store(self, event: Stored) -> tuple[EngineHash, ...]:
        if event.has_adapter:
            return ()
        is_whole = event.kind in _WHOLE
        self._groups[event.group] = is_whole
        names = event.hashes
        if is_whole:
            names = names[: self._place(event)]
        bit = self._media.setdefault(event.medium, 1 << len(self._media))
        held = self._held.setdefault(event.group, {})
        for name in names:
            held[name] = held.get(name, 0) | bit
        return names

    def _remove(self, event: Removed) -> tuple[EngineHash, ...]:
        held = self._held.get(event.group, {})
        gone = ~self._media.get(event.medium, 0)
        for name in event.hashes:
            left = held.get(name, 0) & gone
            if left:
                held[name] = left
            else:
                held.pop(name, None)
        return event.hashes

    def _place(self, event: Stored) -> int:
        """Put blocks into the chain; returns how many of them have a place there."""
        step = self._block_tokens
        if event.block_tokens != step or len(event.tokens) != step * len(event.hashes):
            return 0
        chain = self._parent(event)
        if chain is None:
            return 0
        try:
            packed = memoryview(TokenIds.from_ints(event.tokens, self._width_bytes).data)
        except (OverflowError, TypeError):
            return 0
        step *= self._width_bytes
        keys = event.extra_keys or ()
        for number, name in enumerate(event.hashes):
            is_first = event.parent is None and number == 0
            if not is_first and number < len(keys) and keys[number] is not None:
                # Images and the like: no prompt of ours.
                return number
            if name not in self._chains and len(self._chains) >= self._blocks_max:
                return number
            chain = chain.extend(packed[number * step : (number + 1) * step])
            self._chains[name] = chain
        return len(event.hashes)

    def _parent(self, event: Stored) -> BlockChain | None:
        if event.parent is not None:
            return self._chains.get(event.parent)
        scope = self._scope(event)
        if scope is None:
            return None
        return BlockChain.root(
            block_tokens=self._block_tokens, width_bytes=self._width_bytes, scope=scope
        )

    def _scope(self, event: Stored) -> str | None:
        """The salt that the request was sent with; None for requests of others."""
        if event.extra_keys is None:
            return self._untold_scope()
        first = event.extra_keys[0] if event.extra_keys else None
        if first is None or len(first) != 1 or not isinstance(first[0], str):
            return None
        return first[0]

    def _settle(self, name: EngineHash) -> BlockHash | None:
        """Bring the entry of a block in line with what its groups hold; its hash, if that changed it."""
        chain = self._chains.get(name)
        if chain is None:
            for held in self._held.values():
                held.pop(name, None)
            return None
        entry = InventoryEntry(
            has_attention=self._all_hold(name, is_whole=True),
            has_state=self._all_hold(name, is_whole=False),
        )
        before = self.entries.get(chain.block)
        if entry.has_attention or entry.has_state:
            self.entries[chain.block] = entry
            return chain.block if entry != before else None
        if not any(name in held for held in self._held.values()):
            del self._chains[name]
        self.entries.pop(chain.block, None)
        return chain.block if before is not None else None

    def _all_hold(self, name: EngineHash, *, is_whole: bool) -> bool:
        groups = [group for group, whole in self._groups.items() if whole is is_whole]
        if not groups:
            # Without states any position can be gone on from.
            return not is_whole and not self._has_state and self._all_hold(name, is_whole=True)
        return all(name in self._held.get(group, {}) for group in groups)
