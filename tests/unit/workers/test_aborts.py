"""A router leaves at any stage: within a second nothing computes or is held for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from functools import partial

import pytest
from builders import a_beat
from engine_builders import compute_held
from worker_builders import (
    PrefillSide,
    a_decode_job_for,
    a_prefill_side,
    a_prompt,
    an_identity,
)

from controlplane.config import KvConfig, LimitsConfig, ModelConfig
from controlplane.domain.tokens import TokenIds
from controlplane.router.http_workers import HttpDecodeStream, HttpWorkerClient
from controlplane.serving import listen
from controlplane.wire import FrameKind, KvLocation
from workers.decode_service import DecodeService
from workers.engines.reference.engine import ReferenceEngine
from workers.links import LinkMeters
from workers.metrics import WorkerMetrics
from workers.server import Desk, WorkerServer

#: Whatever it works for here would go on for ever, or for the 30 s of a lease. How long it takes
#: in a fleet of processes is measured by `make chaos`.
ABORT_S = 10.0
#: No cache, so that every byte that is held is held for a request.
MODEL = ModelConfig(layers=4, context_tokens_max=1024, cache_tokens_max=0, decode_slots=1)
PROMPT = a_prompt(300)


class Pair:
    """A prefill and a decode worker behind the production's listener, and a router's client."""

    def __init__(self, prefill: PrefillSide, stack: AsyncExitStack) -> None:
        self.prefill = prefill
        self.engine = ReferenceEngine(MODEL)
        self.service = DecodeService(
            self.engine,
            an_identity("decode", datacenter="east"),
            KvConfig(),
            WorkerMetrics(),
            requests_max=8,
            links=LinkMeters("east"),
        )
        self.client = HttpWorkerClient(LimitsConfig())
        self.stack = stack
        self.urls = {"prefill": "", "decode": ""}

    async def start(self) -> None:
        """Listen."""
        for role in ("prefill", "decode"):
            server = WorkerServer(
                desk=partial(
                    Desk,
                    beat=a_beat,
                    prefill=self.prefill.service if role == "prefill" else None,
                    decode=self.service if role == "decode" else None,
                ),
                metrics=WorkerMetrics(),
                refresh_metrics=lambda: None,
                alive_interval_s=60,
            )
            self.urls[role] = await listen(self.stack, server.application(), "127.0.0.1", 0)
        self.stack.push_async_callback(self.client.close)

    async def locate(self, request_id: str = "req-1.1", tokens: TokenIds = PROMPT) -> KvLocation:
        """A prefill job."""
        job = self.prefill.job(request_id, deadline_s=60)
        return await self.client.prefill(self.urls["prefill"], job, tokens)

    async def stream(
        self, location: KvLocation, tokens: TokenIds = PROMPT, output_tokens_max: int = 700
    ) -> HttpDecodeStream:
        """A decode job."""
        job = a_decode_job_for(location, output_tokens_max=output_tokens_max)
        return await self.client.decode(self.urls["decode"], job, tokens)

    def is_decode_free(self) -> bool:
        """Whether the decode worker holds nothing and computes nothing."""
        load = self.engine.load()
        return (self.service.jobs, load.queue_requests, load.kv_bytes) == (0, 0, 0)

    def is_prefill_free(self) -> bool:
        """Whether the prefill worker holds nothing, segments included, and computes nothing."""
        load = self.prefill.engine.load()
        held = (self.prefill.service.jobs, load.queue_requests, load.kv_bytes)
        return (*held, self.prefill.segments.held_bytes, self.prefill.kv.connections) == (0,) * 5

    def is_free(self) -> bool:
        """Whether nothing is left anywhere."""
        return self.is_decode_free() and self.is_prefill_free()


@asynccontextmanager
async def a_pair(config: KvConfig) -> AsyncIterator[Pair]:
    """Both workers; at the end their engines are checked and closed."""
    engine = ReferenceEngine(MODEL)
    async with a_prefill_side(engine, config=config) as prefill, AsyncExitStack() as stack:
        pair = Pair(prefill, stack)
        await pair.start()
        yield pair
    for one in (pair.engine, engine):
        one.check_integrity()
        await one.close()


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    """With the leases of production: no test here waits for one to end."""
    async with a_pair(KvConfig()) as pair:
        yield pair


async def until(is_true: Callable[[], bool], within_s: float = 10.0) -> float:
    """Seconds until something was true; fails when it is not in time."""
    start_s = time.monotonic()
    while not is_true():
        assert time.monotonic() - start_s < within_s, "not in time"
        await asyncio.sleep(0.001)
    return time.monotonic() - start_s


async def is_gone_in_time(pair: Pair, leave: Callable[[], Awaitable[None] | None]) -> None:
    """What is promised, with the engines' own books."""
    went = leave()
    if went is not None:
        await went
    await until(pair.is_free, within_s=ABORT_S)
    pair.engine.check_integrity()
    pair.prefill.engine.check_integrity()
    pair.prefill.segments.check_integrity()


# --- Decode ----------------------------------------------------------------------------------


