"""Further attempts wait for a place in the retry budget, and pause when everybody was tried."""

from __future__ import annotations

import asyncio

import pytest
from output_builders import DONE, text_of, told
from router_builders import (
    DECODE_1,
    DECODE_2,
    EAST_1,
    EAST_2,
    MemoryRouter,
    MemorySink,
    a_few_turns,
    a_router,
    url_of,
)

from controlplane.config import LimitsConfig
from controlplane.errors import WorkerLost, WorkerRefused
from controlplane.router.memory_workers import Gate, a_stream

ONE = LimitsConfig(retry_floor=1, retry_share=0.01, retry_wait_s=1.0)


def fails_once(router: MemoryRouter, *gates: Gate) -> None:
    """The first attempt is refused, and the second one waits at its prefill worker."""
    router.workers.on_prefill(url_of(EAST_1), WorkerRefused("full"))
    router.workers.on_prefill(url_of(EAST_2), *gates)


async def test_a_further_attempt_without_a_place_fails_with_what_went_wrong_before() -> None:
    """After its time in the queue; the client is told of the worker, not of the budget."""
    async with a_router(limits=ONE) as router:
        fails_once(router, gate := Gate())
        first = router.send()
        await gate.reached()
        router.workers.on_prefill(url_of(EAST_1), WorkerRefused("full, too"))
        second = router.send()
        await a_few_turns()
        waiting = router.services.retry_budget.waiting

        router.clock.advance(1.1)
        refused = await second
        gate.open()
        served = await first

        assert waiting == 1
        assert served.error is None
        assert isinstance(refused.error, WorkerRefused)
        assert refused.error.message.endswith("full, too")
        record = next(one for one in await router.records() if one.code != "ok")
        assert record.story[-2:] == ("PrefillRefused", "RetryDenied")
        assert [attempt.ended_by for attempt in record.attempts] == ["PrefillRefused"]


async def test_a_further_attempt_gives_its_place_to_the_next_with_its_first_token() -> None:
    """From there on it costs no more than any other request."""
    async with a_router(limits=ONE) as router:
        streaming = Gate()
        fails_once(router)
        router.workers.on_decode(url_of(DECODE_1), stream=[*a_stream()[:1], streaming, *a_stream()])
        first = router.send()
        await streaming.reached()

        used = router.services.retry_budget.used
        router.workers.on_prefill(url_of(EAST_1), WorkerRefused("full"))
        second = await router.serve()
        was_running = not first.done()
        streaming.open()
        await first

        assert used == 0
        assert was_running
        assert second.error is None


@pytest.mark.parametrize("gone", ["lost", "refused"])
async def test_a_further_attempt_that_fails_gives_its_place_back(gone: str) -> None:
    async with a_router(limits=ONE) as router:
        error = WorkerLost("reset") if gone == "lost" else WorkerRefused("full")
        for worker_id in (EAST_1, EAST_2):
            router.workers.on_prefill(url_of(worker_id), error)

        flight = await router.serve()

        assert flight.error is None
        assert router.services.retry_budget.used == 0


async def test_a_failure_of_many_requests_is_no_storm() -> None:
    """However many fail at once, so many further attempts run at the same time."""
    limits = LimitsConfig(retry_floor=2, retry_share=0.01, retry_wait_s=30.0)
    async with a_router(limits=limits) as router:
        for number in range(12):
            router.workers.on_prefill(url_of(EAST_1), WorkerRefused(str(number)))
        gates = [Gate() for _ in range(12)]
        for gate in gates:
            router.workers.on_prefill(url_of(EAST_2), gate)
        running = [router.send() for _ in gates]

        most = 0
        for done, gate in enumerate(gates):
            await gate.reached()
            await a_few_turns(40)
            asked = sum(call.url == url_of(EAST_2) for call in router.workers.of_kind("prefill"))
            most = max(most, asked - done)
            gate.open()
        flights = await asyncio.gather(*running)

        assert most == 2
        assert [flight.error for flight in flights] == [None] * 12


@pytest.mark.parametrize(("waited_s", "is_tried"), [(0.24, False), (0.76, True)])
async def test_everybody_is_tried_again_after_a_pause(waited_s: float, *, is_tried: bool) -> None:
    """Half a second, more or less by half: clients of one failure do not come back in step."""
    limits = LimitsConfig(redispatch_max=3, retry_pause_s=0.5)
    async with a_router(limits=limits) as router:
        for worker_id in (DECODE_1, DECODE_2):
            router.workers.on_decode(url_of(worker_id), WorkerRefused("full"))
        running = router.send()
        await a_few_turns(60)

        router.clock.advance(waited_s)
        await a_few_turns(60)
        decodes = len(router.workers.of_kind("decode"))
        router.clock.advance(1)
        flight = await running

        assert decodes == 2 + is_tried
        assert flight.error is None
        record = await router.record()
        ends = [attempt.ended_by for attempt in record.attempts]
        assert ends == ["DecodeRefused", "DecodeRefused", "NoPlacement", "ok"]
        assert record.attempts[-1].features.excluded == ()


async def test_a_pause_holds_no_place() -> None:
    """Others go on meanwhile."""
    limits = LimitsConfig(redispatch_max=3, retry_floor=1, retry_share=0.01, retry_pause_s=10.0)
    async with a_router(limits=limits) as router:
        for worker_id in (DECODE_1, DECODE_2):
            router.workers.on_decode(url_of(worker_id), WorkerRefused("full"))
        running = router.send()
        await a_few_turns(60)

        used = router.services.retry_budget.used
        running.cancel()
        await asyncio.wait([running])

        assert used == 0


async def test_attempts_after_a_pause_are_counted_too() -> None:
    """Nobody is there any more: the request fails after as many rounds as it may have."""
    limits = LimitsConfig(redispatch_max=3, retry_pause_s=0.1)
    async with a_router(limits=limits) as router:
        router.workers.on_prefill(url_of(EAST_1), gate := Gate(), WorkerLost("reset"))
        running = router.send()
        await gate.reached()
        for worker in router.tracker.view().workers:
            router.tracker.forget_incarnation(worker.worker_id, "i1")
        gate.open()
        for _ in range(5):
            await a_few_turns(20)
            router.clock.advance(0.2)
        flight = await running

        assert flight.error is not None
        record = await router.record()
        ends = [attempt.ended_by for attempt in record.attempts]
        assert ends == ["PrefillWorkerLost", "NoPlacement", "NoPlacement", "NoPlacement"]
        assert (record.outcome, record.code) == ("failed", "no_candidate")


async def test_a_stream_that_finds_no_place_is_told_so() -> None:
    async with a_router(can_resume=True, limits=ONE) as router:
        fails_once(router, gate := Gate())
        first = router.send()
        await gate.reached()
        sink = MemorySink()
        for worker_id in (DECODE_1, DECODE_2):
            router.workers.on_decode(url_of(worker_id), stream=[[told(1)], WorkerLost("reset")])
        second = router.send(sink)
        await a_few_turns(40)

        router.clock.advance(1.1)
        flight = await second
        gate.open()
        await first

        assert sink.body == text_of(1)
        assert DONE not in sink.body
        assert sink.errors == [flight.error]
        assert isinstance(flight.error, WorkerLost)
