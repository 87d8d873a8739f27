"""Whole workers change their role and lend their time, on the store's twin and real listeners."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any

import pytest
from builders import a_prefill_job
from engine_builders import compute_held
from router_builders import ScriptedStore, a_link_config
from worker_builders import a_decode_job_for, a_prompt

from controlplane.config import (
    DatacenterConfig,
    FleetConfig,
    HeartbeatConfig,
    ModelConfig,
    RouterConfig,
    WorkerConfig,
)
from controlplane.errors import RoleRefused, WorkerRefused
from controlplane.router.http_workers import HttpDecodeStream, HttpWorkerClient
from controlplane.wire import FrameKind, RoleChange, RoleReply, WorkerBeat
from workers import app as app_module
from workers.app import RunningWorker, WorkerAddress, run_worker
from workers.engines.reference.engine import ReferenceEngine
from workers.identity import Identity

PROMPT = a_prompt(200)
QUICK = HeartbeatConfig(interval_s=0.05, timeout_s=0.5, ttl_s=5)
D0, LENT = "west/decode-0", "west/decode-0.lent"


def a_fleet(*, convertible: bool = True, **sections: Any) -> FleetConfig:
    """East prefills; west decodes, and does what it is asked to."""
    values: dict[str, Any] = {
        "router": RouterConfig(datacenter="west"),
        "model": ModelConfig(layers=4, context_tokens_max=512, cache_tokens_max=1024),
        "datacenters": (
            DatacenterConfig(name="east", prefill_workers=1),
            DatacenterConfig(name="west", decode_workers=1, convertible=convertible),
        ),
        "links": (a_link_config(capacity_mbit_per_s=1000, emulated_delay_ms=0),),
        "heartbeat": QUICK,
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


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[ReferenceEngine]:
    """The engines of workers that a test starts, in order."""
    made: list[ReferenceEngine] = []

    async def build(fleet: FleetConfig) -> ReferenceEngine:
        made.append(ReferenceEngine(fleet.model))
        return made[-1]

    monkeypatch.setattr(app_module, "_build_engine", build)
    return made


def a_worker(
    store: ScriptedStore, role: str = "decode", **fleet: Any
) -> AbstractAsyncContextManager[RunningWorker]:
    """`west/decode-0`, or `east/prefill-0`."""
    datacenter = "east" if role == "prefill" else "west"
    identity = Identity.new(datacenter=datacenter, name=f"{role}-0", role=role)  # type: ignore[arg-type]
    return run_worker(a_fleet(**fleet), store, identity, WorkerAddress(host="127.0.0.1"))


async def beats(store: ScriptedStore) -> dict[str, WorkerBeat]:
    return {beat.worker_id: beat for beat in (await store.snapshot()).beats}


async def known(store: ScriptedStore, worker_id: str, **fields: Any) -> WorkerBeat:
    """The worker, once the store knows it with these fields."""
    async with asyncio.timeout(10):
        while True:
            beat = (await beats(store)).get(worker_id)
            if beat is not None and all(getattr(beat, k) == v for k, v in fields.items()):
                return beat
            await asyncio.sleep(0.01)


async def change(client: HttpWorkerClient, beat: WorkerBeat, role: str, **fields: Any) -> RoleReply:
    values = {"incarnation": beat.incarnation, "role": role, "dwell_s": 0.0, **fields}
    return await client.change_role(beat.url, RoleChange(**values))


def job_for(beat: WorkerBeat, request_id: str = "req-1.1") -> Any:
    return a_prefill_job(
        request_id=request_id, incarnation=beat.incarnation, fingerprint=beat.fingerprint
    )


async def a_stream(
    store: ScriptedStore, client: HttpWorkerClient, *, prefill: str, decode: str = D0, **job: Any
) -> HttpDecodeStream:
    """An answer that one worker prefills and another one, or the same, decodes."""
    one, other = await known(store, prefill), await known(store, decode)
    location = await client.prefill(one.url, job_for(one), PROMPT)
    return await client.decode(
        other.url, a_decode_job_for(location, incarnation=other.incarnation, **job), PROMPT
    )


async def rest_of(stream: HttpDecodeStream) -> list[tuple[FrameKind, bytes]]:
    frames: list[tuple[FrameKind, bytes]] = []
    while batch := await stream.frames():
        frames += batch
    return frames


# --- Another role -----------------------------------------------------------------------------


async def test_a_worker_comes_back_in_another_role_and_life(
    store: ScriptedStore, client: HttpWorkerClient
) -> None:
    """With the same name and address; it takes jobs of the new role and refuses those of the old."""
    async with a_worker(store) as worker:
        before = await known(store, D0, role="decode")

        reply = await change(client, before, "prefill")
        after = await known(store, D0, role="prefill")

        assert reply.role == "prefill"
        assert reply.is_draining
        assert after.incarnation != before.incarnation
        assert after.url == before.url == worker.url
        assert (after.slots, after.roles) == (1, ("prefill", "decode"))
        location = await client.prefill(after.url, job_for(after), PROMPT)
        with pytest.raises(WorkerRefused):
            await client.decode(
                after.url, a_decode_job_for(location, incarnation=before.incarnation), PROMPT
            )
        assert await client.has_died(before.url, before.incarnation)
        await client.abort_prefill(after.url, "req-1.1")


async def test_a_worker_with_a_port_of_its_own_keeps_it(
    store: ScriptedStore, client: HttpWorkerClient
) -> None:
    """Firewalls know it; the old life has closed it before the new one listens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    identity = Identity.new(datacenter="west", name="decode-0", role="decode")
    address = WorkerAddress(host="127.0.0.1", kv_port=port)
    async with run_worker(a_fleet(), store, identity, address):
        before = await known(store, D0, role="decode")

        await change(client, before, "prefill")
        after = await known(store, D0, role="prefill")
        location = await client.prefill(after.url, job_for(after), PROMPT)
        await client.abort_prefill(after.url, "req-1.1")

    assert before.kv == after.kv
    assert location.port == port


