"""
The prefix cache: attention blocks and state snapshots of prompts that were seen.

Blocks form chains: each has the block before it as its parent. A chain with a hole is useless
behind the hole, so a block never leaves before its descendants do. Whoever uses a chain holds a
lease on its leading blocks; leased blocks stay.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from controlplane.domain.prefix import BlockHash, InventoryDelta, InventoryEntry

#: An inventory on the wire has this many entries at most (`controlplane.wire.Inventory`).
BLOCKS_MAX: Final = 65_536
#: When more blocks changed since the last delta, the next one is full: it costs about the same.
CHANGES_MAX: Final = 4_096


@dataclass(slots=True)
class _Block:
    parent: BlockHash | None
    #: The attention piece, as it was or will be sent.
    attention: bytes
    #: The state at the end of the block, where somebody took a snapshot.
    state: bytes | None
    #: Leases on it. One on a block is one on all its ancestors too.
    pins: int


class Lease:
    """
    The leading blocks of one prompt that are in the cache; they stay until it is released.

    `offer` appends what was computed or received. When the cache has no room left that is not
    leased, a block stays out of it, and so do all behind it: there are no holes.
    """

    def __init__(self, cache: PrefixCache, hashes: Sequence[BlockHash]) -> None:
        self._cache = cache
        self._hashes = tuple(hashes)
        self._count = 0
        self._is_released = False

    def __repr__(self) -> str:
        return f"<Lease {self._count} of {len(self._hashes)} blocks>"

    @property
    def hashes(self) -> tuple[BlockHash, ...]:
        """Leased blocks, first of the prompt first."""
        return self._hashes[: self._count]

    @property
    def attention(self) -> tuple[bytes, ...]:
        """Attention pieces of the leased blocks."""
        return tuple(self._cache.blocks[block].attention for block in self.hashes)

    def snapshot(self) -> tuple[int, bytes | None]:
        """Number of leading blocks up to the last snapshot, and that; `(0, None)` without one."""
        for count in range(self._count, 0, -1):
            state = self._cache.blocks[self._hashes[count - 1]].state
            if state is not None:
                return count, state
        return 0, None

    def offer(self, count: int, attention: bytes, state: bytes | None = None) -> bool:
        """
        Store the last of the first `count` blocks of the prompt, if all before it are leased.

        Args:
            count: 1 for the first block.
            attention: Its attention piece; not used if the block is there already.
            state: The state at its end, if worth keeping.

        Returns:
            Whether it is in the cache, and leased.
        """
        if self._is_released or not 0 < count <= min(self._count + 1, len(self._hashes)):
            return False
        block = self._hashes[count - 1]
        if count > self._count:
            parent = self._hashes[count - 2] if count > 1 else None
            if not self._cache.store(block, parent, attention):
                return False
            self._cache.pin(block)
            self._count = count
        if state is not None:
            self._cache.keep_state(block, state)
        return True

    def release(self) -> None:
        """Give the blocks back. Idempotent."""
        if not self._is_released:
            self._is_released = True
            self._cache.release(self)


class PrefixCache:
    """
    Blocks by hash, least recently used out first.

    Mutated on the event loop's thread alone. The bytes in it are immutable, so that the compute
    thread may read what it was given without a lock.
    """

    def __init__(self, *, block_tokens: int, tokens_max: int) -> None:
        self._block_tokens = block_tokens
        self._blocks_max = min(tokens_max // block_tokens, BLOCKS_MAX)
        #: For leases.
        self.blocks: dict[BlockHash, _Block] = {}
        #: Blocks without a lease, oldest first. A lease pins whole chains and gives them back
        #: deepest block first, so descendants always stand before their ancestors.
        self._evictable: OrderedDict[BlockHash, None] = OrderedDict()
        self._leases: set[Lease] = set()
        self._bytes = 0
        #: Blocks that changed since the last delta, in the order in which they did.
        self._changed: dict[BlockHash, None] = {}
        self._has_lost_changes = False

    def __repr__(self) -> str:
        return (
            f"<PrefixCache {len(self.blocks)} of {self._blocks_max} blocks, "
            f"{len(self.blocks) - len(self._evictable)} leased, {len(self._leases)} leases>"
        )

    @property
    def held_tokens(self) -> int:
        """Tokens whose attention is held."""
        return len(self.blocks) * self._block_tokens

    @property
    def held_bytes(self) -> int:
        """Bytes of attention and snapshots held."""
        return self._bytes

    @property
    def leases(self) -> frozenset[Lease]:
        """Leases not released yet."""
        return frozenset(self._leases)

    def lease(self, hashes: Sequence[BlockHash]) -> Lease:
        """Hold the leading blocks of a prompt that are here."""
        lease = Lease(self, hashes)
        self._leases.add(lease)
        for count, block in enumerate(hashes, start=1):
            known = self.blocks.get(block)
            if known is None:
                break
            lease.offer(count, known.attention)
        return lease

    def resumable_tokens(self, hashes: Sequence[BlockHash]) -> int:
        """Tokens that a prefill of this prompt could skip now."""
        tokens = 0
        for count, block in enumerate(hashes, start=1):
            known = self.blocks.get(block)
            if known is None:
                break
            if known.state is not None:
                tokens = count * self._block_tokens
        return tokens

    # --- For leases ---------------------------------------------------------------------------

    def store(self, block: BlockHash, parent: BlockHash | None, attention: bytes) -> bool:
        """Have a block, evicting others if need be. False when all others are leased."""
        if block in self.blocks:
            return True
        if len(self.blocks) >= self._blocks_max:
            if not self._evictable:
                return False
            self._evict(self._evictable.popitem(last=False)[0])
        self.blocks[block] = _Block(parent, attention, None, 0)
        self._evictable[block] = None
        self._bytes += len(attention)
        self._note(block)
        return True

    def keep_state(self, block: BlockHash, state: bytes) -> None:
        """Add a snapshot to a block that has none."""
        known = self.blocks[block]
        if known.state is None:
            known.state = state
            self._bytes += len(state)
            self._note(block)

    def pin(self, block: BlockHash) -> None:
        """Keep a block from being evicted."""
        known = self.blocks[block]
        if known.pins == 0:
            del self._evictable[block]
        known.pins += 1

    def release(self, lease: Lease) -> None:
        """Take the pins of a lease off, deepest block first."""
        self._leases.remove(lease)
        for block in reversed(lease.hashes):
            known = self.blocks[block]
            known.pins -= 1
            if known.pins == 0:
                self._evictable[block] = None

    def _evict(self, block: BlockHash) -> None:
        known = self.blocks.pop(block)
        self._bytes -= len(known.attention) + len(known.state or b"")
        self._note(block)

    # --- Inventory ----------------------------------------------------------------------------

    def _note(self, block: BlockHash) -> None:
        if self._has_lost_changes:
            return
        self._changed.pop(block, None)
        self._changed[block] = None
        if len(self._changed) > CHANGES_MAX:
            self._has_lost_changes = True
            self._changed.clear()

    def take_delta(self, *, is_full: bool) -> InventoryDelta:
        """What changed since the last call; everything if asked for or if too much changed."""
        is_full = is_full or self._has_lost_changes
        stored: dict[BlockHash, InventoryEntry] = {}
        removed: list[BlockHash] = []
        for block in self.blocks if is_full else self._changed:
            known = self.blocks.get(block)
            if known is None:
                removed.append(block)
            else:
                stored[block] = InventoryEntry(
                    has_attention=True, has_state=known.state is not None
                )
        self._changed.clear()
        self._has_lost_changes = False
        return InventoryDelta(is_full=is_full, stored=stored, removed=tuple(removed))

    # --- Conservation -------------------------------------------------------------------------

    def check_integrity(self) -> None:
        """
        Assert that pins and leases, bytes and blocks add up, and that no chain has a hole.

        Raises:
            AssertionError: They do not.
        """
        pins = Counter(block for lease in self._leases for block in lease.hashes)
        held = {block: known.pins for block, known in self.blocks.items() if known.pins}
        assert held == dict(pins), f"pins {held} differ from leases {dict(pins)}"
        free = {block for block, known in self.blocks.items() if not known.pins}
        assert free == set(self._evictable), "a block without a lease cannot be evicted"
        assert len(self.blocks) <= self._blocks_max, f"{self!r} is over its bound"
        size = sum(len(known.attention) + len(known.state or b"") for known in self.blocks.values())
        assert size == self._bytes, f"{size} bytes held, {self._bytes} counted"
        rank = {block: index for index, block in enumerate(self._evictable)}
        for block, known in self.blocks.items():
            if known.parent is None:
                continue
            assert known.parent in self.blocks, "a block has lost its parent"
            # A pinned parent has no rank and cannot go first.
            later = rank.get(known.parent, len(rank))
            assert rank.get(block, later) <= later, "a parent would be evicted first"
