"""Both services on the reference engine, interrupted anywhere: nothing wrong, nothing left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from random import Random

import pytest
from router_builders import a_few_turns
from worker_builders import (
    PrefillSide,
    Sent,
    a_decode_job_for,
    a_prefill_side,
    a_prompt,
    an_identity,
    until,
)

from controlplane.config import KvConfig, ModelConfig
from controlplane.errors import PrfaasError
from controlplane.wire import FrameKind
from workers.decode_service import DecodeService
from workers.engines.reference.engine import ReferenceEngine
from workers.links import LinkMeters
from workers.metrics import WorkerMetrics

MODEL = ModelConfig(layers=4, context_tokens_max=512, cache_tokens_max=256, decode_slots=2)
OUTPUT_TOKENS = 6


class Pair:
    """A prefill and a decode worker."""

    def __init__(self, prefill: PrefillSide, engine: ReferenceEngine) -> None:
        self.prefill = prefill
        self.engine = engine
        self.decode = DecodeService(
            engine,
            an_identity("decode", datacenter="east"),
            KvConfig(),
            WorkerMetrics(),
            requests_max=100,
            links=LinkMeters("east"),
        )

    async def answer(self, request_id: str, length: int) -> bytes:
        """A whole request; the bytes for its client."""
        prompt, sent = a_prompt(length), Sent()
        location = await self.prefill.accept(prompt, request_id=request_id)
        job = a_decode_job_for(location, output_tokens_max=OUTPUT_TOKENS)
        await self.decode.run(job, prompt, sent)
        assert sent.frames[-1][0] is FrameKind.REPORT
        assert sent.report["prompt_tokens_computed"] == 1
        return sent.content


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    """Both engines and the segments are checked when everything has ended."""
    engine = ReferenceEngine(MODEL)
    prefill_engine = ReferenceEngine(MODEL)
    async with a_prefill_side(prefill_engine, requests_max=100) as prefill:
        pair = Pair(prefill, engine)
        yield pair
        await until(lambda: pair.decode.jobs == 0 and prefill.service.jobs == 0)
        await until(lambda: prefill.kv.connections == 0)
        engine.check_integrity()
    await engine.close()
    await prefill_engine.close()
    engine.check_integrity()


@pytest.mark.parametrize("seed", range(4))
async def test_requests_that_are_interrupted_harm_no_other(pair: Pair, seed: int) -> None:
    """Aborted, cancelled, late: those that are left alone answer as if they had been alone."""
    rng = Random(seed)
    lengths = [rng.choice((1, 2, 64, 65, 130, 200)) for _ in range(20)]
    expected = {
        length: await pair.answer(f"alone-{length}.1", length) for length in sorted(set(lengths))
    }
    fates = [rng.choice(("none", "none", "abort", "cancel")) for _ in lengths]

    running = [
        asyncio.ensure_future(pair.answer(f"req-{number}.1", length))
        for number, length in enumerate(lengths)
    ]
    for number in rng.sample(range(len(lengths)), len(lengths)):
        await a_few_turns(rng.randrange(40))
        if fates[number] == "abort":
            pair.prefill.service.abort(f"req-{number}.1")
        elif fates[number] == "cancel":
            running[number].cancel()
    ends = await asyncio.gather(*running, return_exceptions=True)
    for number in range(len(lengths)):
        # What a router does for every request that did not end well.
        pair.prefill.service.abort(f"req-{number}.1")

    for length, fate, end in zip(lengths, fates, ends, strict=True):
        if isinstance(end, bytes):
            assert end == expected[length]
        else:
            kind = {"abort": PrfaasError, "cancel": asyncio.CancelledError}[fate]
            assert isinstance(end, kind), repr(end)
    # A writer that was stopped lets go with its task's next turn, not inside `abort`.
    await until(lambda: pair.prefill.segments.held_bytes == 0)