async def test_a_worker_keeps_its_cache_in_another_role(
    store: ScriptedStore, client: HttpWorkerClient
) -> None:
    """What it decoded as one it need not compute as the other, and its first beat says so."""
    async with a_worker(store, "prefill"), a_worker(store):
        await rest_of(await a_stream(store, client, prefill="east/prefill-0"))
        async with asyncio.timeout(10):
            while not (before := await known(store, D0)).inventory.stored:  # noqa: ASYNC110 - heartbeats
                await asyncio.sleep(0.01)

        await change(client, before, "prefill")
        after = await known(store, D0, role="prefill")

        assert after.inventory.stored == before.inventory.stored


async def test_streams_of_the_old_role_end_before_the_new_one(
    store: ScriptedStore, client: HttpWorkerClient, engines: list[ReferenceEngine]
) -> None:
    """Nothing new is taken meanwhile; asking again is answered like the first time."""
    async with a_worker(store, "prefill"), a_worker(store):
        stream = await a_stream(store, client, prefill="east/prefill-0", output_tokens_max=100)
        before = await known(store, D0)
        with compute_held(engines[1]):
            first = await change(client, before, "prefill")
            await known(store, D0, is_draining=True)
            again = await change(client, before, "prefill")
            with pytest.raises(RoleRefused) as busy:
                await change(client, before, "decode", lend_share=0.25)
        frames = await rest_of(stream)
        after = await known(store, D0, role="prefill")

    assert first == again
    assert busy.value.reason == "role_busy"
    assert frames[-1][0] is FrameKind.REPORT
    assert not after.is_draining


async def test_streams_that_do_not_end_in_time_are_handed_over(
    store: ScriptedStore, client: HttpWorkerClient, engines: list[ReferenceEngine]
) -> None:
    """Their routers go on elsewhere, as after SIGTERM."""
    quick = WorkerConfig(drain_s=0.1)
    async with a_worker(store, "prefill"), a_worker(store, worker=quick):
        stream = await a_stream(store, client, prefill="east/prefill-0", output_tokens_max=300)
        with compute_held(engines[1]):
            await change(client, await known(store, D0), "prefill")
            frames = await rest_of(stream)
            await known(store, D0, role="prefill")

    kind, failure = frames[-1]
    assert (kind, json.loads(failure)["code"]) == (FrameKind.FAILURE, "draining")


async def test_a_worker_rests_between_two_changes(
    store: ScriptedStore, client: HttpWorkerClient
) -> None:
    """On its own clock, whoever asks."""
    async with a_worker(store):
        await change(client, await known(store, D0), "prefill", dwell_s=60.0)
        after = await known(store, D0, role="prefill")

        with pytest.raises(RoleRefused) as early:
            await change(client, after, "decode")

    assert early.value.reason == "role_dwell"


async def test_a_change_for_an_earlier_life_is_refused(
    store: ScriptedStore, client: HttpWorkerClient
) -> None:
    """A second leader that has not heard of the first one's change."""
    async with a_worker(store):
        before = await known(store, D0)
        await change(client, before, "prefill")
        await known(store, D0, role="prefill")

        with pytest.raises(RoleRefused) as late:
            await change(client, before, "decode")

    assert late.value.reason == "role_incarnation"


async def test_a_worker_that_is_not_convertible_keeps_its_role(
    store: ScriptedStore, client: HttpWorkerClient
) -> None:
    async with a_worker(store, convertible=False):
        before = await known(store, D0)
        with pytest.raises(RoleRefused) as refused:
            await change(client, before, "prefill")

    assert refused.value.reason == "role_unsupported"
    assert before.roles == ()


