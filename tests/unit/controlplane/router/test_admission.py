"""Who may begin, who waits and who is refused, and that nobody is forgotten."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from builders import a_view, a_worker
from router_builders import LoopClock, a_few_turns

from controlplane.config import LimitsConfig
from controlplane.errors import DeadlineExceeded, Shed
from controlplane.observe.metrics import RouterMetrics
from controlplane.router.admission import Admission, decode_places


class Door:
    """An admission with a clock of its own and places that a test may change."""

    def __init__(self, *, places: int = 1, **limits: Any) -> None:
        self.clock = LoopClock()
        self.places = places
        self.metrics = RouterMetrics()
        self.admission = Admission(
            limits=LimitsConfig(**({"queue_requests_max": 8, "queue_wait_s": 10} | limits)),
            metrics=self.metrics,
            clock=self.clock,
            places=lambda: self.places,
        )

    def come(self, tenant: str = "a", *, within_s: float = 100.0) -> asyncio.Task[float]:
        """A request that asks for a place."""
        deadline_s = self.clock() + within_s
        return asyncio.ensure_future(self.admission.enter(tenant, deadline_s=deadline_s))

    async def later(self, seconds: float) -> None:
        self.clock.advance(seconds)
        await a_few_turns()

    def count(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


async def all_in(*tasks: asyncio.Task[float]) -> list[bool]:
    """Which of them have a place."""
    await a_few_turns()
    return [task.done() and task.exception() is None for task in tasks]


async def test_a_free_place_is_given_at_once() -> None:
    door = Door(places=2)

    assert await door.admission.enter("a", deadline_s=door.clock() + 1) == 0.0
    assert (door.admission.running, door.admission.waiting) == (1, 0)


async def test_whoever_finds_no_place_waits_until_one_is_given_back() -> None:
    door = Door()
    first, second = door.come(), door.come()
    assert await all_in(first, second) == [True, False]
    assert door.count("prfaas_queue_depth_requests") == 1
    await door.later(3)

    door.admission.leave()

    assert await second == pytest.approx(3, abs=0.2)
    assert door.count("prfaas_queue_depth_requests") == 0
    assert door.count("prfaas_queue_wait_seconds_count") == 2


async def test_tenants_get_places_in_turn() -> None:
    door = Door()
    served: list[str] = []

    async def serve(tenant: str) -> None:
        async with door.admission.place(tenant, deadline_s=door.clock() + 100):
            served.append(tenant)
            await asyncio.sleep(0)

    await asyncio.gather(*(serve(tenant) for tenant in "aaaaabbc"))

    assert "".join(served) == "aabcabaa", "the first a found a free place"
    assert (door.admission.running, door.admission.waiting) == (0, 0)


async def test_a_place_is_given_back_when_the_block_fails() -> None:
    door = Door()

    with pytest.raises(ZeroDivisionError):
        async with door.admission.place("a", deadline_s=door.clock() + 1):
            raise ZeroDivisionError

    assert door.admission.running == 0


async def test_nobody_waits_beyond_the_bound() -> None:
    door = Door(queue_wait_s=5)
    _, late = door.come(), door.come()
    await a_few_turns()

    await door.later(5.1)

    with pytest.raises(Shed, match=r"no place was free within 5\.\d s") as refusal:
        await late
    assert 1 <= (refusal.value.retry_after_s or 0) <= 15
    assert door.admission.waiting == 0
    assert door.count("prfaas_shed_total", cause="waited") == 1


async def test_a_request_whose_time_is_over_is_never_begun() -> None:
    """Also when its place comes in the same instant."""
    door = Door(queue_wait_s=5)
    _, hasty = door.come(), door.come(within_s=2)
    await a_few_turns()

    door.clock.advance(2)
    door.admission.leave()

    with pytest.raises(DeadlineExceeded):
        await hasty
    assert (door.admission.running, door.admission.waiting) == (0, 0)
    assert door.count("prfaas_shed_total", cause="deadline") == 1


async def test_one_more_than_may_wait_is_refused_at_once() -> None:
    door = Door(queue_requests_max=1)
    _, waiting, refused = door.come("a"), door.come("a"), door.come("a")
    await a_few_turns()

    with pytest.raises(Shed, match="1 requests run and 1 wait"):
        await refused
    assert not waiting.done()
    assert door.count("prfaas_shed_total", cause="full") == 1


async def test_a_greedy_tenants_newest_makes_room_for_another_tenant() -> None:
    door = Door(queue_requests_max=3)
    tasks = [door.come("a") for _ in range(4)]
    await a_few_turns()

    other = door.come("b")
    await a_few_turns()

    with pytest.raises(Shed, match="fewer waiting requests"):
        await tasks[3]
    assert [task.done() for task in (*tasks[:3], other)] == [True, False, False, False]
    assert door.count("prfaas_shed_total", cause="evicted") == 1


async def test_a_client_that_leaves_the_queue_leaves_nothing_behind() -> None:
    door = Door()
    first, leaver, last = door.come(), door.come(), door.come()
    await a_few_turns()

    leaver.cancel()
    await a_few_turns()
    assert door.admission.waiting == 1
    door.admission.leave()

    assert await all_in(first, last) == [True, True]
    door.admission.leave()
    assert (door.admission.running, door.admission.waiting) == (0, 0)


async def test_a_client_that_leaves_as_its_place_comes_passes_it_on() -> None:
    """In the one turn of the loop between the two."""
    door = Door()
    _, leaver, heir = door.come(), door.come(), door.come()
    await a_few_turns()

    door.admission.leave()
    leaver.cancel()

    assert await all_in(heir) == [True]
    assert leaver.cancelled()
    assert door.admission.running == 1


async def test_a_client_that_leaves_as_it_is_evicted_is_just_gone() -> None:
    """Nothing is complained about later."""
    door = Door(queue_requests_max=2)
    _, _, evicted = door.come("a"), door.come("a"), door.come("a")
    await a_few_turns()
    other = door.come("b")
    await asyncio.sleep(0)

    evicted.cancel()
    await a_few_turns()

    assert evicted.cancelled()
    assert door.admission.waiting == 2
    assert not other.done()


async def test_places_that_join_are_used_without_anybody_leaving() -> None:
    door = Door()
    first, second, third = door.come(), door.come(), door.come()
    await a_few_turns()

    door.places = 3
    await door.later(0.2)

    assert await all_in(first, second, third) == [True, True, True]


async def test_places_that_go_stop_new_requests_and_no_running_one() -> None:
    door = Door(places=2)
    first, second = door.come(), door.come()
    await a_few_turns()

    door.places = 1
    third = door.come()
    door.admission.leave()

    assert await all_in(first, second, third) == [True, True, False]
    door.admission.leave()
    assert await all_in(third) == [True]


async def test_a_refused_client_is_told_when_a_place_would_be_free() -> None:
    """From how fast requests have ended until now."""
    door = Door(queue_requests_max=9)
    for _ in range(200):
        async with door.admission.place("a", deadline_s=door.clock() + 100):
            door.clock.advance(0.5)
    for _ in range(10):
        door.come()
    await a_few_turns()

    refused = door.come()

    with pytest.raises(Shed) as refusal:
        await refused
    assert refusal.value.retry_after_s == pytest.approx(5, rel=0.1), "ten places, two a second"


async def test_giving_a_place_back_twice_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        Door().admission.leave()


# --- How many places --------------------------------------------------------------------------


def test_places_are_what_the_live_decode_workers_take() -> None:
    view = a_view(
        a_worker("west/p1", requests_max=100),
        a_worker("west/d1", requests_max=5),
        a_worker("west/d2", requests_max=7),
        a_worker("west/d3", requests_max=50, is_draining=True),
    )

    assert decode_places(view, requests_max=1000) == 12
    assert decode_places(view, requests_max=10) == 10


def test_without_workers_one_request_is_let_in_to_be_told_so() -> None:
    assert decode_places(a_view(a_worker("west/p1")), requests_max=1000) == 1
