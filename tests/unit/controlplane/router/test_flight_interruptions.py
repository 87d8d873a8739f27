"""A client that leaves, or time that is over, wherever a request waits: nothing is held for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeAlias

import pytest
from output_builders import ALIVE, DONE, the_end, told
from router_builders import (
    DECODE_1,
    DECODE_2,
    EAST_1,
    EAST_2,
    MemoryRouter,
    MemorySink,
    a_few_turns,
    a_router,
    at_the_decode_worker,
    at_the_prefill_worker,
    on_the_way_from_the_store,
    on_the_way_to_the_store,
    url_of,
)

from controlplane.config import LimitsConfig
from controlplane.errors import DeadlineExceeded, WorkerLost, WorkerRefused
from controlplane.router.memory_workers import Gate
from controlplane.router.records import DecisionRecord

#: Sets up where a request is held, and returns the gate; None where it waits for a time.
Hold: TypeAlias = Callable[[MemoryRouter, MemorySink], Gate | None]

BROKEN = [[told(11)], WorkerLost("reset")]
LIMITS = LimitsConfig(
    coalesce_tokens_min=64, redispatch_max=4, retry_floor=1, retry_wait_s=30.0, retry_pause_s=15.0
)


class Arming(Gate):
    """Stops nobody; whoever passes it makes the next reservation wait."""

    def __init__(self, router: MemoryRouter, gate: Gate) -> None:
        super().__init__()
        self._router = router
        self._gate = gate

    async def wait(self) -> None:
        self._router.store.before["reserve"].append(self._gate)


def while_it_is_asked_who_has_died(router: MemoryRouter, _: MemorySink) -> Gate:
    router.workers.on_prefill(url_of(EAST_1), WorkerLost("reset"))
    router.workers.on_probe(url_of(EAST_1), gate := Gate())
    return gate


def waiting_for_a_place_among_retries(router: MemoryRouter, _: MemorySink) -> None:
    """Another request has the only one."""
    router.workers.on_prefill(url_of(EAST_1), WorkerRefused("full"))
    take_the_place(router)


def pausing_before_another_round(router: MemoryRouter, _: MemorySink) -> None:
    for worker_id in (DECODE_1, DECODE_2):
        router.workers.on_decode(url_of(worker_id), WorkerRefused("full"))


def with_a_place_among_retries(router: MemoryRouter, _: MemorySink) -> Gate:
    router.workers.on_prefill(url_of(EAST_1), WorkerRefused("full"))
    router.workers.on_prefill(url_of(EAST_2), gate := Gate())
    return gate


def before_the_first_token(router: MemoryRouter, _: MemorySink) -> Gate:
    router.workers.on_decode(url_of(DECODE_1), stream=[[ALIVE], gate := Gate()])
    return gate


def sending_headers(router: MemoryRouter, sink: MemorySink) -> Gate:
    router.workers.on_decode(url_of(DECODE_1), stream=[[told(11)]])
    sink.steps["begin"].append(gate := Gate())
    return gate


def sending_a_token(router: MemoryRouter, sink: MemorySink) -> Gate:
    router.workers.on_decode(url_of(DECODE_1), stream=[[told(11)]])
    sink.steps["write"].append(gate := Gate())
    return gate


def between_tokens(router: MemoryRouter, _: MemorySink) -> Gate:
    router.workers.on_decode(url_of(DECODE_1), stream=[[told(11)], gate := Gate()])
    return gate


def between_the_end_and_its_report(router: MemoryRouter, _: MemorySink) -> Gate:
    router.workers.on_decode(url_of(DECODE_1), stream=[[told(11)], [the_end()], gate := Gate()])
    return gate


# --- While a stream moves ---------------------------------------------------------------------


def while_it_is_asked_whether_the_decode_worker_has_died(
    router: MemoryRouter, _: MemorySink
) -> Gate:
    router.workers.on_decode(url_of(DECODE_1), stream=BROKEN)
    router.workers.on_probe(url_of(DECODE_1), gate := Gate())
    return gate


def waiting_to_move(router: MemoryRouter, _: MemorySink) -> None:
    """Another request has the only place."""
    router.workers.on_decode(url_of(DECODE_1), stream=BROKEN)
    take_the_place(router)


def reserving_to_move(router: MemoryRouter, _: MemorySink) -> Gate:
    gate = Gate()
    arming = Arming(router, gate)
    router.workers.on_decode(url_of(DECODE_1), stream=[[told(11)], arming, WorkerLost("reset")])
    return gate


def prefilling_to_move(router: MemoryRouter, _: MemorySink) -> Gate:
    router.workers.on_decode(url_of(DECODE_1), stream=BROKEN)
    router.workers.on_prefill(url_of(EAST_1))
    router.workers.on_prefill(url_of(EAST_1), gate := Gate())
    return gate


def at_the_worker_it_moves_to(router: MemoryRouter, _: MemorySink) -> Gate:
    router.workers.on_decode(url_of(DECODE_1), stream=BROKEN)
    router.workers.on_decode(url_of(DECODE_2), gate := Gate())
    return gate


def before_the_first_token_where_it_moved_to(router: MemoryRouter, _: MemorySink) -> Gate:
    router.workers.on_decode(url_of(DECODE_1), stream=BROKEN)
    router.workers.on_decode(url_of(DECODE_2), stream=[[ALIVE], gate := Gate()])
    return gate


def between_tokens_where_it_moved_to(router: MemoryRouter, _: MemorySink) -> Gate:
    router.workers.on_decode(url_of(DECODE_1), stream=BROKEN)
    router.workers.on_decode(url_of(DECODE_2), stream=[[told(12)], gate := Gate()])
    return gate


def pausing_with_output(router: MemoryRouter, _: MemorySink) -> None:
    router.workers.on_decode(url_of(DECODE_1), stream=BROKEN)
    router.workers.on_decode(url_of(DECODE_2), WorkerRefused("full"))


def take_the_place(router: MemoryRouter) -> None:
    """Somebody else retries."""
    taking = router.services.retry_budget.take(0)
    with pytest.raises(StopIteration):
        taking.send(None)


#: Where a request waits; prefill jobs that must be stopped; tokens were shown; how the attempt that
#: was the last had ended already, if it had.
WAITS: list[tuple[Hold, int, bool, str]] = [
    (on_the_way_to_the_store, 0, False, ""),
    (on_the_way_from_the_store, 0, False, ""),
    (at_the_prefill_worker, 1, False, ""),
    (while_it_is_asked_who_has_died, 1, False, "PrefillWorkerLost"),
    (waiting_for_a_place_among_retries, 0, False, "PrefillRefused"),
    (pausing_before_another_round, 2, False, "NoPlacement"),
    (with_a_place_among_retries, 1, False, ""),
    (at_the_decode_worker, 1, False, ""),
    (before_the_first_token, 1, False, ""),
    (sending_headers, 1, False, ""),
    (sending_a_token, 1, True, ""),
    (between_tokens, 1, True, ""),
    (between_the_end_and_its_report, 1, True, ""),
    (while_it_is_asked_whether_the_decode_worker_has_died, 1, True, "DecodeWorkerLost"),
    (waiting_to_move, 1, True, "DecodeWorkerLost"),
    (reserving_to_move, 1, True, ""),
    (prefilling_to_move, 2, True, ""),
    (at_the_worker_it_moves_to, 2, True, ""),
    (before_the_first_token_where_it_moved_to, 2, True, ""),
    (between_tokens_where_it_moved_to, 2, True, ""),
    (pausing_with_output, 2, True, "NoPlacement"),
]
waits = pytest.mark.parametrize(
    ("hold", "jobs", "has_begun", "ended_by"), WAITS, ids=[wait[0].__name__ for wait in WAITS]
)


async def held(router: MemoryRouter, sink: MemorySink, hold: Hold) -> asyncio.Task[object]:
    """A request with a key that waits where it should; the place of somebody else is given back."""
    gate = hold(router, sink)
    running = router.send(sink, idempotency_key="k", digest="d")
    if gate is not None:
        await gate.reached()
    else:
        await a_few_turns(60)
    assert not running.done()
    return running


def somebody_else_is_over(router: MemoryRouter, hold: Hold) -> None:
    if hold in {waiting_for_a_place_among_retries, waiting_to_move}:
        router.services.retry_budget.give_back()


async def is_free(router: MemoryRouter) -> bool:
    """Whether another router may run the request now."""
    claim = await router.store.claim_key("k", owner="east/router-1", digest="d", ttl_s=6.0)
    return claim == "granted"


def ended(record: DecisionRecord) -> str:
    return record.attempts[-1].ended_by


@waits
async def test_a_client_that_leaves_cancels_everything(
    hold: Hold, jobs: int, ended_by: str, *, has_begun: bool
) -> None:
    """One record says so, no error is told to nobody, and its key is free."""
    async with a_router(can_resume=True, limits=LIMITS) as router:
        sink = MemorySink()
        running = await held(router, sink, hold)

        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        somebody_else_is_over(router, hold)

        record = await router.record()
        assert (record.outcome, record.code) == ("cancelled", "client_gone")
        assert ended(record) == (ended_by or "ClientGone")
        assert record.story[-1] == "ClientGone"
        assert len(router.workers.of_kind("abort")) == jobs
        assert sink.is_begun == has_begun
        assert not sink.errors
        assert DONE not in sink.body
        assert await is_free(router)


@waits
async def test_a_deadline_ends_a_request_wherever_it_waits(
    hold: Hold, jobs: int, ended_by: str, *, has_begun: bool
) -> None:
    """A status where nothing was sent, one error event where something was; never [DONE]."""
    async with a_router(can_resume=True, limits=LIMITS) as router:
        sink = MemorySink()
        gate = hold(router, sink)
        running = router.send(sink, idempotency_key="k", digest="d", deadline_s=router.clock() + 5)
        await (gate.reached() if gate is not None else a_few_turns(60))

        router.clock.advance(6)
        flight = await running
        somebody_else_is_over(router, hold)

        record = await router.record()
        assert isinstance(flight.error, DeadlineExceeded)
        assert (record.outcome, record.code) == ("failed", "deadline_exceeded")
        assert ended(record) == (ended_by or "DeadlinePassed")
        assert len(router.workers.of_kind("abort")) == jobs
        assert sink.errors == ([flight.error] if has_begun else [])
        assert DONE not in sink.body
        assert await is_free(router)


# --- Waiting for another request's prefix -----------------------------------------------------


async def test_a_request_that_waits_for_a_prefix_can_be_left() -> None:
    """The one that computes it goes on, and the one that waits holds nothing."""
    async with a_router(can_resume=True, limits=LIMITS) as router:
        gate = at_the_prefill_worker(router, MemorySink())
        first = router.send()
        await gate.reached()
        second = router.send(idempotency_key="k", digest="d")
        await a_few_turns()
        waiting = router.services.coalescing.waiters

        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        gate.open()
        await first

        records = {record.request_id: record for record in await router.records()}
        assert waiting == 1
        assert records["req-1"].story == ("ClientGone",)
        assert records["req-1"].attempts == ()
        assert records["req-0"].outcome == "done"
        assert await is_free(router)


async def test_a_deadline_ends_a_wait_for_a_prefix() -> None:
    async with a_router(can_resume=True, limits=LIMITS) as router:
        gate = at_the_prefill_worker(router, MemorySink())
        first = router.send()
        await gate.reached()
        second = router.send(deadline_s=router.clock() + 5)
        await a_few_turns()

        router.clock.advance(6)
        flight = await second
        gate.open()
        await first

        assert isinstance(flight.error, DeadlineExceeded)
        assert len(router.workers.of_kind("prefill")) == 1


async def test_a_request_whose_time_is_over_when_it_comes_asks_nobody() -> None:
    """Not even the policy: there is no attempt to tell of."""
    async with a_router(can_resume=True, limits=LIMITS) as router:
        for length in (10, 101):
            flight = await router.serve(text="x" * length, deadline_s=router.clock() - 0.001)

            assert isinstance(flight.error, DeadlineExceeded)
        assert [record.attempts for record in await router.records()] == [(), ()]
        assert not router.workers.calls
