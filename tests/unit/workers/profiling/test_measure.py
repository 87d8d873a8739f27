"""Profiles of a server whose times are known, because it is a fake one."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from fakes.vllm import BYTES_PER_TOKEN, FakeVllm, NixlWorld, a_vllm

from controlplane.domain.throughput.profile import KvSize
from controlplane.errors import ConfigError, PrfaasError
from controlplane.profilefile import ProfileFile
from workers.app import measurable
from workers.profiling.measure import Measured, Options, measure, profile_of
from workers.profiling.server import MeasurableServer

#: Long enough that what the event loop does besides is little of it.
PREFILL_S_PER_TOKEN = 40e-6
STEP_S_PER_STREAM = 4e-3
QUICK: dict[str, Any] = {
    "lengths": (500, 1000, 2000),
    "tpot_s": 0.05,
    "steps": 4,
    "tolerance": 0.5,
    "runs_max": 4,
    "batch_max": 2,
}


def a_server(fake: FakeVllm) -> AbstractAsyncContextManager[MeasurableServer]:
    return measurable(fake.url, "", None)


async def measured(
    fake: FakeVllm, *, decode: FakeVllm | None = None, **options: Any
) -> tuple[Measured, ProfileFile]:
    chosen = Options(**(QUICK | options))
    async with a_server(fake) as server, a_server(decode or fake) as other:
        found = await measure(
            server, chosen, decode=other if decode else None, on_progress=lambda *_: None
        )
        size = KvSize(state_bytes=7.0, bytes_per_token=9.0)
        return found, profile_of(found, chosen, name="p", server=server, configured=size)


async def test_prefill_times_are_those_of_the_server() -> None:
    async with a_vllm(prefill_s_per_token=PREFILL_S_PER_TOKEN) as fake:
        _, profile = await measured(fake)

    assert profile.prefill is not None
    lengths, times_s = zip(*profile.prefill.table, strict=True)
    assert lengths == (500, 1000, 2000)
    assert times_s[2] - times_s[0] == pytest.approx(1500 * PREFILL_S_PER_TOKEN, rel=0.3)


async def test_steps_are_those_of_the_streams_that_run_side_by_side() -> None:
    async with a_vllm(step_s_per_stream=STEP_S_PER_STREAM) as fake:
        _, profile = await measured(fake, batch_max=4)

    assert profile.decode is not None
    steps_ms = dict(profile.decode.table)
    assert set(steps_ms) == {1, 2, 4}
    assert steps_ms[4] / steps_ms[1] == pytest.approx(4, rel=0.4)


async def test_a_batch_between_is_found_for_the_objective() -> None:
    async with a_vllm(step_s_per_stream=STEP_S_PER_STREAM) as fake:
        _, profile = await measured(fake, batch_max=64, tpot_s=6.4 * STEP_S_PER_STREAM)

    assert profile.decode is not None
    assert profile.decode.slots in {4, 5, 6}
    assert max(batch for batch, _ in profile.decode.table) == 8


async def test_a_server_too_slow_for_one_stream_has_its_one_stream() -> None:
    async with a_vllm(step_s_per_stream=STEP_S_PER_STREAM) as fake:
        _, profile = await measured(fake, tpot_s=0.0001)

    assert profile.decode is not None
    assert profile.decode.slots == 1
    assert profile.decode.step_ms > 1


async def test_a_full_server_ends_the_search() -> None:
    async with a_vllm(step_s_per_stream=STEP_S_PER_STREAM, slots=3) as fake:
        _, profile = await measured(fake, batch_max=64, tpot_s=1.0)

    assert profile.decode is not None
    assert profile.decode.slots == 2


async def test_bytes_are_counted_where_they_arrive() -> None:
    world = NixlWorld()
    async with a_vllm(world) as fake, a_vllm(world) as decode:
        found, profile = await measured(fake, decode=decode)

    assert found.kv_bytes[0] == (500, 500 * BYTES_PER_TOKEN)
    assert profile.model is not None
    assert profile.model.kv_bytes_per_token == pytest.approx(BYTES_PER_TOKEN)


async def test_without_a_decode_server_the_models_configuration_tells() -> None:
    async with a_vllm() as fake:
        _, profile = await measured(fake)

    assert profile.model is not None
    assert profile.model.kv_state_bytes == 7


async def test_no_two_prompts_are_alike() -> None:
    async with a_vllm() as fake:
        await measured(fake)

    prompts = [(tuple(body["prompt"]), body["cache_salt"]) for body in fake.bodies]
    assert len(set(prompts)) == len(prompts)


async def test_a_server_that_is_busy_is_refused() -> None:
    async with a_vllm() as fake:
        fake.running = 3
        with pytest.raises(ConfigError, match="3 requests running"):
            await measured(fake)


async def test_a_server_that_others_use_meanwhile_has_no_profile() -> None:
    async with a_vllm(strangers_tokens=400) as fake:
        with pytest.raises(ConfigError, match="others use it"):
            await measured(fake)


async def test_a_cache_that_answers_what_nobody_asked_before_is_refused() -> None:
    async with a_vllm() as fake:

        async def count() -> None:
            while not fake.bodies:  # noqa: ASYNC110 - there is nothing to wait for
                await asyncio.sleep(0)
            fake.sources["local_cache_hit"] += 64
            fake.sources["local_compute"] -= 64

        async with asyncio.TaskGroup() as group:
            group.create_task(count())
            with pytest.raises(ConfigError, match="prefix cache"):
                await measured(fake)


async def test_a_length_beyond_the_context_is_refused() -> None:
    async with a_vllm(context_tokens=1024) as fake:
        with pytest.raises(ConfigError, match="takes 1,024 tokens"):
            await measured(fake)


async def test_a_server_that_fails_is_named() -> None:
    async with a_vllm() as fake:
        fake.status = 500
        with pytest.raises(PrfaasError, match="answered 500"):
            await measured(fake)
