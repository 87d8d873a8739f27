"""What the twin has beyond the contract."""

from __future__ import annotations

import asyncio

import pytest
from store_builders import TTL_S, a_beat, a_reservation, full

from controlplane.config import StoreConfig
from controlplane.errors import StoreUnavailable
from controlplane.store.codec import FIRST
from controlplane.store.memory_store import MemoryStore


async def test_closing_ends_those_that_wait_and_those_that_come() -> None:
    store = MemoryStore(config=StoreConfig())
    waiting = asyncio.create_task(store.events(FIRST, wait_s=60))
    await asyncio.sleep(0)

    await store.close()

    with pytest.raises(StoreUnavailable):
        await waiting
    with pytest.raises(StoreUnavailable):
        await store.ping()


async def test_its_picture_in_words_counts_what_it_holds() -> None:
    store = MemoryStore(config=StoreConfig())
    for worker_id in ("p1", "d1"):
        await store.heartbeat(a_beat(worker_id, inventory=full()), ttl_s=TTL_S)
    await store.reserve(a_reservation(link="east>west"))

    assert repr(store) == "<MemoryStore <Roster ['d1', 'p1']> <Ledger 3 claims>, 0 decisions>"


async def test_after_the_last_release_it_holds_nothing() -> None:
    store = MemoryStore(config=StoreConfig())
    for worker_id in ("p1", "d1"):
        await store.heartbeat(a_beat(worker_id, inventory=full()), ttl_s=TTL_S)
    await store.reserve(a_reservation(link="east>west"))

    await store.release(a_reservation(link="east>west"))
    await store.snapshot()

    assert "<Ledger 0 claims>" in repr(store)
    assert not store._ledger._links
