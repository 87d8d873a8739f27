"""What the store does when its server is slow, gone, flushed or full."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from store_builders import (
    TTL_S,
    a_beat,
    a_location,
    a_reservation,
    eventually,
    full,
    is_running,
    pid_of_server,
)

from controlplane.config import StoreConfig
from controlplane.errors import ConfigError, StoreError, StoreTimeout, StoreUnavailable
from controlplane.store.api import WorkerSeen
from controlplane.store.codec import FIRST
from controlplane.store.embedded import EmbeddedServer
from controlplane.store.redis_store import RedisStore

FAST = StoreConfig(call_timeout_s=0.05, slow_call_timeout_s=0.3, breaker_probe_s=0.1)


@pytest.fixture
def server_pid(own_server: EmbeddedServer) -> Iterator[int]:
    pid = pid_of_server(own_server.directory)
    yield pid
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


@pytest.fixture
async def fast_store(own_server: EmbeddedServer) -> AsyncIterator[RedisStore]:
    """A store with the deadlines of production and a server of its own, p1 and d1 registered."""
    store = RedisStore(own_server.url, fleet="fast", config=FAST)
    for worker_id in ("p1", "d1"):
        await store.heartbeat(a_beat(worker_id, inventory=full()), ttl_s=TTL_S)
    await store.reserve(a_reservation("warm"))
    yield store
    await store.close()


async def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(5):
        while is_running(pid):  # noqa: ASYNC110  nobody tells us
            await asyncio.sleep(0.005)


async def command(store: RedisStore, *words: str) -> object:
    return await store._calls.ask_one("test", words)


async def is_up(store: RedisStore) -> bool:
    try:
        await store.reserve(a_reservation("probe"))
    except StoreError:
        return False
    return True


async def failures(call: Callable[[], Awaitable[object]], count: int) -> list[tuple[type, float]]:
    """Error and seconds of each call."""
    found = []
    for _ in range(count):
        started_s = time.monotonic()
        with pytest.raises(StoreError) as caught:
            await call()
        found.append((caught.type, time.monotonic() - started_s))
    return found


async def test_a_frozen_server_costs_three_deadlines_and_then_nothing(
    fast_store: RedisStore, server_pid: int
) -> None:
    os.kill(server_pid, signal.SIGSTOP)

    slow = await failures(lambda: fast_store.reserve(a_reservation()), 3)
    fast = await failures(lambda: fast_store.reserve(a_reservation()), 20)

    assert [error for error, _ in slow] == [StoreTimeout] * 3
    # The best of them, here and below: a busy machine may be away in any other.
    assert 0.05 <= min(seconds for _, seconds in slow) < 0.15
    assert StoreUnavailable in {error for error, _ in fast}
    assert min(seconds for _, seconds in fast) < 0.02
    assert fast_store.breaker.is_open


async def test_a_thawed_server_is_found_by_a_probe(fast_store: RedisStore, server_pid: int) -> None:
    os.kill(server_pid, signal.SIGSTOP)
    await failures(lambda: fast_store.reserve(a_reservation()), 3)
    os.kill(server_pid, signal.SIGCONT)

    await eventually(lambda: is_up(fast_store), bool)

    assert not fast_store.breaker.is_open
    assert fast_store.breaker.opened_total == 1


async def test_what_was_done_but_timed_out_is_not_done_twice(
    fast_store: RedisStore, server_pid: int
) -> None:
    """The frozen server has the commands in its socket and runs them when it wakes."""
    os.kill(server_pid, signal.SIGSTOP)
    await failures(lambda: fast_store.reserve(a_reservation("r1")), 2)
    os.kill(server_pid, signal.SIGCONT)

    await eventually(lambda: is_up(fast_store), bool)
    reply = await fast_store.reserve(a_reservation("r1"))

    # "warm", "probe" and "r1" once.
    assert reply.prefill_reserved_requests == 3


async def test_a_killed_server_is_unavailable_at_once(
    fast_store: RedisStore, server_pid: int
) -> None:
    await kill(server_pid)

    found = await failures(lambda: fast_store.reserve(a_reservation()), 8)

    assert {error for error, _ in found} == {StoreUnavailable}
    assert min(seconds for _, seconds in found) < 0.05
    assert fast_store.breaker.is_open


async def test_messages_of_failures_name_no_address(
    fast_store: RedisStore, own_server: EmbeddedServer, server_pid: int
) -> None:
    await kill(server_pid)

    with pytest.raises(StoreUnavailable) as caught:
        await fast_store.ping()

    assert str(own_server.directory) not in caught.value.message


async def test_waiting_for_events_does_not_hide_that_the_server_is_back(
    fast_store: RedisStore, server_pid: int
) -> None:
    cursor = (await fast_store.snapshot()).cursor
    os.kill(server_pid, signal.SIGSTOP)
    await failures(lambda: fast_store.reserve(a_reservation()), 3)
    os.kill(server_pid, signal.SIGCONT)

    async def listen() -> bool:
        nonlocal cursor
        try:
            cursor, _ = await fast_store.events(cursor, wait_s=30)
        except StoreUnavailable:
            return False
        return True

    await eventually(listen, bool)

    assert not fast_store.breaker.is_open


async def test_a_loop_that_was_busy_does_not_take_it_out_on_the_store(
    fast_store: RedisStore,
) -> None:
    names = [f"r{number}" for number in range(4)]
    await asyncio.gather(*(fast_store.release(a_reservation(name)) for name in names))

    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(fast_store.reserve(a_reservation(name))) for name in names]
        # The connections are there, so one turn of the loop sends the first of them.
        await asyncio.sleep(0)
        assert fast_store._calls._connections._busy
        # Longer than the deadline, and long enough for a server that shares a busy machine.
        time.sleep(0.3)  # noqa: ASYNC251  blocking the loop is what this is about

    assert all(call.result().refused_by is None for call in calls)


async def test_after_a_flush_of_data_and_scripts_the_fleet_fills_the_store_again(
    fast_store: RedisStore,
) -> None:
    cursor = (await fast_store.snapshot()).cursor
    await command(fast_store, "FLUSHALL")
    await command(fast_store, "SCRIPT", "FLUSH")

    refused = await fast_store.reserve(a_reservation())
    asked = await fast_store.heartbeat(a_beat(sequence=2), ttl_s=TTL_S)
    told = await fast_store.heartbeat(a_beat(sequence=3, inventory=full(aa="a")), ttl_s=TTL_S)
    await fast_store.heartbeat(a_beat("d1", sequence=2), ttl_s=TTL_S)
    granted = await fast_store.reserve(a_reservation())
    await fast_store.finish([(a_reservation(), "decision-1", b"{}")] * 2)

    assert refused.refused_by == "prefill_gone"
    assert asked.wants_full_inventory
    assert not told.wants_full_inventory
    assert granted.refused_by is None
    assert len(await fast_store.decisions(count=9)) == 1
    _, events = await fast_store.events(cursor, wait_s=0)
    assert [event.beat.sequence for event in events if isinstance(event, WorkerSeen)] == [2, 3, 2]


async def test_a_server_without_memory_refuses_and_is_not_given_up(
    fast_store: RedisStore,
) -> None:
    await command(fast_store, "CONFIG", "SET", "maxmemory", "1")

    with pytest.raises(StoreUnavailable, match="OOM"):
        await fast_store.heartbeat(a_beat(sequence=2), ttl_s=TTL_S)

    assert len((await fast_store.snapshot()).beats) == 2
    assert not fast_store.breaker.is_open


async def test_a_refusal_of_the_server_is_no_empty_store(
    fast_store: RedisStore, own_server: EmbeddedServer
) -> None:
    await command(fast_store, "ACL", "SETUSER", "guest", "on", ">word", "~*", "+ping", "+client")
    url = own_server.url.replace("unix://", "unix://guest:word@")
    guest = await RedisStore.connect(url, fleet="fast", config=FAST)

    for call in (guest.snapshot(), guest.events(FIRST, wait_s=0), guest.reserve(a_reservation())):
        with pytest.raises(StoreUnavailable, match="NOPERM"):
            await call
    assert not guest.breaker.is_open
    await guest.close()


async def test_a_wrong_password_is_unavailable(own_server: EmbeddedServer) -> None:
    url = own_server.url.replace("unix://", "unix://guest:wrong@")

    with pytest.raises(StoreUnavailable):
        await RedisStore.connect(url, fleet="fast", config=FAST)


async def test_connections_closed_by_the_server_are_replaced_unnoticed(
    fast_store: RedisStore, own_server: EmbeddedServer
) -> None:
    async with asyncio.timeout(5):
        other = await RedisStore.connect(own_server.url, fleet="fast", config=FAST)
        await command(other, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await other.close()
    await asyncio.sleep(0)

    assert (await fast_store.reserve(a_reservation())).refused_by is None


async def test_cancelled_calls_leave_no_reply_to_others(redis_store: RedisStore) -> None:
    """The redis-py bug of March 2023: a reply left on a pooled connection went to somebody else."""
    rng = Random(7)
    records = {f"decision-{number}": b"%d" % number * 100 for number in range(5)}
    await redis_store.finish([(None, name, record) for name, record in records.items()])

    async def ask(name: str, patience: int) -> None:
        task = asyncio.create_task(redis_store.decision(name))
        for _ in range(patience):
            await asyncio.sleep(0)
        task.cancel()
        try:
            found = await task
        except asyncio.CancelledError:
            return
        assert found is not None
        assert found.record == records[name]

    for _ in range(30):
        names = rng.choices(tuple(records), k=24)
        await asyncio.gather(*(ask(name, rng.randrange(40)) for name in names))

    for name, record in records.items():
        found = await redis_store.decision(name)
        assert found is not None
        assert found.record == record
    assert not redis_store._calls._connections._busy
    assert len(redis_store._calls._connections._idle) <= 16
    assert not redis_store.breaker.is_open


async def test_waiting_readers_hold_up_nobody(redis_store: RedisStore) -> None:
    cursor = (await redis_store.snapshot()).cursor
    readers = [asyncio.create_task(redis_store.events(cursor, wait_s=30)) for _ in range(9)]
    await asyncio.sleep(0.02)

    seconds = await redis_store.ping()

    assert seconds < 20, "they wait for 30 s"
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    _, events = await redis_store.events(cursor, wait_s=0)
    assert not events


async def test_a_closed_store_says_so(redis_store: RedisStore) -> None:
    waiting = asyncio.create_task(redis_store.events(FIRST, wait_s=30))
    await asyncio.sleep(0.02)

    await redis_store.close()

    with pytest.raises(StoreUnavailable):
        await waiting
    with pytest.raises(StoreUnavailable, match="closed"):
        await redis_store.ping()


async def test_connecting_to_nobody_is_unavailable() -> None:
    with pytest.raises(StoreUnavailable):
        await RedisStore.connect("unix:///nowhere/redis.sock", fleet="x", config=FAST)


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost",
        "redis://localhost:port",
        "redis://localhost/0?socket_timeout=9",
        "unix:///tmp/x?decode_responses=True",
    ],
)
def test_a_url_that_changes_how_we_wait_or_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="REDIS_URL"):
        RedisStore(url, fleet="x", config=FAST)


async def test_another_database_of_the_same_server_is_another_store(
    own_server: EmbeddedServer,
) -> None:
    one = await RedisStore.connect(f"{own_server.url}?db=1", fleet="x", config=FAST)
    two = await RedisStore.connect(f"{own_server.url}?db=2", fleet="x", config=FAST)
    await one.put_segment(a_location())

    assert len(await one.segments(count=9)) == 1
    assert not await two.segments(count=9)
    await one.close()
    await two.close()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_stores_leave_no_descriptors_behind(own_server: EmbeddedServer) -> None:
    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = open_files()
    for _ in range(3):
        store = await RedisStore.connect(own_server.url, fleet="x", config=FAST)
        await asyncio.gather(*(store.ping() for _ in range(20)))
        await store.close()

    assert open_files() <= before + 1
