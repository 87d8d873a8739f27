"""Commands of many requests share round trips, and none of them notices."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

import pytest

from controlplane.errors import StoreError, StoreTimeout, StoreUnavailable
from controlplane.store import gather as gather_module
from controlplane.store.calls import Calls
from controlplane.store.connections import Reply
from controlplane.store.gather import Gatherer
from controlplane.store.scripts import Command


class Round:
    """Round trips that end when the test says so; each command is answered with itself."""

    def __init__(self) -> None:
        self.trips: list[list[Command]] = []
        self.go = asyncio.Event()
        self.error: StoreError | None = None

    async def ask_all(
        self, what: str, commands: Sequence[Command], *, timeout_s: float
    ) -> list[Reply]:
        assert (what, timeout_s) == ("reserve", 0.05)
        self.trips.append([*commands])
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return [*commands]

    async def ask_one(self, what: str, command: Command, *, timeout_s: float) -> Reply:
        (reply,) = await self.ask_all(what, (command,), timeout_s=timeout_s)
        return reply


@pytest.fixture
async def trips() -> Round:
    return Round()


@pytest.fixture
async def gatherer(trips: Round) -> Gatherer:
    return Gatherer(cast("Calls", trips), "reserve", timeout_s=0.05)


def start(gatherer: Gatherer, count: int) -> list[asyncio.Task[Reply]]:
    """Callers in one turn of the loop."""
    return [asyncio.ensure_future(gatherer.ask((number,))) for number in range(count)]


async def a_few_turns() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


async def test_a_command_that_is_alone_goes_at_once(gatherer: Gatherer, trips: Round) -> None:
    trips.go.set()

    assert await gatherer.ask((1,)) == (1,)
    assert await gatherer.ask((2,)) == (2,)
    assert trips.trips == [[(1,)], [(2,)]]


async def test_commands_that_come_together_go_together(gatherer: Gatherer, trips: Round) -> None:
    """But for the first, which could not know that others would come."""
    callers = start(gatherer, 4)
    await a_few_turns()
    assert trips.trips == [[(0,)], [(1,), (2,), (3,)]]

    trips.go.set()

    assert await asyncio.gather(*callers) == [(0,), (1,), (2,), (3,)]
    assert repr(gatherer) == "<Gatherer of reserve, 0 waiting>"


async def test_a_round_trip_has_a_bound(
    gatherer: Gatherer, trips: Round, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gather_module, "_BATCH_MAX", 2)
    callers = start(gatherer, 6)
    await a_few_turns()
    trips.go.set()

    assert await asyncio.gather(*callers) == [(number,) for number in range(6)]
    assert [len(trip) for trip in trips.trips] == [1, 2, 2, 1]


async def test_an_error_of_the_store_is_everybodys(gatherer: Gatherer, trips: Round) -> None:
    trips.error = StoreTimeout("slow")
    callers = start(gatherer, 3)

    trips.go.set()

    assert [type(error) for error in await asyncio.gather(*callers, return_exceptions=True)] == [
        StoreTimeout
    ] * 3


async def test_a_caller_that_leaves_takes_nobody_with_it(gatherer: Gatherer, trips: Round) -> None:
    callers = start(gatherer, 3)
    await a_few_turns()

    callers[0].cancel()
    callers[1].cancel()
    await a_few_turns()
    trips.go.set()

    assert await callers[2] == (2,)
    assert trips.trips == [[(0,)], [(1,), (2,)]]


async def test_nobody_waits_for_a_round_trip_that_was_given_up(
    gatherer: Gatherer, trips: Round
) -> None:
    """When the loop ends, for example."""
    callers = start(gatherer, 2)
    await a_few_turns()

    for task in gatherer._tasks:
        task.cancel()

    with pytest.raises(StoreUnavailable):
        await callers[1]
    trips.go.set()
    assert await callers[0] == (0,)
