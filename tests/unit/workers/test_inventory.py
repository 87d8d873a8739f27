"""Two registrations of one process tell the same of its one prefix cache."""

from __future__ import annotations

from random import Random

from controlplane.domain.prefix import BlockHash, InventoryDelta, InventoryEntry
from workers.inventory import InventoryReader, SharedInventory

KNOWN = InventoryEntry(has_attention=True, has_state=False)
WITH_STATE = InventoryEntry(has_attention=True, has_state=True)


class Cache:
    """Blocks, and what changed since the last delta, as an engine keeps it."""

    def __init__(self) -> None:
        self.blocks: dict[BlockHash, InventoryEntry] = {}
        self._changed: dict[BlockHash, None] = {}

    def put(self, name: str, entry: InventoryEntry = KNOWN) -> None:
        self.blocks[name.encode()] = entry
        self._changed[name.encode()] = None

    def evict(self, name: str) -> None:
        self.blocks.pop(name.encode(), None)
        self._changed[name.encode()] = None

    def take(self, *, is_full: bool) -> InventoryDelta:
        changed, self._changed = self._changed, {}
        stored = {
            block: self.blocks[block]
            for block in (self.blocks if is_full else changed)
            if block in self.blocks
        }
        removed = () if is_full else tuple(block for block in changed if block not in self.blocks)
        return InventoryDelta(is_full=is_full, stored=stored, removed=removed)


class Told:
    """What the store has of one registration after all its deltas."""

    def __init__(self, reader: InventoryReader) -> None:
        self._reader = reader
        self.blocks: dict[BlockHash, InventoryEntry] = {}

    def beat(self, *, is_full: bool = False) -> None:
        delta = self._reader.take(is_full=is_full)
        if delta.is_full:
            self.blocks.clear()
        for block in delta.removed:
            self.blocks.pop(block, None)
        self.blocks.update(delta.stored)


def test_a_change_reaches_every_reader() -> None:
    """Also those that ask after another one has taken it from the engine."""
    cache = Cache()
    shared = SharedInventory(cache.take)
    one, other = Told(shared.reader()), Told(shared.reader())
    one.beat()
    other.beat()
    cache.put("a")
    cache.put("b")
    one.beat()
    cache.evict("a")
    cache.put("b", WITH_STATE)
    one.beat()

    other.beat()

    assert one.blocks == other.blocks == {b"b": WITH_STATE}


def test_a_reader_that_comes_later_is_told_everything() -> None:
    cache = Cache()
    shared = SharedInventory(cache.take)
    cache.put("a")
    Told(shared.reader()).beat()

    late = Told(shared.reader())
    late.beat()

    assert late.blocks == {b"a": KNOWN}


def test_readers_agree_with_the_cache_whatever_the_order() -> None:
    """Changes, beats and full reports at random; in the end both know what is there."""
    for seed in range(50):
        draw, cache = Random(seed), Cache()
        shared = SharedInventory(cache.take)
        told = [Told(shared.reader()), Told(shared.reader())]
        for _ in range(60):
            name = draw.choice("abcdef")
            act = draw.randrange(4)
            if act == 0:
                cache.put(name, draw.choice([KNOWN, WITH_STATE]))
            elif act == 1:
                cache.evict(name)
            else:
                draw.choice(told).beat(is_full=draw.random() < 0.1)

        for one in told:
            one.beat()

        assert [one.blocks for one in told] == [cache.blocks, cache.blocks], seed


def test_nothing_is_kept_for_a_reader_that_is_closed() -> None:
    cache = Cache()
    shared = SharedInventory(cache.take)
    gone, stays = shared.reader(), Told(shared.reader())
    gone.take(is_full=False)
    gone.close()
    stays.beat()
    cache.put("a")

    stays.beat()

    assert repr(gone) == "<InventoryReader 0 changes missed>"
