"""Records and releases reach the store in the end, in order, and never hold a request up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from builders import a_beat
from router_builders import LoopClock, ScriptedStore, a_few_turns
from store_builders import TTL_S, a_reservation

from controlplane.errors import StoreTimeout, StoreUnavailable
from controlplane.observe.metrics import RouterMetrics
from controlplane.router import recorder as recorder_module
from controlplane.router.memory_workers import Gate
from controlplane.router.recorder import Recorder
from controlplane.router.records import DecisionRecord, Timeline, decode_record
from controlplane.wire import Reservation


def a_record(number: int = 0, **overrides: Any) -> DecisionRecord:
    """A request that was rejected at once."""
    values: dict[str, Any] = {
        "decision_id": f"dec-{number}",
        "request_id": f"req-{number}",
        "router": "west/router-1",
        "at": 1_700_000_000.0,
        "kind": "completion",
        "model": "m",
        "is_stream": True,
        "outcome": "rejected",
        "code": "no_candidate",
        "attempts": (),
        "timeline": Timeline(parsed_s=0.001, finished_s=0.002),
    }
    return DecisionRecord(**(values | overrides))


@pytest.fixture
async def clock() -> LoopClock:
    return LoopClock()


@pytest.fixture
async def store(clock: LoopClock) -> ScriptedStore:
    """A store with the two workers that reservations name."""
    store = ScriptedStore(clock=clock)
    for worker_id in ("p1", "d1"):
        beat = a_beat(worker_id, datacenter="east", incarnation="one")
        await store.heartbeat(beat, ttl_s=TTL_S)
    return store


@pytest.fixture
def metrics() -> RouterMetrics:
    return RouterMetrics()


@pytest.fixture
def recorder(store: ScriptedStore, metrics: RouterMetrics) -> Recorder:
    """A recorder that keeps three in memory and at most a hundred waiting."""
    return Recorder(store, metrics, recent_max=3, pending_max=100)


@pytest.fixture
async def running(recorder: Recorder) -> AsyncIterator[asyncio.Task[None]]:
    """The recorder at work in the background."""
    task = asyncio.ensure_future(recorder.run())
    yield task
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def granted(store: ScriptedStore, reservation_id: str = "r1") -> Reservation:
    """A claim that is in the store's books."""
    reservation = a_reservation(reservation_id)
    assert (await store.reserve(reservation)).refused_by is None
    return reservation


async def stored(store: ScriptedStore) -> list[str]:
    """Ids in the store, oldest first."""
    found = await store.decisions(count=1000)
    return [decode_record(item.record).decision_id for item in reversed(found)]


async def let_it_write(clock: LoopClock) -> None:
    """What came together goes together: a moment later."""
    await a_few_turns()
    clock.advance(0.1)
    await a_few_turns()


def dropped(metrics: RouterMetrics) -> float | None:
    """How many records were given up."""
    return metrics.registry.get_sample_value("prfaas_records_dropped_total")


async def test_a_record_is_written_behind_and_its_reservation_released(
    recorder: Recorder, store: ScriptedStore, running: asyncio.Task[None], clock: LoopClock
) -> None:
    """In one round trip; nobody waits for it."""
    reservation = await granted(store)

    recorder.add(a_record(), reservation)
    await let_it_write(clock)

    assert await stored(store) == ["dec-0"]
    assert "<Ledger 0 claims>" in repr(store)
    assert store.calls.count("finish") == 1
    assert not running.done()


async def test_an_attempt_that_was_given_up_is_released_without_a_record(
    recorder: Recorder, store: ScriptedStore, running: asyncio.Task[None], clock: LoopClock
) -> None:
    """Its request goes on."""
    recorder.release(await granted(store))
    await let_it_write(clock)

    assert await stored(store) == []
    assert "<Ledger 0 claims>" in repr(store)
    assert "finish" not in store.calls
    assert not running.done()


async def test_the_newest_records_are_in_memory(recorder: Recorder) -> None:
    """Newest first, as many as the limit says; the admin API needs no store for them."""
    for number in range(4):
        recorder.add(a_record(number), None)

    assert [record.decision_id for record in recorder.recent()] == ["dec-3", "dec-2", "dec-1"]
    assert recorder.find("dec-1") == a_record(1)
    assert recorder.find("dec-0") is None
    assert recorder.recent_ids() == ("dec-3", "dec-2", "dec-1")
    assert repr(recorder) == "<Recorder 3 recent, 4 pending>"


