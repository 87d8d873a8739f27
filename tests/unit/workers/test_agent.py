"""Heartbeats: everything once, changes after that, nothing lost, and one goodbye."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from router_builders import LogBook, LoopClock, ScriptedStore, a_few_turns
from worker_builders import FakeEngine, an_identity

from controlplane.config import HeartbeatConfig, StoreConfig
from controlplane.errors import StoreTimeout, StoreUnavailable
from controlplane.router.memory_workers import Gate
from controlplane.store.api import WorkerSeen
from controlplane.store.codec import FIRST
from controlplane.wire import WorkerBeat
from workers import agent as agent_module
from workers.agent import Abilities, Agent
from workers.links import LinkMeters
from workers.metrics import WorkerMetrics

BLOCKS = [bytes([number]) * 16 for number in range(4)]


class Rig:
    """An agent with its store and engine."""

    def __init__(self, abilities: Abilities | None = None) -> None:
        self.clock = LoopClock()
        self.store = ScriptedStore(clock=self.clock)
        self.engine = FakeEngine()
        self.links = LinkMeters("east")
        self.metrics = WorkerMetrics()
        self.jobs = 0
        self.is_stalled = False
        self.agent = Agent(
            self.engine,
            an_identity("prefill"),
            self.store,
            self.metrics,
            heartbeat=HeartbeatConfig(),
            requests_max=9,
            slots=1,
            url="http://127.0.0.1:9000",
            jobs=lambda: self.jobs,
            links=self.links,
            is_stalled=lambda: self.is_stalled,
            abilities=abilities,
            clock=self.clock,
        )

    async def beats(self) -> list[WorkerBeat]:
        """What routers were told."""
        _, events = await self.store.events(FIRST, wait_s=0)
        return [event.beat for event in events if isinstance(event, WorkerSeen)]

    async def inventory(self) -> set[str]:
        """Blocks that the store knows of the worker."""
        (beat,) = (await self.store.snapshot()).beats
        return set(beat.inventory.stored)


@pytest.fixture
async def rig() -> Rig:
    return Rig()


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> LogBook:
    """What the agent logs."""
    book = LogBook()
    monkeypatch.setattr(agent_module, "_log", book)
    return book


def hexes(*numbers: int) -> set[str]:
    return {BLOCKS[number].hex() for number in numbers}


# --- One beat --------------------------------------------------------------------------------


async def test_the_first_beat_says_everything(rig: Rig) -> None:
    """Who it is, what it can, what it holds, what it does."""
    rig.engine.store(BLOCKS[0])
    rig.jobs = 3
    rig.links.add("west", moved_bytes=1 << 20, goodput_bps=5e6, rtt_s=0.1)

    assert await rig.agent.beat()

    (beat,) = await rig.beats()
    assert (beat.worker_id, beat.incarnation, beat.sequence) == ("east/p1", "i1", 1)
    assert (beat.role, beat.datacenter, beat.url) == ("prefill", "east", "http://127.0.0.1:9000")
    assert (beat.requests_max, beat.slots, beat.context_tokens_max) == (9, 1, 512)
    assert beat.inventory.is_full
    assert set(beat.inventory.stored) == hexes(0)
    assert (beat.load.queue_requests, beat.load.queue_tokens, beat.load.kv_bytes) == (3, 7, 11)
    assert beat.profile.prefill_s_per_token == 0.001
    assert [link.bytes_total for link in beat.links] == [1 << 20]
    assert not beat.is_draining


async def test_later_beats_say_what_has_changed(rig: Rig) -> None:
    """Numbered, so that a lost one is noticed."""
    rig.engine.store(BLOCKS[0])
    await rig.agent.beat()
    rig.engine.store(BLOCKS[1])

    await rig.agent.beat()
    await rig.agent.beat()

    _, second, third = await rig.beats()
    assert (second.sequence, third.sequence) == (2, 3)
    assert (set(second.inventory.stored), second.inventory.is_full) == (hexes(1), False)
    assert (set(third.inventory.stored), third.inventory.is_full) == (set(), False)
    assert await rig.inventory() == hexes(0, 1)


@pytest.mark.parametrize("is_done", [False, True], ids=["not done", "done unheard"])
@pytest.mark.parametrize("error", [StoreTimeout("slow"), StoreUnavailable("away")])
async def test_a_change_in_a_beat_that_failed_is_not_lost(
    rig: Rig, error: Exception, *, is_done: bool
) -> None:
    """Nobody can tell whether it arrived, so the next one says everything."""
    rig.engine.store(BLOCKS[0])
    await rig.agent.beat()
    rig.engine.store(BLOCKS[1])
    (rig.store.after if is_done else rig.store.before)["heartbeat"].append(error)

    was_taken = await rig.agent.beat()
    rig.engine.store(BLOCKS[2])
    is_taken = await rig.agent.beat()

    assert (was_taken, is_taken) == (False, True)
    assert await rig.inventory() == hexes(0, 1, 2)
    assert (await rig.beats())[-1].inventory.is_full


async def test_a_beat_that_hangs_ends_in_time(rig: Rig) -> None:
    """A slow store costs its own beat, and its change is said again."""
    await rig.agent.beat()
    rig.engine.store(BLOCKS[0])
    rig.store.before["heartbeat"].append(gate := Gate())
    beating = asyncio.ensure_future(rig.agent.beat())
    await gate.reached()

    rig.clock.advance(0.6)
    was_taken = await beating
    await rig.agent.beat()

    assert not was_taken
    assert await rig.inventory() == hexes(0)
    samples = rig.metrics.registry.get_sample_value
    assert samples("prfaas_store_errors_total", {"op": "heartbeat"}) == 1


async def test_a_store_that_forgot_is_told_everything(rig: Rig) -> None:
    """After a flush, or when a change was lost on the way."""
    rig.engine.store(BLOCKS[0])
    await rig.agent.beat()
    rig.store._roster.remove("east/p1")

    await rig.agent.beat()
    await rig.agent.beat()

    assert await rig.inventory() == hexes(0)


async def test_a_beat_says_how_long_the_worker_could_take_work(rig: Rig) -> None:
    """Routers send little at first to one that has just come."""
    rig.clock.advance(12)

    await rig.agent.beat()

    (beat,) = await rig.beats()
    assert beat.age_s == pytest.approx(12, abs=1)


async def test_a_worker_of_this_version_resumes(rig: Rig) -> None:
    """A stream that another worker has begun."""
    await rig.agent.beat()

    assert [beat.can_resume for beat in await rig.beats()] == [True]


async def test_a_worker_tells_how_long_its_queue_takes(rig: Rig) -> None:
    """By its own times: the engine has 7 tokens to prefill, at a millisecond each."""
    await rig.agent.beat()
    (beat,) = await rig.beats()

    assert beat.load.queue_s == pytest.approx(0.007)


async def test_what_a_worker_cannot_do_it_does_not_promise(rig: Rig) -> None:
    """As workers before 0.4: it keeps its role, lends nothing, and is asked for no prefix."""
    await rig.agent.beat()
    (beat,) = await rig.beats()

    assert (beat.roles, beat.lend_share, beat.lent_by) == ((), 0.0, None)
    assert not beat.can_export_prefix


async def test_lent_time_is_as_slow_as_its_share() -> None:
    """Profile and queue alike, so that whoever predicts with them need not know of the share."""
    share = [0.25]
    rig = Rig(Abilities(lent_by="west/d1", lend_share=lambda: share[0]))
    await rig.agent.beat()
    share[0] = 0.5
    await rig.agent.beat()
    quarter, half = await rig.beats()

    assert quarter.profile.prefill_s_per_token == pytest.approx(0.004)
    assert half.profile.prefill_s_per_token == pytest.approx(0.002)
    assert quarter.load.queue_s == pytest.approx(0.028)
    assert (quarter.lent_by, quarter.lend_share, half.lend_share) == ("west/d1", 0.25, 0.5)


async def test_a_lender_tells_its_share_and_its_own_profile() -> None:
    rig = Rig(Abilities(roles=("prefill", "decode"), lend_share=lambda: 0.25))
    await rig.agent.beat()
    (beat,) = await rig.beats()

    assert (beat.roles, beat.lend_share) == (("prefill", "decode"), 0.25)
    assert beat.profile.prefill_s_per_token == 0.001


async def test_a_worker_whose_engine_hangs_takes_nothing_new(rig: Rig) -> None:
    """To routers it drains, until its engine moves again."""
    for is_stalled in (True, False):
        rig.is_stalled = is_stalled
        await rig.agent.beat()

    assert [beat.is_draining for beat in await rig.beats()] == [True, False]


# --- Asked -----------------------------------------------------------------------------------


async def test_a_router_may_ask_for_the_state_of_now(rig: Rig) -> None:
    """As a heartbeat would say it, with the number of the last one."""
    for _ in range(3):
        await rig.agent.beat()
    rig.jobs = 5

    found = rig.agent.current()

    assert (found.worker_id, found.incarnation, found.sequence) == ("east/p1", "i1", 3)
    assert found.load.queue_requests == 5
    assert [beat.sequence for beat in await rig.beats()] == [1, 2, 3]


async def test_asking_takes_no_change_from_the_next_heartbeat(rig: Rig) -> None:
    """Inventory is for the store alone, which counts what it is told."""
    await rig.agent.beat()
    rig.engine.store(BLOCKS[0])

    found = rig.agent.current()
    await rig.agent.beat()

    assert (found.inventory.stored, found.inventory.is_full) == ({}, False)
    assert await rig.inventory() == hexes(0)


async def test_asking_before_the_first_heartbeat_uses_none_up(rig: Rig) -> None:
    """The first one is still the first."""
    found = rig.agent.current()
    await rig.agent.beat()

    assert found.sequence == 1
    assert [beat.sequence for beat in await rig.beats()] == [1]


# --- The loop --------------------------------------------------------------------------------


@asynccontextmanager
async def running(rig: Rig) -> AsyncIterator[asyncio.Task[None]]:
    """The agent at work."""
    task = asyncio.ensure_future(rig.agent.run())
    await a_few_turns()
    yield task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def wait(rig: Rig, seconds: float) -> None:
    """Let time pass in small steps, everything happening at its time."""
    for _ in range(round(seconds * 20)):
        rig.clock.advance(0.05)
        await a_few_turns()


async def test_it_beats_once_a_second(rig: Rig) -> None:
    """Whatever the engine has to do."""
    async with running(rig):
        await wait(rig, 4.5)

    assert [beat.sequence for beat in await rig.beats()] == [1, 2, 3, 4, 5]


async def test_a_store_that_asks_for_everything_gets_it_at_once(rig: Rig) -> None:
    """Routers are waiting for it: not with the next second."""
    rig.engine.store(BLOCKS[0])
    await rig.agent.beat()
    rig.store._roster.remove("east/p1")

    async with running(rig):
        await wait(rig, 0.3)

    assert await rig.inventory() == hexes(0)


async def test_a_store_that_is_away_is_told_of_once(rig: Rig, log: LogBook) -> None:
    """And once that it is back; the worker works on in between."""
    rig.store.is_away = True
    async with running(rig):
        await wait(rig, 5)
        rig.store.is_away = False
        await wait(rig, 2)

    assert [event for _, event, _ in log.events] == ["store.degraded", "store.restored"]
    assert log.events[0][2] == {"worker": "east/p1"}


async def test_an_inventory_that_the_store_cuts_is_told_of_once(rig: Rig, log: LogBook) -> None:
    """Its routers see a part of the cache: whoever runs it should know why."""
    rig.store = ScriptedStore(StoreConfig(inventory_blocks_max=64), clock=rig.clock)
    rig.agent._store = rig.store
    for number in range(70):
        rig.engine.store(bytes([number]) * 16)

    await rig.agent.beat()
    await rig.agent.beat()

    assert [event for _, event, _ in log.events] == ["inventory.cut"]


# --- The end ---------------------------------------------------------------------------------


async def test_draining_is_told_at_once(rig: Rig) -> None:
    """The worker is still there for what it has taken."""
    await rig.agent.beat()

    await rig.agent.drain()

    (beat,) = (await rig.store.snapshot()).beats
    assert (beat.is_draining, beat.sequence) == (True, 2)


async def test_a_goodbye_removes_the_worker(rig: Rig) -> None:
    """Routers need not wait for silence."""
    await rig.agent.beat()

    await rig.agent.leave()

    assert (await rig.store.snapshot()).beats == ()


async def test_after_its_goodbye_it_says_nothing_more(rig: Rig) -> None:
    """A beat would register it again, for as long as it takes to be missed."""
    async with running(rig) as task:
        await rig.agent.leave()
        await wait(rig, 5)

        assert (await rig.store.snapshot()).beats == ()
        assert task.done()


async def test_a_beat_on_its_way_does_not_outlive_the_goodbye(rig: Rig) -> None:
    """Whichever arrives first, the worker is gone in the end."""
    rig.store.before["heartbeat"].append(gate := Gate())
    beating = asyncio.ensure_future(rig.agent.beat())
    await gate.reached()

    leaving = asyncio.ensure_future(rig.agent.leave())
    await a_few_turns()
    gate.open()
    await asyncio.gather(beating, leaving)

    assert (await rig.store.snapshot()).beats == ()


@pytest.mark.parametrize("steps", [[StoreUnavailable("away")], [Gate()]], ids=["away", "hangs"])
async def test_a_goodbye_that_nobody_hears_holds_nobody_up(rig: Rig, steps: list[Any]) -> None:
    """The registration expires by itself."""
    await rig.agent.beat()
    rig.store.before["deregister"].extend(steps)
    leaving = asyncio.ensure_future(rig.agent.leave())
    await a_few_turns()

    rig.clock.advance(2)

    await leaving
