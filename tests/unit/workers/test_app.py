"""Whole workers with the reference engine, on the store's twin: they come, serve, drain and go."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any

import aiohttp
import pytest
from builders import a_prefill_job
from router_builders import ScriptedStore, a_link_config
from worker_builders import a_decode_job_for, a_prompt, until

from controlplane.config import DatacenterConfig, FleetConfig, ModelConfig, RouterConfig
from controlplane.errors import ConfigError, WorkerRefused
from controlplane.router.http_workers import HttpWorkerClient
from controlplane.wire import FrameKind, WorkerBeat
from workers import app as app_module
from workers.app import RunningWorker, WorkerAddress, run_worker
from workers.identity import Identity

PROMPT = a_prompt(200)
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
    store: ScriptedStore, role: str, address: WorkerAddress = HERE
) -> AbstractAsyncContextManager[RunningWorker]:
    """A worker of this role, in its datacenter."""
    datacenter = "east" if role == "prefill" else "west"
    identity = Identity.new(datacenter=datacenter, name=f"{role}-0", role=role)  # type: ignore[arg-type]
    return run_worker(a_fleet(), store, identity, address)


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
    store: ScriptedStore, client: HttpWorkerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A segment that nobody reads keeps it for its drain and no longer."""
    monkeypatch.setattr(app_module, "_DRAIN_S", 0.05)
    async with a_worker(store, "prefill") as prefill:
        await until_registered(store)
        (beat,) = (await beats(store)).values()
        await client.prefill(prefill.url, job_for(beat), PROMPT)

    assert await beats(store) == {}


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

    with pytest.RaisesGroup(ConfigError) as refused:
        async with a_worker(store, "prefill", address):
            pass
    taken.close()

    assert f"cannot listen on 127.0.0.1:{number}" in str(refused.value.exceptions[0])
    assert store.calls == []
