"""An engine that hangs is noticed, and one that only has nothing to do is not."""

from __future__ import annotations

import asyncio

import pytest
from router_builders import LoopClock, a_few_turns
from worker_builders import FakeEngine

from workers.engine import EngineCounters
from workers.watch import EngineWatch


class Engine(FakeEngine):
    """Its counters are what a test says."""

    units = 0

    def counters(self) -> EngineCounters:
        return EngineCounters(units_total=self.units)


class Rig:
    """A watch, what it watches, and what it said."""

    def __init__(self) -> None:
        self.engine = Engine()
        self.jobs = 0
        self.said: list[bool] = []
        self.watch = EngineWatch(
            self.engine, waiting=lambda: self.jobs, stall_s=5, on_change=self.said.append
        )
        self.watch.look()

    def look(self, times: int) -> None:
        for _ in range(times):
            self.watch.look()


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_an_engine_that_finishes_nothing_while_jobs_wait_hangs(rig: Rig) -> None:
    rig.jobs = 1

    rig.look(9)
    before = rig.watch.is_stalled
    rig.look(1)

    assert (before, rig.watch.is_stalled, rig.said) == (False, True, [True])


def test_an_engine_without_jobs_is_well(rig: Rig) -> None:
    rig.look(50)

    assert rig.said == []


def test_an_engine_that_finishes_a_unit_now_and_then_is_well(rig: Rig) -> None:
    rig.jobs = 1

    for _ in range(5):
        rig.look(9)
        rig.engine.units += 1

    assert rig.said == []


def test_jobs_that_wait_now_and_then_are_not_one_that_waits_long(rig: Rig) -> None:
    for _ in range(5):
        rig.jobs = 1
        rig.look(9)
        rig.jobs = 0
        rig.look(1)

    assert rig.said == []


def test_an_engine_that_hangs_does_so_until_it_finishes_something(rig: Rig) -> None:
    """Its jobs are ended, so nobody waits any more; that makes it no better."""
    rig.jobs = 1
    rig.look(10)

    rig.jobs = 0
    rig.look(20)
    between = rig.watch.is_stalled
    rig.engine.units += 1
    rig.look(1)

    assert (between, rig.said) == (True, [True, False])


async def test_a_pause_of_the_process_is_none_of_the_engine() -> None:
    """Ten looks make a stall, and a process that was stopped has not looked."""
    clock = LoopClock()
    rig = Rig()
    rig.jobs = 1
    running = asyncio.ensure_future(rig.watch.run())
    await a_few_turns()

    clock.advance(60)
    await a_few_turns()
    running.cancel()
    await asyncio.wait([running])

    assert rig.said == []
    assert repr(rig.watch) == "<EngineWatch well>"
