"""Whole workers with the reference engine, on the store's twin: they come, serve, drain and go."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any

import aiohttp
import pytest
from builders import a_prefill_job
from engine_builders import compute_held
from router_builders import ScriptedStore, a_link_config
from worker_builders import a_decode_job_for, a_prompt, until

from controlplane.config import (
    DatacenterConfig,
    FleetConfig,
    HeartbeatConfig,
    ModelConfig,
    RouterConfig,
    WorkerConfig,
)
from controlplane.errors import ConfigError, WorkerRefused
from controlplane.router.http_workers import HttpDecodeStream, HttpWorkerClient
from controlplane.wire import FrameKind, WorkerBeat
from workers import app as app_module
from workers.app import RunningWorker, WorkerAddress, run_worker
from workers.engines.reference.engine import ReferenceEngine
from workers.identity import Identity

PROMPT = a_prompt(200)
#: Heartbeats that a test need not wait for.
QUICK = HeartbeatConfig(interval_s=0.05, timeout_s=0.5, ttl_s=5)
HERE = WorkerAddress(host="127.0.0.1")


def a_fleet(**sections: Any) -> FleetConfig:
    """East prefills, west decodes, with the smallest model."""
    values: dict[str, Any] = {
        "router": RouterConfig(datacenter="west"),
        "model": ModelConfig(layers=4, context_tokens_max=512, cache_tokens_max=1024),
        "datacenters": (
            DatacenterConfig(name="east", prefill_workers=1),
            DatacenterConfig(name="west", decode_workers=1),
        ),
        "links": (a_link_config(capacity_mbit_per_s=1000, emulated_delay_ms=0),),
    }
    return FleetConfig(**(values | sections))


@pytest.fixture
async def store() -> ScriptedStore:
    return ScriptedStore()


@pytest.fixture
async def client() -> AsyncIterator[HttpWorkerClient]:
    client = HttpWorkerClient(a_fleet().limits)
    yield client
    await client.close()


def a_worker(
    store: ScriptedStore,
    role: str,
    address: WorkerAddress = HERE,
    *,
    fleet: FleetConfig | None = None,
) -> AbstractAsyncContextManager[RunningWorker]:
    """A worker of this role, in its datacenter."""
    datacenter = "east" if role == "prefill" else "west"
    identity = Identity.new(datacenter=datacenter, name=f"{role}-0", role=role)  # type: ignore[arg-type]
    return run_worker(fleet or a_fleet(), store, identity, address)


async def beats(store: ScriptedStore) -> dict[str, WorkerBeat]:
    """Workers that the store knows."""
    return {beat.worker_id: beat for beat in (await store.snapshot()).beats}


async def until_registered(store: ScriptedStore) -> None:
    """Wait for a first heartbeat."""
    await until(lambda: "heartbeat" in store.calls)


def job_for(beat: WorkerBeat, request_id: str = "req-1.1") -> Any:
    """A prefill job that this worker takes."""
    return a_prefill_job(
        request_id=request_id, incarnation=beat.incarnation, fingerprint=beat.fingerprint
    )


async def samples(url: str) -> str:
    """A worker's metrics."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as answer:
        return await answer.text()


async def test_a_worker_registers_serves_and_says_goodbye(store: ScriptedStore) -> None:
    """With what the engine says of itself; nothing of it stays in the store."""
    async with a_worker(store, "prefill") as worker:
        await until_registered(store)
        (beat,) = (await beats(store)).values()

        assert (beat.worker_id, beat.role, beat.url) == ("east/prefill-0", "prefill", worker.url)
        assert (beat.requests_max, beat.slots) == (65, 1)
        assert beat.profile.prefill_s_per_token > 0
        assert worker.kv_port > 0

    assert await beats(store) == {}


async def test_two_workers_answer_a_request_together(
    store: ScriptedStore, client: HttpWorkerClient
) -> None:
    """KV from one process life to another; the decoder computed one token of the prompt."""
    async with a_worker(store, "prefill") as prefill, a_worker(store, "decode") as decode:
        await until(lambda: store.calls.count("heartbeat") >= 2)
        known = await beats(store)
        location = await client.prefill(prefill.url, job_for(known["east/prefill-0"]), PROMPT)
        job = a_decode_job_for(location, incarnation=known["west/decode-0"].incarnation)
        stream = await client.decode(decode.url, job, PROMPT)
        frames = []
        while batch := await stream.frames():
            frames += batch
        prefilled, decoded = await samples(prefill.url), await samples(decode.url)

    kind, report = frames[-1]
    assert kind is FrameKind.REPORT
    assert json.loads(report)["prompt_tokens_computed"] == 1
    assert json.loads(report)["prefill"]["computed_tokens"] == 199
    assert 'prfaas_prompt_tokens_computed{phase="prefill"} 199.0' in prefilled
    assert 'prfaas_prompt_tokens_computed{phase="decode"} 1.0' in decoded
    assert 'prfaas_kv_egress_bytes{to_dc="west"}' in prefilled
    assert "prfaas_leases_active 0.0" in prefilled


