"""Further attempts are a share of what is in flight: beyond that they wait, first come first served."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest
from router_builders import LoopClock, a_few_turns

from controlplane.router.retry_budget import RetryBudget


@dataclass
class Flights:
    """How many requests there are."""

    now: int = 0

    def __call__(self) -> int:
        return self.now


@pytest.fixture
async def clock() -> LoopClock:
    return LoopClock()


def a_budget(in_flight: int = 0, *, floor: int = 1, share: float = 0.2) -> RetryBudget:
    return RetryBudget(share=share, floor=floor, in_flight=Flights(in_flight))


def waiters(budget: RetryBudget, count: int, *, within_s: float = 10) -> list[asyncio.Task[bool]]:
    return [asyncio.ensure_future(budget.take(within_s)) for _ in range(count)]


@pytest.mark.parametrize(
    ("in_flight", "places"), [(0, 3), (15, 3), (19, 3), (20, 4), (24, 4), (100, 20)]
)
def test_the_limit_is_a_share_of_what_is_in_flight_and_never_below_the_floor(
    in_flight: int, places: int
) -> None:
    assert a_budget(in_flight, floor=3).limit == places


async def test_places_are_taken_up_to_the_limit_without_waiting() -> None:
    budget = a_budget(floor=2)

    taken = [await budget.take(0.001), await budget.take(0.001)]

    assert taken == [True, True]
    assert (budget.used, budget.waiting) == (2, 0)
    assert repr(budget) == "<RetryBudget 2 of 2, 0 waiting>"


async def test_one_more_waits_until_a_place_is_given_back() -> None:
    budget = a_budget()
    await budget.take(1)
    (waiting,) = waiters(budget, 1)
    await a_few_turns()
    before = (waiting.done(), budget.used, budget.waiting)

    budget.give_back()

    assert before == (False, 1, 1)
    assert await waiting
    assert (budget.used, budget.waiting) == (1, 0)


async def test_who_waits_longest_is_next() -> None:
    budget = a_budget()
    await budget.take(1)
    waiting = waiters(budget, 3)
    await a_few_turns()

    order = []
    for _ in waiting:
        budget.give_back()
        await a_few_turns()
        order.append([task.done() for task in waiting])

    assert order == [[True, False, False], [True, True, False], [True, True, True]]


async def test_nobody_overtakes_those_who_wait() -> None:
    """Also when the limit has grown meanwhile: the queue is served first."""
    flights = Flights(0)
    budget = RetryBudget(share=0.5, floor=1, in_flight=flights)
    await budget.take(1)
    (first,) = waiters(budget, 1)
    await a_few_turns()
    flights.now = 10

    (second,) = waiters(budget, 1)
    await a_few_turns()
    was_waiting = second.done(), first.done()
    budget.give_back()
    await a_few_turns()

    assert was_waiting == (False, False)
    assert first.done()
    assert second.done()
    assert budget.used == 2


async def test_who_has_waited_too_long_gets_none(clock: LoopClock) -> None:
    budget = a_budget()
    await budget.take(1)
    (waiting,) = waiters(budget, 1, within_s=10)
    await a_few_turns()

    clock.advance(11)

    assert not await waiting
    assert (budget.used, budget.waiting) == (1, 0)


async def test_a_place_that_comes_in_the_last_moment_is_used(clock: LoopClock) -> None:
    """Given and timed out in the same turn: it must not be lost."""
    budget = a_budget()
    await budget.take(1)
    (waiting,) = waiters(budget, 1, within_s=10)
    await a_few_turns()

    clock.advance(11)
    asyncio.get_running_loop().call_soon(budget.give_back)

    got = await waiting
    assert budget.used == int(got)


async def test_whoever_is_cancelled_while_it_waits_leaves_no_gap() -> None:
    budget = a_budget()
    await budget.take(1)
    first, second = waiters(budget, 2)
    await a_few_turns()

    first.cancel()
    await asyncio.wait([first])
    waiting = budget.waiting
    budget.give_back()

    assert waiting == 1
    assert await second


async def test_a_place_given_to_somebody_who_is_being_cancelled_goes_to_the_next() -> None:
    """Both happen in one turn of the loop."""
    budget = a_budget()
    await budget.take(1)
    first, second = waiters(budget, 2)
    await a_few_turns()

    budget.give_back()
    first.cancel()
    await asyncio.wait([first])

    assert first.cancelled()
    assert await second
    assert (budget.used, budget.waiting) == (1, 0)


async def test_a_place_is_not_given_to_somebody_who_has_just_been_cancelled() -> None:
    """It has not run since, and would be gone with it."""
    budget = a_budget()
    await budget.take(1)
    first, second = waiters(budget, 2)
    await a_few_turns()

    first.cancel()
    budget.give_back()
    await asyncio.wait([first])

    assert first.cancelled()
    assert await second
    assert (budget.used, budget.waiting) == (1, 0)


async def test_a_limit_that_has_shrunk_hands_out_nothing_until_it_is_met() -> None:
    flights = Flights(10)
    budget = RetryBudget(share=0.5, floor=1, in_flight=flights)
    for _ in range(5):
        await budget.take(1)
    (waiting,) = waiters(budget, 1)
    await a_few_turns()
    flights.now = 4

    seen = []
    for _ in range(4):
        budget.give_back()
        await a_few_turns()
        seen.append(waiting.done())

    assert seen == [False, False, False, True]
    assert budget.used == 2


def test_giving_back_what_nobody_took_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="more places"):
        a_budget().give_back()
