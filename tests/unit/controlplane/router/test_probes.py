"""Workers are asked themselves while the store is away, and only then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from random import Random

import pytest
from builders import a_beat
from router_builders import (
    DECODE_1,
    EAST_1,
    WEST_1,
    LogBook,
    LoopClock,
    a_busy_beat,
    a_few_turns,
    a_link_config,
    url_of,
)

from controlplane.config_health import HealthConfig
from controlplane.observe.metrics import RouterMetrics
from controlplane.router import probes as probes_module
from controlplane.router.last_known import LastAddress
from controlplane.router.memory_probes import MemoryProber
from controlplane.router.probes import NoBeat, Probes
from controlplane.router.view import ViewTracker
from controlplane.store.api import WorkerSeen
from controlplane.wire import WorkerBeat


class World:
    """Three workers, a router that asks them, and its clock."""

    def __init__(self) -> None:
        self.clock = LoopClock()
        self.tracker = ViewTracker(
            home_datacenter="west", links=(a_link_config(),), ttl_s=5.0, clock=self.clock
        )
        self.metrics = RouterMetrics()
        self.prober = MemoryProber()
        self.probes = Probes(
            self.prober, self.tracker, self.metrics, HealthConfig(probes_max=2), Random(0)
        )
        self.tracker.apply_events(
            [WorkerSeen(a_busy_beat(name)) for name in (EAST_1, WEST_1, DECODE_1)]
        )
        for name in (EAST_1, WEST_1, DECODE_1):
            self.answer(name, a_busy_beat(name))

    def answer(self, worker_id: str, answer: WorkerBeat | NoBeat) -> None:
        self.prober.answers[url_of(worker_id)] = answer

    async def wait(self, seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            self.clock.advance(0.1)
            await a_few_turns()

    def names(self) -> list[str]:
        return [worker.worker_id for worker in self.tracker.view().workers]

    def counted(self, result: str) -> float | None:
        return self.metrics.registry.get_sample_value("prfaas_probes_total", {"result": result})


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """Probes at work."""
    world = World()
    task = asyncio.ensure_future(world.probes.run())
    yield world
    assert not task.done()
    task.cancel()


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> LogBook:
    book = LogBook()
    monkeypatch.setattr(probes_module, "_log", book)
    return book


async def test_nobody_is_asked_while_the_store_is_there(world: World) -> None:
    await world.wait(5)

    assert world.prober.asked == []


async def test_everybody_is_asked_once_a_second_while_it_is_away(world: World) -> None:
    world.tracker.store_lost()
    await world.wait(10)

    assert 3 * 8 <= len(world.prober.asked) <= 3 * 13
    assert set(world.prober.asked) == {url_of(name) for name in (EAST_1, WEST_1, DECODE_1)}
    assert world.counted("answered") == len(world.prober.asked)


async def test_a_worker_that_dies_meanwhile_is_noticed_in_seconds(
    world: World, log: LogBook
) -> None:
    world.tracker.store_lost()
    world.answer(EAST_1, "refused")
    await world.wait(2.4)
    doubted = world.tracker.states()[EAST_1]
    await world.wait(6)

    assert doubted == "suspect"
    assert world.names() == [DECODE_1, WEST_1]
    assert log.events == [("warning", "worker.lost", {"worker": EAST_1})]


async def test_a_new_life_at_the_same_address_is_noticed(world: World, log: LogBook) -> None:
    world.tracker.store_lost()
    world.answer(EAST_1, a_busy_beat(EAST_1, incarnation="i2"))
    await world.wait(2.4)

    worker = world.tracker.view().worker(EAST_1)
    assert worker is not None
    assert worker.incarnation == "i2"
    assert log.events == [("info", "worker.registered", {"worker": EAST_1})]


async def test_a_silent_worker_is_doubted_and_kept(world: World) -> None:
    """The way to it may be what is broken."""
    world.tracker.store_lost()
    world.answer(EAST_1, "silent")
    await world.wait(20)

    assert world.tracker.states()[EAST_1] == "suspect"
    assert EAST_1 in world.names()


async def test_a_worker_of_an_earlier_version_is_taken_for_alive(world: World) -> None:
    world.tracker.store_lost()
    world.answer(EAST_1, "mute")
    await world.wait(20)

    assert world.tracker.states()[EAST_1] == "healthy"
    assert world.counted("mute") is not None


async def test_probes_stop_when_the_store_is_back(world: World) -> None:
    world.tracker.store_lost()
    await world.wait(3)
    world.tracker.apply_events([])
    asked = len(world.prober.asked)
    await world.wait(3)

    assert len(world.prober.asked) == asked


class SlowProber(MemoryProber):
    """Counts who is asked at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0

    async def ask(self, url: str) -> WorkerBeat | NoBeat:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0)
        self.now -= 1
        return await super().ask(url)