async def test_a_worker_that_is_stopped_lets_its_jobs_end(
    store: ScriptedStore, client: HttpWorkerClient
) -> None:
    """It says that it drains, refuses what is new, and goes when its segment was read."""
    async with AsyncExitStack() as stack:
        prefill = await stack.enter_async_context(a_worker(store, "prefill"))
        await until_registered(store)
        (beat,) = (await beats(store)).values()
        location = await client.prefill(prefill.url, job_for(beat), PROMPT)

        stopping = asyncio.ensure_future(stack.aclose())
        await until(lambda: store.calls.count("heartbeat") >= 2)
        while_draining = await beats(store)
        with pytest.raises(WorkerRefused, match="leaving"):
            await client.prefill(prefill.url, job_for(beat, "req-2.1"), PROMPT)
        was_done = stopping.done()
        await client.abort_prefill(prefill.url, "req-1.1")
        await stopping

    assert location.manifest.token_count == 199
    assert while_draining["east/prefill-0"].is_draining
    assert not was_done
    assert await beats(store) == {}


async def test_a_worker_does_not_wait_for_ever_for_its_jobs(
    store: ScriptedStore, client: HttpWorkerClient
) -> None:
    """A segment that nobody reads keeps it for its drain and no longer."""
    fleet = a_fleet(worker=WorkerConfig(drain_s=0.05))
    async with a_worker(store, "prefill", fleet=fleet) as prefill:
        await until_registered(store)
        (beat,) = (await beats(store)).values()
        await client.prefill(prefill.url, job_for(beat), PROMPT)

    assert await beats(store) == {}


async def served_by(
    prefill: RunningWorker, decode: RunningWorker, store: ScriptedStore, client: HttpWorkerClient
) -> HttpDecodeStream:
    """A stream of many tokens."""
    await until(lambda: store.calls.count("heartbeat") >= 2)
    known = await beats(store)
    location = await client.prefill(prefill.url, job_for(known["east/prefill-0"]), PROMPT)
    job = a_decode_job_for(
        location, incarnation=known["west/decode-0"].incarnation, output_tokens_max=300
    )
    return await client.decode(decode.url, job, PROMPT)


async def rest_of(stream: HttpDecodeStream) -> list[tuple[FrameKind, bytes]]:
    """Everything up to the end."""
    frames: list[tuple[FrameKind, bytes]] = []
    while batch := await stream.frames():
        frames += batch
    return frames


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[ReferenceEngine]:
    """The engines of workers that a test starts, in order."""
    made: list[ReferenceEngine] = []

    async def build(fleet: FleetConfig) -> ReferenceEngine:
        made.append(ReferenceEngine(fleet.model))
        return made[-1]

    monkeypatch.setattr(app_module, "_build_engine", build)
    return made


async def test_a_worker_that_leaves_lets_its_streams_end(
    store: ScriptedStore, client: HttpWorkerClient, engines: list[ReferenceEngine]
) -> None:
    """Those that can within its drain; it says at once that it takes nothing new."""
    async with a_worker(store, "prefill") as prefill, AsyncExitStack() as stack:
        decode = await stack.enter_async_context(a_worker(store, "decode"))
        stream = await served_by(prefill, decode, store, client)
        with compute_held(engines[1]):
            stopping = asyncio.ensure_future(stack.aclose())
            await until(lambda: store.calls.count("heartbeat") >= 3)
            while_draining = await beats(store)
            was_done = stopping.done()
        frames = await rest_of(stream)
        await stopping

    assert while_draining["west/decode-0"].is_draining
    assert not was_done
    assert frames[-1][0] is FrameKind.REPORT


async def test_a_worker_that_leaves_hands_over_what_does_not_end(
    store: ScriptedStore, client: HttpWorkerClient, engines: list[ReferenceEngine]
) -> None:
    """The router is told `draining` and goes on elsewhere; the worker is gone soon after."""
    fleet = a_fleet(worker=WorkerConfig(drain_s=0.1))
    async with a_worker(store, "prefill") as prefill, AsyncExitStack() as stack:
        decode = await stack.enter_async_context(a_worker(store, "decode", fleet=fleet))
        stream = await served_by(prefill, decode, store, client)
        with compute_held(engines[1]):
            began_s = time.monotonic()
            stopping = asyncio.ensure_future(stack.aclose())
            frames = await rest_of(stream)
            told_s = time.monotonic() - began_s
        await stopping
        took_s = time.monotonic() - began_s

    kind, failure = frames[-1]
    assert (kind, json.loads(failure)["code"]) == (FrameKind.FAILURE, "draining")
    # The drain, and not the 28 s that it has by default.
    assert 0.1 <= told_s < 14
    assert took_s < 14