async def test_a_worker_that_is_stopped_while_it_changes_is_gone(
    store: ScriptedStore, client: HttpWorkerClient, engines: list[ReferenceEngine]
) -> None:
    """Its stream is handed over once, and it says goodbye once."""
    quick = WorkerConfig(drain_s=0.2)
    async with a_worker(store, "prefill"), AsyncExitStack() as stack:
        await stack.enter_async_context(a_worker(store, worker=quick))
        stream = await a_stream(store, client, prefill="east/prefill-0", output_tokens_max=300)
        with compute_held(engines[1]):
            await change(client, await known(store, D0), "prefill")
            await known(store, D0, is_draining=True)
            await stack.aclose()
        frames = await rest_of(stream)

        assert D0 not in await beats(store)

    assert json.loads(frames[-1][1])["code"] == "draining"


# --- Lending ----------------------------------------------------------------------------------


async def test_lent_time_is_a_prefill_worker_of_its_own(
    store: ScriptedStore, client: HttpWorkerClient, engines: list[ReferenceEngine]
) -> None:
    """It answers together with the one that lends it; its profile is as slow as its share."""
    async with a_worker(store):
        before = await known(store, D0)
        reply = await change(client, before, "decode", lend_share=0.25)
        lent = await known(store, LENT)
        lender = await known(store, D0, lend_share=0.25)
        real = engines[0].profile()

        frames = await rest_of(await a_stream(store, client, prefill=LENT))

    assert not reply.is_draining
    assert (lent.role, lent.lent_by, lent.lend_share) == ("prefill", D0, 0.25)
    assert lent.incarnation != lender.incarnation == before.incarnation
    assert lent.profile.prefill_s_per_token == pytest.approx(4 * real.prefill_s_per_token)
    assert lent.profile.prefill_fixed_s == pytest.approx(4 * real.prefill_fixed_s)
    assert frames[-1][0] is FrameKind.REPORT
    assert json.loads(frames[-1][1])["prefill"]["computed_tokens"] == 199


async def test_another_share_is_another_profile(
    store: ScriptedStore, client: HttpWorkerClient
) -> None:
    """Without a new registration."""
    async with a_worker(store):
        before = await known(store, D0)
        await change(client, before, "decode", lend_share=0.5)
        half = await known(store, LENT)

        await change(client, before, "decode", lend_share=0.25)
        await known(store, D0, lend_share=0.25)
        quarter = await known(store, LENT)
        async with asyncio.timeout(5):
            while quarter.profile == half.profile:
                quarter = await known(store, LENT)
                await asyncio.sleep(0.01)

    assert quarter.incarnation == half.incarnation
    times = quarter.profile.prefill_s_per_token / half.profile.prefill_s_per_token
    assert times == pytest.approx(2, rel=0.01)


async def test_time_that_is_taken_back_is_drained_first(
    store: ScriptedStore, client: HttpWorkerClient, engines: list[ReferenceEngine]
) -> None:
    """Its prefill ends, the registration goes, and a router that asks there sees that it has."""
    async with a_worker(store):
        before = await known(store, D0)
        await change(client, before, "decode", lend_share=0.25)
        lent = await known(store, LENT)
        with compute_held(engines[0]):
            stream = await a_stream(store, client, prefill=LENT)
            await change(client, before, "decode")
            await known(store, LENT, is_draining=True)
        frames = await rest_of(stream)
        async with asyncio.timeout(10):
            while LENT in await beats(store):  # noqa: ASYNC110 - heartbeats
                await asyncio.sleep(0.01)

            while not await client.has_died(lent.url, lent.incarnation):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

        assert frames[-1][0] is FrameKind.REPORT
        assert not await client.has_died(before.url, before.incarnation)
        assert await known(store, D0, lend_share=0.0)


async def test_a_lender_that_becomes_a_prefill_worker_lends_nothing(
    store: ScriptedStore, client: HttpWorkerClient
) -> None:
    async with a_worker(store):
        before = await known(store, D0)
        await change(client, before, "decode", lend_share=0.25)
        await known(store, LENT)

        await change(client, before, "prefill")
        await known(store, D0, role="prefill")

        assert set(await beats(store)) == {D0}


async def test_a_lender_that_is_stopped_takes_both_registrations_along(
    store: ScriptedStore, client: HttpWorkerClient
) -> None:
    async with a_worker(store):
        await change(client, await known(store, D0), "decode", lend_share=0.25)
        await known(store, LENT)

    assert await beats(store) == {}


async def test_both_registrations_tell_of_one_cache(
    store: ScriptedStore, client: HttpWorkerClient
) -> None:
    """What lent time computes, the decoder holds: nothing of it need be fetched again."""
    async with a_worker(store):
        await change(client, await known(store, D0), "decode", lend_share=0.25)
        await rest_of(await a_stream(store, client, prefill=LENT))

        async def is_told() -> bool:
            told = await beats(store)
            one, other = told[D0].inventory.stored, told[LENT].inventory.stored
            return bool(one) and one == other

        async with asyncio.timeout(10):
            while not await is_told():  # noqa: ASYNC110 - heartbeats
                await asyncio.sleep(0.01)
        frames = await rest_of(await a_stream(store, client, prefill=LENT))

    assert json.loads(frames[-1][1])["transfer"]["held_tokens"] == 192
