"""The view is fed: by a snapshot, by events, and anew when the store was away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest
from builders import a_beat
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

from controlplane.domain.health import WorkerState
from controlplane.errors import StoreTimeout, StoreUnavailable
from controlplane.observe.logs import EVENTS, FIELDS
from controlplane.router import feed as feed_module
from controlplane.router.feed import ViewFeed, log_state
from controlplane.router.view import ViewTracker
from controlplane.store.api import Blamed, Published, WorkerSeen

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
    await wait(clock, 3 * TTL_S + 1)

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
    store: ScriptedStore, clock: LoopClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rarely: what was missed is noticed by itself, and a large fleet takes a second to read."""
    rarely_s = feed_module.RESYNC_S
    monkeypatch.setattr(feed_module, "RESYNC_S", 20.0)
    await wait(clock, 10)
    before = store.calls.count("snapshot")
    await wait(clock, 20)

    assert (before, store.calls.count("snapshot")) == (1, 2)
    assert rarely_s == 300.0


@pytest.mark.usefixtures("feed")
async def test_everything_is_read_anew_when_a_change_was_missed(
    store: ScriptedStore, tracker: ViewTracker, clock: LoopClock
) -> None:
    """The stream was trimmed before this router read it."""
    tracker.apply_events([WorkerSeen(a_beat(EAST_1, sequence=3))])
    counts = []
    for sequence in range(4, 11):
        counts.append(store.calls.count("snapshot"))
        await store.heartbeat(a_beat(EAST_1, sequence=sequence), ttl_s=TTL_S)
        await wait(clock, 1)
    at_once = counts[3]

    assert (at_once, store.calls.count("snapshot")) == (1, 2)


async def test_a_large_picture_is_taken_in_parts(
    store: ScriptedStore, tracker: ViewTracker, clock: LoopClock
) -> None:
    """Requests are served between them."""
    for number in range(2, 40):
        await store.heartbeat(a_busy_beat(f"east/p{number}"), ttl_s=TTL_S)
    feed = ViewFeed(store, tracker, clock)
    task = asyncio.ensure_future(feed.run())
    sizes = []
    while not feed.is_synced.is_set():
        await asyncio.sleep(0)
        sizes.append(len(names(tracker)))

    assert sizes[-1] == 39
    assert max(after - before for before, after in pairwise(sizes)) < 10
    task.cancel()


@pytest.mark.usefixtures("feed")
async def test_a_busy_stream_is_read_several_events_at_a_time(
    store: ScriptedStore, tracker: ViewTracker, clock: LoopClock
) -> None:
    """A call costs more than what it brings; nothing is missed, and nothing waits for long."""
    for sequence in range(2, 502):
        await store.heartbeat(a_busy_beat(EAST_1, sequence=sequence), ttl_s=TTL_S)
        clock.advance(0.01)
        await a_few_turns(3)
    await wait(clock, 0.2)

    beat = tracker.beat(EAST_1)
    assert beat is not None
    assert beat.sequence == 501
    assert store.calls.count("events") < 80


async def test_blame_and_new_documents_are_passed_on(
    store: ScriptedStore, tracker: ViewTracker, clock: LoopClock
) -> None:
    """In order, and with no effect on the picture."""
    told: list[Blamed | Published] = []
    feed = ViewFeed(store, tracker, clock, on_blamed=told.append, on_published=told.append)
    task = asyncio.ensure_future(feed.run())
    await a_few_turns()
    epoch = tracker.view().epoch

    blamed = Blamed(fingerprint="f", worker_id=EAST_1, incarnation="i1")
    await store.blame(blamed)
    await store.publish("policy", b"{}")
    await a_few_turns()

    assert told == [blamed, Published(topic="policy", version=1)]
    assert tracker.view().epoch == epoch
    task.cancel()


async def test_reading_everything_anew_says_that_events_may_have_been_missed(
    store: ScriptedStore, tracker: ViewTracker, clock: LoopClock
) -> None:
    told: list[str] = []
    feed = ViewFeed(store, tracker, clock, on_synced=lambda: told.append("synced"))
    store.before["events"].append(StoreTimeout("slow"))
    task = asyncio.ensure_future(feed.run())
    await a_few_turns()
    at_first = tuple(told)
    await wait(clock, 1)
    task.cancel()

    assert at_first == ("synced",)
    assert told == ["synced", "synced"]


@pytest.mark.usefixtures("feed")
async def test_blame_concerns_nobody_who_has_not_asked(
    store: ScriptedStore, tracker: ViewTracker
) -> None:
    """The feed goes on."""
    await store.blame(Blamed(fingerprint="f", worker_id=EAST_1, incarnation="i1"))
    await store.heartbeat(a_busy_beat(WEST_1), ttl_s=TTL_S)
    await a_few_turns()

    assert names(tracker) == [EAST_1, WEST_1]


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        ("healthy", "suspect", ("warning", "worker.suspected", {})),
        ("suspect", "ejected", ("warning", "worker.ejected", {})),
        ("ejected", "healthy", ("info", "worker.recovered", {"cause": "ejected"})),
        ("suspect", "warming", ("info", "worker.recovered", {"cause": "suspect"})),
        ("healthy", "warming", None),
        ("warming", "healthy", None),
        ("suspect", "draining", None),
    ],
)
def test_getting_into_trouble_and_out_of_it_is_logged(
    log: LogBook,
    before: WorkerState,
    after: WorkerState,
    line: tuple[str, str, dict[str, str]] | None,
) -> None:
    """By names that are on the list."""
    log_state(EAST_1, "i1", before, after)

    if line is None:
        assert log.events == []
    else:
        level, event, more = line
        assert log.events == [(level, event, {"worker": EAST_1, "incarnation": "i1", **more})]
        assert event in EVENTS
        assert FIELDS.issuperset(log.events[0][2])


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
