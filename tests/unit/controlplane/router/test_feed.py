"""The view is fed: by a snapshot, by events, and anew when the store was away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from router_builders import (
    DECODE_1,
    EAST_1,
    WEST_1,
    LogBook,
    LoopClock,
    ScriptedStore,
    a_busy_beat,
    a_few_turns,
    a_link_config,
)

from controlplane.errors import StoreTimeout, StoreUnavailable
from controlplane.router import feed as feed_module
from controlplane.router.feed import ViewFeed
from controlplane.router.view import ViewTracker

TTL_S = 5.0


@pytest.fixture
async def clock() -> LoopClock:
    return LoopClock()


@pytest.fixture
async def store(clock: LoopClock) -> ScriptedStore:
    """A store that knows one worker."""
    store = ScriptedStore(clock=clock)
    await store.heartbeat(a_busy_beat(EAST_1), ttl_s=TTL_S)
    return store


@pytest.fixture
def tracker(clock: LoopClock) -> ViewTracker:
    return ViewTracker(
        home_datacenter="west",
        links=(a_link_config(),),
        ttl_s=TTL_S,
        suspect_s=2.0,
        clock=clock,
    )


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> LogBook:
    """What the feed logs."""
    book = LogBook()
    monkeypatch.setattr(feed_module, "_log", book)
    return book


@pytest.fixture
async def feed(
    store: ScriptedStore, tracker: ViewTracker, clock: LoopClock, log: LogBook
) -> AsyncIterator[ViewFeed]:
    """A feed at work."""
    del log  # in place before the first line is written
    feed = ViewFeed(store, tracker, clock)
    task = asyncio.ensure_future(feed.run())
    await a_few_turns()
    yield feed
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def wait(clock: LoopClock, seconds: float) -> None:
    """Let time pass in small steps, everything happening at its time."""
    for _ in range(round(seconds * 10)):
        clock.advance(0.1)
        await a_few_turns()


def names(tracker: ViewTracker) -> list[str]:
    return [worker.worker_id for worker in tracker.view().workers]


def events(log: LogBook) -> list[str]:
    return [event for _, event, _ in log.events]


async def test_it_begins_with_a_snapshot(feed: ViewFeed, tracker: ViewTracker) -> None:
    """Routing can start with the first answer of the store."""
    assert feed.is_synced.is_set()
    assert names(tracker) == [EAST_1]
    assert not tracker.is_store_away


@pytest.mark.usefixtures("feed")
async def test_it_follows_workers_that_come_and_go(
    tracker: ViewTracker, store: ScriptedStore, log: LogBook
) -> None:
    """At once, not with the next snapshot."""
    await store.heartbeat(a_busy_beat(WEST_1), ttl_s=TTL_S)
    await a_few_turns()
    come = names(tracker)
    await store.deregister(EAST_1, "i1")
    await a_few_turns()

    assert come == [EAST_1, WEST_1]
    assert names(tracker) == [WEST_1]
    assert events(log) == ["worker.registered"]


@pytest.mark.usefixtures("feed")
async def test_it_notices_a_worker_that_falls_silent(
    tracker: ViewTracker, store: ScriptedStore, clock: LoopClock, log: LogBook
) -> None:
    """Nobody says that a killed process is gone."""
    for sequence in range(2, 9):
        await store.heartbeat(a_busy_beat(WEST_1, sequence=sequence), ttl_s=TTL_S)
        await wait(clock, 1)

    assert names(tracker) == [WEST_1]
    assert log.events[-1] == ("warning", "worker.lost", {"worker": EAST_1})


@pytest.mark.usefixtures("feed")
async def test_a_store_that_is_away_leaves_the_last_view(
    tracker: ViewTracker, store: ScriptedStore, clock: LoopClock, log: LogBook
) -> None:
    """For as long as it takes; it is asked again and again, and said once."""
    store.is_away = True
    await wait(clock, 60)

    assert names(tracker) == [EAST_1]
    assert tracker.is_store_away
    assert events(log) == ["store.degraded"]
    assert log.events[0][2] == {"cause": StoreUnavailable.code}
    assert store.calls.count("snapshot") > 50


@pytest.mark.usefixtures("feed")
async def test_a_store_that_is_back_is_read_anew(
    tracker: ViewTracker, store: ScriptedStore, clock: LoopClock, log: LogBook
) -> None:
    """Events of the meantime may be lost, so everything is read; nobody is dropped for silence."""
    store.is_away = True
    await wait(clock, 60)
    store.is_away = False
    await store.heartbeat(a_busy_beat(DECODE_1), ttl_s=TTL_S)
    await wait(clock, 0.3)
    at_once = names(tracker)
    await wait(clock, TTL_S + 1)

    assert at_once == [EAST_1, DECODE_1]
    assert not tracker.is_store_away
    assert events(log)[:2] == ["store.degraded", "store.restored"]
    assert names(tracker) == []


@pytest.mark.usefixtures("feed")
async def test_one_failed_call_does_no_harm(
    tracker: ViewTracker, store: ScriptedStore, clock: LoopClock, log: LogBook
) -> None:
    """Slow once, then as before."""
    store.before["events"].append(StoreTimeout("slow"))
    await wait(clock, 1)

    assert names(tracker) == [EAST_1]
    assert not tracker.is_store_away
    assert events(log) == ["store.degraded", "store.restored"]


@pytest.mark.usefixtures("feed")
async def test_everything_is_read_anew_from_time_to_time(
    store: ScriptedStore, clock: LoopClock
) -> None:
    """What a trimmed stream has lost heals by itself."""
    for sequence in range(2, 34):
        await store.heartbeat(a_busy_beat(EAST_1, sequence=sequence), ttl_s=TTL_S)
        await wait(clock, 1)

    assert store.calls.count("snapshot") == 2


async def test_a_router_may_start_before_its_store(
    store: ScriptedStore, tracker: ViewTracker, clock: LoopClock, log: LogBook
) -> None:
    """It waits, and is ready when the store is."""
    store.is_away = True
    feed = ViewFeed(store, tracker, clock)
    task = asyncio.ensure_future(feed.run())
    await wait(clock, 3)
    before = feed.is_synced.is_set()
    store.is_away = False
    await store.heartbeat(a_busy_beat(EAST_1, sequence=2), ttl_s=TTL_S)
    await wait(clock, 0.3)

    assert not before
    assert feed.is_synced.is_set()
    assert names(tracker) == [EAST_1]
    assert events(log) == ["store.degraded", "store.restored"]
    task.cancel()