async def test_a_prefill_worker_that_leaves_tells_its_readers(
    store: ScriptedStore, client: HttpWorkerClient, engines: list[ReferenceEngine]
) -> None:
    """A link that breaks with its process looks like a death, and its request like the cause."""
    fleet = a_fleet(worker=WorkerConfig(drain_s=0.1))
    async with a_worker(store, "decode") as decode, AsyncExitStack() as stack:
        prefill = await stack.enter_async_context(a_worker(store, "prefill", fleet=fleet))
        with compute_held(engines[1]):
            stream = await served_by(prefill, decode, store, client)
            stopping = asyncio.ensure_future(stack.aclose())
            frames = await rest_of(stream)
        await stopping

    kind, failure = frames[-1]
    assert (kind, json.loads(failure)["code"]) == (FrameKind.FAILURE, "segment_failed")
    assert "draining" in json.loads(failure)["message"]


async def test_a_decode_worker_whose_engine_hangs_gives_its_streams_away(
    store: ScriptedStore, client: HttpWorkerClient, engines: list[ReferenceEngine]
) -> None:
    """It takes no new ones either, until its engine moves again."""
    fleet = a_fleet(worker=WorkerConfig(engine_stall_s=0.2), heartbeat=QUICK)
    async with (
        a_worker(store, "prefill") as prefill,
        a_worker(store, "decode", fleet=fleet) as decode,
    ):
        stream = await served_by(prefill, decode, store, client)
        with compute_held(engines[1]):
            frames = await rest_of(stream)
            with pytest.raises(WorkerRefused, match="hangs"):
                await served_by(prefill, decode, store, client)
            await client.abort_prefill(prefill.url, "req-1.1")
            await until_draining(store, "west/decode-0", is_draining=True)
        await until_draining(store, "west/decode-0", is_draining=False)
        again = await rest_of(await served_by(prefill, decode, store, client))

    kind, failure = frames[-1]
    assert (kind, json.loads(failure)["code"]) == (FrameKind.FAILURE, "worker_timeout")
    assert again[-1][0] is FrameKind.REPORT


async def test_a_prefill_worker_whose_engine_hangs_tells_its_readers(
    store: ScriptedStore, client: HttpWorkerClient, engines: list[ReferenceEngine]
) -> None:
    """Signs of life on the KV connection are no progress."""
    fleet = a_fleet(worker=WorkerConfig(engine_stall_s=0.2))
    async with (
        a_worker(store, "prefill", fleet=fleet) as prefill,
        a_worker(store, "decode") as decode,
    ):
        with compute_held(engines[0]):
            frames = await rest_of(await served_by(prefill, decode, store, client))

    kind, failure = frames[-1]
    assert (kind, json.loads(failure)["code"]) == (FrameKind.FAILURE, "segment_failed")


async def test_a_worker_whose_engine_hangs_can_be_stopped(
    store: ScriptedStore, client: HttpWorkerClient, engines: list[ReferenceEngine]
) -> None:
    """Nobody waits for a thread that never comes back."""
    fleet = a_fleet(worker=WorkerConfig(drain_s=0.1))
    async with a_worker(store, "prefill") as prefill, AsyncExitStack() as stack:
        decode = await stack.enter_async_context(a_worker(store, "decode", fleet=fleet))
        stream = await served_by(prefill, decode, store, client)
        with compute_held(engines[1]):
            began_s = time.monotonic()
            await stack.aclose()
            took_s = time.monotonic() - began_s
        frames = await rest_of(stream)

    assert took_s < 14
    assert json.loads(frames[-1][1])["code"] == "draining"


async def until_draining(store: ScriptedStore, worker_id: str, *, is_draining: bool) -> None:
    """Wait for a heartbeat that says so."""
    async with asyncio.timeout(5):
        while (await beats(store))[worker_id].is_draining != is_draining:  # noqa: ASYNC110 - heartbeats
            await asyncio.sleep(0.01)


async def test_a_worker_starts_and_stops_without_its_store(store: ScriptedStore) -> None:
    """Soft state: it is known as soon as there is somebody to know it."""
    store.is_away = True

    async with a_worker(store, "decode") as worker:
        await until_registered(store)
        text = await samples(worker.url)

    assert 'prfaas_store_errors_total{op="heartbeat"} 1.0' in text


@pytest.mark.parametrize("port", ["port", "kv_port"])
async def test_a_port_that_is_taken_is_said(store: ScriptedStore, port: str) -> None:
    """With host and port, and nothing is left behind."""
    taken = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    number = taken.sockets[0].getsockname()[1]
    address = WorkerAddress(host="127.0.0.1", **{port: number})

    with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{number}"):
        async with a_worker(store, "prefill", address):
            pass
    taken.close()

    assert store.calls == []


async def test_a_worker_behind_a_proxy_is_known_by_the_address_that_it_advertises() -> None:
    store = ScriptedStore()
    address = WorkerAddress(host="127.0.0.1", advertised="10.1.0.7:9000")
    async with a_worker(store, "prefill", address) as worker:
        assert worker.url == "http://10.1.0.7:9000"


def test_kv_locations_name_the_advertised_address_if_there_is_one() -> None:
    plain = WorkerAddress(host="127.0.0.1")
    mapped = WorkerAddress(host="127.0.0.1", advertised_kv="10.1.0.7:9001")

    assert plain.reached_kv(5000) == ("127.0.0.1", 5000)
    assert mapped.reached_kv(5000) == ("10.1.0.7", 9001)