@pytest.mark.parametrize("waits_for", ["the first block", "a block in the middle"])
async def test_a_router_that_leaves_while_kv_is_computed_stops_both_workers(
    pair: Pair, waits_for: str
) -> None:
    """Nobody tells the prefill worker but the reader that has gone."""
    sequences: list[object] = []
    with ExitStack() as held:
        if waits_for == "the first block":
            held.enter_context(compute_held(pair.prefill.engine))
        location = await pair.locate()
        if waits_for != "the first block":
            # In the order of the thread's queue: one block, then the gate.
            held.enter_context(compute_held(pair.prefill.engine))
        stream = await pair.stream(location)
        await until(lambda: pair.prefill.kv.connections == 2 and pair.service.jobs == 1)
        sequences += pair.engine._sequences

        await is_gone_in_time(pair, stream.close)

    assert len(sequences) == 1


async def test_a_router_that_leaves_while_its_prefill_is_queued_stops_both_workers(
    pair: Pair,
) -> None:
    """Behind another prompt, which goes on."""
    with compute_held(pair.prefill.engine):
        await pair.locate("req-0.1")
        stream = await pair.stream(await pair.locate())
        await until(lambda: pair.prefill.kv.connections == 2)

        stream.close()
        await until(lambda: pair.prefill.service.jobs == 1, within_s=ABORT_S)
        await until(pair.is_decode_free, within_s=ABORT_S)

    await pair.client.abort_prefill(pair.urls["prefill"], "req-0.1")
    await until(pair.is_free)


async def test_a_router_that_leaves_while_its_job_waits_for_a_slot_frees_its_kv(
    pair: Pair,
) -> None:
    """All its KV is there; another request has the slot and keeps it."""
    running = await pair.stream(await pair.locate("req-0.1"))
    await until(lambda: len(pair.engine._scheduler.running) == 1)
    waiting = await pair.stream(await pair.locate())
    await until(lambda: len(pair.engine._scheduler.waiting) == 1)
    # What waits is here: a job fetches, and renews, from its arrival on, slot or no slot.
    await until(lambda: pair.prefill.segments.held_bytes == 0)

    waiting.close()
    await until(
        lambda: pair.service.jobs == 1 and not pair.engine._scheduler.waiting, within_s=ABORT_S
    )

    assert len(pair.engine._sequences) == 1
    await is_gone_in_time(pair, running.close)


@pytest.mark.parametrize("is_held", [False, True], ids=["computing", "in a long step"])
async def test_a_router_that_leaves_while_tokens_come_stops_the_engine(
    pair: Pair, *, is_held: bool
) -> None:
    """Even while the compute thread is busy with its step."""
    stream = await pair.stream(await pair.locate())
    frames = await stream.frames()
    assert frames[0][0] is FrameKind.CONTENT
    with ExitStack() as held:
        if is_held:
            held.enter_context(compute_held(pair.engine))

        await is_gone_in_time(pair, stream.close)

    counted = pair.engine.counters().output_tokens_total
    await asyncio.sleep(0.05)
    assert pair.engine.counters().output_tokens_total == counted < 700


async def test_a_router_that_is_killed_stops_all_its_streams(pair: Pair) -> None:
    """All connections break at once, at every stage at once."""
    with compute_held(pair.prefill.engine):
        streams = [await pair.stream(await pair.locate(f"req-{number}.1")) for number in range(3)]
        await until(lambda: pair.prefill.kv.connections == 6)

        def kill() -> None:
            for stream in streams:
                stream.break_off()

        await is_gone_in_time(pair, kill)


# --- Prefill ---------------------------------------------------------------------------------


async def test_a_prefill_that_is_aborted_in_the_queue_is_gone(pair: Pair) -> None:
    """It never begins; the one before it goes on."""
    with compute_held(pair.prefill.engine):
        await pair.locate("req-0.1")
        await pair.locate()

        await pair.client.abort_prefill(pair.urls["prefill"], "req-1.1")
        await until(lambda: pair.prefill.service.jobs == 1, within_s=ABORT_S)

        assert len(pair.prefill.engine._scheduler.prefills) == 1
        await pair.client.abort_prefill(pair.urls["prefill"], "req-0.1")
    await until(pair.is_free)


async def test_a_prefill_that_is_aborted_while_it_computes_is_gone(pair: Pair) -> None:
    """Its block is thrown away."""
    await pair.locate()
    with compute_held(pair.prefill.engine):
        await until(lambda: pair.prefill.engine.load().running == 1)

        await is_gone_in_time(
            pair, lambda: pair.client.abort_prefill(pair.urls["prefill"], "req-1.1")
        )


async def test_a_prefill_that_is_aborted_when_it_is_finished_is_gone(pair: Pair) -> None:
    """Nobody has read it."""
    await pair.locate()
    await until(lambda: pair.prefill.service.jobs == 0)
    assert pair.prefill.segments.held_bytes > 0

    await is_gone_in_time(pair, lambda: pair.client.abort_prefill(pair.urls["prefill"], "req-1.1"))


@pytest.mark.parametrize("stage", ["queued", "computing", "finished"])
async def test_a_prefill_whose_router_died_before_its_decode_is_gone_with_its_first_lease(
    stage: str,
) -> None:
    """Half a second here, five in production: no word ever comes."""
    async with a_pair(KvConfig(unread_lease_s=0.5)) as pair:
        with ExitStack() as held:
            if stage != "finished":
                held.enter_context(compute_held(pair.prefill.engine))
            if stage == "queued":
                await pair.locate("req-0.1")
            await pair.locate()
            if stage == "finished":
                await until(lambda: pair.prefill.service.jobs == 0)

            await is_gone_in_time(pair, lambda: None)

        assert pair.prefill.segments.counters.expired_total == (2 if stage == "queued" else 1)
