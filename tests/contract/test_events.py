"""The stream of events that keeps routers up to date between snapshots."""

from __future__ import annotations

import asyncio

import pytest
from store_builders import TTL_S, a_beat, delta, full

from controlplane.errors import MalformedRequest
from controlplane.store.api import StateStore, WorkerLeft, WorkerSeen


async def test_events_come_in_the_order_they_happened(store: StateStore) -> None:
    cursor = (await store.snapshot()).cursor
    first = a_beat(inventory=full(aa="a"))
    second = a_beat(sequence=2, inventory=delta("aa", bb="s"))
    await store.heartbeat(first, ttl_s=TTL_S)
    await store.heartbeat(second, ttl_s=TTL_S)
    await store.deregister("p1", "one")

    _, events = await store.events(cursor, wait_s=0)

    assert list(events) == [WorkerSeen(first), WorkerSeen(second), WorkerLeft("p1", "one")]


async def test_each_event_comes_once_when_the_cursor_is_followed(store: StateStore) -> None:
    cursor = (await store.snapshot()).cursor
    seen = []
    for sequence in (1, 2, 3):
        await store.heartbeat(a_beat(sequence=sequence, inventory=full()), ttl_s=TTL_S)
        cursor, events = await store.events(cursor, wait_s=0)
        seen += [event.beat.sequence for event in events if isinstance(event, WorkerSeen)]

    after, events = await store.events(cursor, wait_s=0)
    assert seen == [1, 2, 3]
    assert after == cursor
    assert not events


async def test_nothing_before_a_snapshot_comes_after_its_cursor(store: StateStore) -> None:
    await store.heartbeat(a_beat(inventory=full()), ttl_s=TTL_S)

    _, events = await store.events((await store.snapshot()).cursor, wait_s=0)

    assert not events


async def test_a_delta_that_was_not_applied_is_not_in_its_event(store: StateStore) -> None:
    cursor = (await store.snapshot()).cursor

    await store.heartbeat(a_beat(sequence=5, inventory=delta(aa="a")), ttl_s=TTL_S)

    _, events = await store.events(cursor, wait_s=0)
    assert list(events) == [WorkerSeen(a_beat(sequence=5))]


async def test_a_repeated_beat_makes_no_second_event(store: StateStore) -> None:
    cursor = (await store.snapshot()).cursor
    beat = a_beat(inventory=full())

    await store.heartbeat(beat, ttl_s=TTL_S)
    await store.heartbeat(beat, ttl_s=TTL_S)

    _, events = await store.events(cursor, wait_s=0)
    assert list(events) == [WorkerSeen(beat)]


async def test_waiting_ends_with_the_first_event(store: StateStore) -> None:
    cursor = (await store.snapshot()).cursor
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        waiting = group.create_task(store.events(cursor, wait_s=60))
        await asyncio.sleep(0)
        await store.heartbeat(a_beat(inventory=full()), ttl_s=TTL_S)

    _, events = waiting.result()
    assert [type(event) for event in events] == [WorkerSeen]


async def test_waiting_for_nothing_ends_with_nothing(store: StateStore) -> None:
    cursor = (await store.snapshot()).cursor

    after, events = await store.events(cursor, wait_s=0.03)

    assert after == cursor
    assert not events


async def test_many_readers_see_the_same(store: StateStore) -> None:
    cursor = (await store.snapshot()).cursor
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        readers = [group.create_task(store.events(cursor, wait_s=60)) for _ in range(3)]
        await asyncio.sleep(0)
        await store.heartbeat(a_beat(inventory=full()), ttl_s=TTL_S)

    assert len({reader.result()[0] for reader in readers}) == 1


async def test_a_reader_far_behind_gets_what_is_kept(store: StateStore) -> None:
    cursor = (await store.snapshot()).cursor
    for sequence in range(1, 701):
        await store.heartbeat(a_beat(sequence=sequence, inventory=full()), ttl_s=TTL_S)

    seen: list[int] = []
    while True:
        cursor, events = await store.events(cursor, wait_s=0)
        if not events:
            break
        seen += [event.beat.sequence for event in events if isinstance(event, WorkerSeen)]

    # At least `events_max`; Redis trims in whole nodes and keeps up to a node more.
    assert seen == list(range(seen[0], 701))
    assert 100 <= len(seen) <= 400


@pytest.mark.parametrize("cursor", ["", "x", "1", "1-1-1", "-1-1", "$"])
async def test_what_is_no_cursor_is_refused(store: StateStore, cursor: str) -> None:
    with pytest.raises(MalformedRequest):
        await store.events(cursor, wait_s=0)
