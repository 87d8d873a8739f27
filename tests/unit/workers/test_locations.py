"""KV locations reach the store behind the requests that make them: the newest word on each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from builders import a_location
from router_builders import LoopClock, ScriptedStore, a_few_turns

from controlplane.errors import StoreTimeout, StoreUnavailable
from controlplane.router.memory_workers import Gate
from workers import locations as locations_module
from workers.locations import LocationPublisher
from workers.metrics import WorkerMetrics


@pytest.fixture
async def clock() -> LoopClock:
    return LoopClock()


@pytest.fixture
def store(clock: LoopClock) -> ScriptedStore:
    return ScriptedStore(clock=clock)


@pytest.fixture
def metrics() -> WorkerMetrics:
    return WorkerMetrics()


@pytest.fixture
async def publisher(
    store: ScriptedStore, metrics: WorkerMetrics
) -> AsyncIterator[LocationPublisher]:
    """A publisher at work."""
    publisher = LocationPublisher(store, metrics)
    task = asyncio.ensure_future(publisher.run())
    yield publisher
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def published(store: ScriptedStore) -> set[str]:
    """Segments in the store."""
    return {location.segment_id for location in await store.segments(count=100)}


async def test_a_location_is_published_and_withdrawn(
    publisher: LocationPublisher, store: ScriptedStore
) -> None:
    """Nobody waits for either."""
    publisher.put(a_location(segment_id="s1"))
    publisher.put(a_location(segment_id="s2"))
    await a_few_turns()
    before = await published(store)

    publisher.drop("s1")
    await a_few_turns()

    assert before == {"s1", "s2"}
    assert await published(store) == {"s2"}


async def test_a_segment_that_came_and_went_makes_one_call(
    publisher: LocationPublisher, store: ScriptedStore
) -> None:
    """Only the newest word on it counts."""
    publisher.put(a_location(segment_id="s1"))
    publisher.put(a_location(segment_id="s1"))
    publisher.drop("s1")
    await a_few_turns()

    assert store.calls == ["drop_segment"]


@pytest.mark.parametrize("error", [StoreUnavailable("away"), StoreTimeout("slow")])
async def test_while_the_store_is_away_locations_wait(
    publisher: LocationPublisher,
    store: ScriptedStore,
    clock: LoopClock,
    metrics: WorkerMetrics,
    error: Exception,
) -> None:
    """And are published in their order when it is back."""
    store.before["put_segment"].append(error)
    for number in range(3):
        publisher.put(a_location(segment_id=f"s{number}"))
    await a_few_turns()
    while_away = await published(store)

    clock.advance(1)
    await a_few_turns()

    assert while_away == set()
    assert await published(store) == {"s0", "s1", "s2"}
    samples = metrics.registry.get_sample_value
    assert samples("prfaas_store_errors_total", {"op": "segment"}) == 1


async def test_a_newer_word_wins_over_one_that_failed(
    publisher: LocationPublisher, store: ScriptedStore, clock: LoopClock
) -> None:
    """Dropped while its publication was on its way."""
    store.before["put_segment"].extend((gate := Gate(), StoreTimeout("slow")))
    publisher.put(a_location(segment_id="s1"))
    await gate.reached()
    publisher.drop("s1")
    gate.open()
    await a_few_turns()

    clock.advance(1)
    await a_few_turns()

    assert await published(store) == set()
    assert store.calls == ["put_segment", "drop_segment"]


async def test_what_waits_is_bounded(
    publisher: LocationPublisher, store: ScriptedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest are dropped: their leases end anyway."""
    monkeypatch.setattr(locations_module, "_PENDING_MAX", 3)
    for number in range(5):
        publisher.put(a_location(segment_id=f"s{number}"))

    await a_few_turns()

    assert await published(store) == {"s2", "s3", "s4"}