@pytest.mark.parametrize("operation", ["finish", "release"])
async def test_while_the_store_is_away_records_wait(
    recorder: Recorder,
    store: ScriptedStore,
    running: asyncio.Task[None],
    clock: LoopClock,
    operation: str,
) -> None:
    """They are written when it is back, in order and each once."""
    given_up, kept = await granted(store, "r1"), await granted(store, "r2")
    store.before[operation].append(StoreUnavailable("away"))
    recorder.add(a_record(0), kept)
    recorder.release(given_up)
    recorder.add(a_record(1), None)
    await let_it_write(clock)
    while_away = await stored(store)

    clock.advance(1)
    await a_few_turns()

    assert while_away == []
    assert await stored(store) == ["dec-0", "dec-1"]
    assert "<Ledger 0 claims>" in repr(store)
    assert not running.done()


async def test_a_call_that_was_done_unheard_is_made_again(
    recorder: Recorder, store: ScriptedStore
) -> None:
    """Writing twice writes once."""
    store.after["finish"].append(StoreTimeout("done, but nobody heard"))
    recorder.add(a_record(), await granted(store))

    first = await recorder.flush()
    second = await recorder.flush()

    assert (first, second) == (False, True)
    assert await stored(store) == ["dec-0"]
    assert "<Ledger 0 claims>" in repr(store)


async def test_what_does_not_fit_is_dropped_and_counted(
    store: ScriptedStore, metrics: RouterMetrics
) -> None:
    """The oldest first: memory is bounded however long the store is away."""
    recorder = Recorder(store, metrics, recent_max=10, pending_max=2)
    for number in range(5):
        recorder.add(a_record(number), None)

    assert await recorder.flush()

    assert await stored(store) == ["dec-3", "dec-4"]
    assert dropped(metrics) == 3


async def test_what_waited_for_a_failed_call_is_bounded_too(
    store: ScriptedStore, metrics: RouterMetrics
) -> None:
    """Records that come while a batch is on its way take the places of the oldest in it."""
    recorder = Recorder(store, metrics, recent_max=10, pending_max=2)
    store.before["finish"].extend((gate := Gate(), StoreTimeout("slow")))
    for number in range(2):
        recorder.add(a_record(number), None)
    flushing = asyncio.ensure_future(recorder.flush())
    await gate.reached()
    recorder.add(a_record(2), None)
    gate.open()

    was_written = await flushing
    await recorder.flush()

    assert not was_written
    assert await stored(store) == ["dec-1", "dec-2"]
    assert dropped(metrics) == 1


async def test_flushing_writes_all_there_is(
    recorder: Recorder, store: ScriptedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many batches it takes: it is the last thing a router does."""
    monkeypatch.setattr(recorder_module, "_BATCH_MAX", 4)
    for number in range(10):
        recorder.add(a_record(number), None)

    assert await recorder.flush()

    assert await stored(store) == [f"dec-{number}" for number in range(10)]
    assert store.calls.count("finish") == 3


async def test_flushing_waits_for_a_batch_that_is_on_its_way(
    recorder: Recorder, store: ScriptedStore, running: asyncio.Task[None]
) -> None:
    """A router that stops right after must not cut it off."""
    store.before["finish"].append(gate := Gate())
    recorder.add(a_record(0), await granted(store))
    await gate.reached()

    flushing = asyncio.ensure_future(recorder.flush())
    await a_few_turns()
    was_done = flushing.done()
    gate.open()

    assert await flushing
    assert not was_done
    assert await stored(store) == ["dec-0"]
    assert not running.done()


async def test_a_batch_that_is_cut_off_is_not_lost(
    recorder: Recorder, store: ScriptedStore
) -> None:
    """Cancelled on its way, it is there for the next one who flushes."""
    store.before["finish"].append(gate := Gate())
    recorder.add(a_record(0), await granted(store))
    running = asyncio.ensure_future(recorder.run())
    await gate.reached()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert await recorder.flush()

    assert await stored(store) == ["dec-0"]
    assert "<Ledger 0 claims>" in repr(store)


async def test_what_comes_within_a_moment_goes_together(
    store: ScriptedStore, metrics: RouterMetrics, clock: LoopClock
) -> None:
    """One round trip serves all; nothing is written before the moment is over."""
    recorder = Recorder(store, metrics, recent_max=3, pending_max=100, gather_s=0.05)
    task = asyncio.ensure_future(recorder.run())
    for number in range(3):
        recorder.add(a_record(number), None)
        await a_few_turns()
    before = store.calls.count("finish")

    clock.advance(0.06)
    await a_few_turns()

    assert before == 0
    assert store.calls.count("finish") == 1
    assert await stored(store) == ["dec-0", "dec-1", "dec-2"]
    task.cancel()
    await asyncio.wait([task])


async def test_flushing_nothing_asks_nobody(recorder: Recorder, store: ScriptedStore) -> None:
    """An idle router makes no calls."""
    before = len(store.calls)

    assert await recorder.flush()

    assert len(store.calls) == before