async def test_so_many_are_asked_at_the_same_time_and_no_more() -> None:
    world = World()
    prober = SlowProber()
    config = HealthConfig(probes_max=7)
    world.tracker.apply_events([WorkerSeen(a_beat(f"east/p{n}")) for n in range(2, 50)])
    world.tracker.store_lost()
    world.clock.advance(1.1)

    await Probes(prober, world.tracker, world.metrics, config, Random(0)).ask_all()

    assert len(prober.asked) == 51
    assert prober.most == 7


async def test_an_answer_that_comes_after_the_store_is_back_is_dropped() -> None:
    """It is as old as its way, and the store knows more."""
    world = World()
    world.answer(EAST_1, "refused")

    await world.probes.ask_all()

    assert world.tracker.states()[EAST_1] == "healthy"


def test_a_prober_says_what_it_knows() -> None:
    prober = MemoryProber()
    prober.answers["http://a"] = "mute"

    assert repr(prober) == "<MemoryProber 1 answers>"


# --- A start without the store ----------------------------------------------------------------


def a_start(world: World, *worker_ids: str) -> tuple[ViewTracker, Probes]:
    """A router that knows nobody, and remembers these."""
    tracker = ViewTracker(
        home_datacenter="west", links=(a_link_config(),), ttl_s=5.0, clock=world.clock
    )
    remembered = [LastAddress(worker_id=name, url=url_of(name)) for name in worker_ids]
    probes = Probes(
        world.prober,
        tracker,
        world.metrics,
        HealthConfig(),
        Random(0),
        last_known=lambda: remembered,
    )
    world.clock.advance(1.5)
    return tracker, probes


async def test_a_router_that_starts_without_the_store_asks_whom_it_knew(world: World) -> None:
    tracker, probes = a_start(world, EAST_1, DECODE_1)

    await probes.ask_all()

    assert sorted(tracker.states()) == sorted([EAST_1, DECODE_1])


@pytest.mark.parametrize("answer", ["refused", "silent", "mute", a_busy_beat(WEST_1)])
async def test_whoever_does_not_answer_by_the_same_name_is_nobody(
    world: World, answer: WorkerBeat | NoBeat
) -> None:
    """A worker before 0.3 says nothing that one could send work by; a port may be another's now."""
    tracker, probes = a_start(world, EAST_1)
    world.answer(EAST_1, answer)

    await probes.ask_all()

    assert tracker.states() == {}


async def test_who_was_silent_at_first_is_asked_again(world: World) -> None:
    """Whoever is known by then is asked once, at the address it has now."""
    tracker, probes = a_start(world, EAST_1, DECODE_1)
    world.answer(EAST_1, "silent")
    await probes.ask_all()
    first = sorted(tracker.states())
    world.answer(EAST_1, a_busy_beat(EAST_1))
    world.prober.asked.clear()

    await probes.ask_all()

    assert first == [DECODE_1]
    assert sorted(tracker.states()) == sorted([EAST_1, DECODE_1])
    assert sorted(world.prober.asked) == sorted([url_of(EAST_1), url_of(DECODE_1)])
