"""Composition root of a worker process: the only file that knows every class of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

from controlplane.config import FleetConfig
from controlplane.observe.logs import get_logger
from controlplane.serving import listen
from controlplane.store.api import StateStore
from controlplane.tokenizing import Tokenizer, tokenizer_for
from controlplane.wire import LinkProbe, LinkProbeReply, Role
from workers.address import WorkerAddress
from workers.engine import Engine
from workers.engines.building import build_engine, open_engine
from workers.engines.measured import MeasuredVllm
from workers.identity import Identity
from workers.inventory import SharedInventory
from workers.kv.pacing import LinkPacer, StoreLinkBudget
from workers.kv.probe import probe_owner
from workers.life import Life, Process
from workers.metrics import WorkerMetrics
from workers.parts import engine_changed
from workers.profiling.server import MeasurableServer
from workers.roles import RoleKeeper
from workers.server import LENT_PATH, Desk, WorkerServer
from workers.watch import EngineWatch

__all__ = ["RunningWorker", "WorkerAddress", "measurable", "run_worker"]

_log = get_logger()

#: An engine that has not closed within this hangs; the process ends without it, seconds.
_ENGINE_CLOSE_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningWorker:
    """A worker that listens, as it was started; its role may have changed since."""

    identity: Identity
    url: str
    kv_port: int


def measurable(
    url: str, api_key: str, model: str | None
) -> AbstractAsyncContextManager[MeasurableServer]:
    """
    An engine server, to take its profile.

    Args:
        url: Base of its API, without `/v1`.
        api_key: Sent as bearer token; empty for none.
        model: Which of its models; None for its only one.

    Raises:
        ConfigError: It is none that can be measured, or is busy; says what to do.
        PrfaasError: It does not answer.
    """
    return MeasuredVllm.at(url, api_key, model)


@asynccontextmanager
async def run_worker(
    fleet: FleetConfig, store: StateStore, identity: Identity, address: WorkerAddress
) -> AsyncIterator[RunningWorker]:
    """
    Start a worker, yield it while it serves, drain and stop it.

    Raises:
        ConfigError: An address cannot be listened on.
    """
    tokenizer = await asyncio.to_thread(tokenizer_for, fleet.model)
    engine = await _engine(fleet, identity, address, tokenizer)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(_close, engine)
        process = Process(
            fleet=fleet,
            store=store,
            engine=engine,
            tokenizer=tokenizer,
            address=address,
            metrics=WorkerMetrics(),
            pacers=_pacers(fleet, store, identity),
            inventory=SharedInventory(engine.take_inventory_delta),
            is_stalled=lambda: watch.is_stalled,
        )
        watch = EngineWatch(
            engine,
            waiting=lambda: sum(life.parts.waiting() for life in keeper.lives),
            stall_s=fleet.worker.engine_stall_s,
            on_change=lambda is_stalled: _engine_changed(keeper, is_stalled=is_stalled),
        )
        keeper = RoleKeeper(process, identity, _roles(fleet, identity), lent_path=LENT_PATH)
        stack.push_async_callback(keeper.close)
        server = WorkerServer(
            desk=lambda: _desk(keeper.main),
            lent=lambda: _lent_desk(keeper),
            metrics=process.metrics,
            refresh_metrics=partial(_refresh, process, keeper),
            alive_interval_s=fleet.limits.alive_interval_s,
            probe=_probe,
            change_role=keeper.change,
        )
        url = await listen(stack, server.application(), address.host, address.port)
        if address.advertised is not None:
            url = f"http://{address.advertised}"
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(watch.run(), name="watch")
            keeper.start(url, tasks)
            yield RunningWorker(identity=identity, url=url, kv_port=keeper.main.kv_port)
            await keeper.leave()
            watching.cancel()
            await keeper.close()
        _log.info("worker.stopped", worker=identity.worker_id)


async def _engine(
    fleet: FleetConfig, identity: Identity, address: WorkerAddress, tokenizer: Tokenizer
) -> Engine:
    if not fleet.model.is_served:
        return await _build_engine(fleet)
    return await open_engine(fleet.model, identity.role, address.engine, tokenizer)


async def _build_engine(fleet: FleetConfig) -> Engine:
    # Weights and calibration take seconds: not on the event loop.
    return await asyncio.to_thread(build_engine, fleet.model)


def _roles(fleet: FleetConfig, identity: Identity) -> tuple[Role, ...]:
    """Roles that a worker may have in its datacenter; none when it keeps its own."""
    site = fleet.datacenter(identity.datacenter)
    is_convertible = site is not None and site.convertible and not fleet.model.is_served
    return ("prefill", "decode") if is_convertible else ()


def _pacers(fleet: FleetConfig, store: StateStore, identity: Identity) -> tuple[LinkPacer, ...]:
    return tuple(
        LinkPacer(link, StoreLinkBudget(store, link), floor_share=fleet.kv.floor_share)
        for link in fleet.links
        if link.from_datacenter == identity.datacenter
    )


def _desk(life: Life) -> Desk:
    parts = life.parts
    return Desk(beat=life.beat, prefill=parts.prefill, decode=parts.decode, exporter=parts.exporter)


def _lent_desk(keeper: RoleKeeper) -> Desk:
    """That of lent time; without any, the worker's own word shows that nobody stands there."""
    return Desk(beat=keeper.main.beat) if keeper.lent is None else _desk(keeper.lent)


async def _probe(asked: LinkProbe) -> LinkProbeReply:
    return await probe_owner(asked.target, timeout_s=asked.timeout_s)


def _engine_changed(keeper: RoleKeeper, *, is_stalled: bool) -> None:
    for life in keeper.lives:
        engine_changed(life.parts, life.identity, is_stalled)


async def _close(engine: Engine) -> None:
    try:
        async with asyncio.timeout(_ENGINE_CLOSE_S):
            await engine.close()
    except TimeoutError:
        _log.error("engine.stalled")


def _refresh(process: Process, keeper: RoleKeeper) -> None:
    """Gauges that are read from elsewhere, at the moment of a scrape."""
    metrics, engine = process.metrics, process.engine
    counters, load = engine.counters(), engine.load()
    parts = [life.parts for life in keeper.lives]
    segments = [one.segments for one in parts if one.segments is not None]
    computed = metrics.prompt_tokens_computed
    computed.labels("prefill").set(counters.prefill_tokens_total)
    computed.labels("decode").set(counters.decode_prompt_tokens_total)
    metrics.output_tokens.set(counters.output_tokens_total)
    metrics.queue_requests.set(sum(one.jobs() for one in parts))
    metrics.queue_tokens.set(load.queue_tokens)
    metrics.kv_bytes.set(load.kv_bytes)
    metrics.kv_use.set(load.kv_use or 0.0)
    metrics.preemptions.set(load.preemptions_total)
    metrics.guessed_prefixes.set(load.has_guessed_prefixes)
    metrics.unmatched_prompts.set(counters.unmatched_prompts_total)
    metrics.segments.set(sum(one.readable_segments for one in segments))
    metrics.segment_bytes.set(sum(one.held_bytes for one in segments))
    for pacer in process.pacers:
        metrics.kv_sent_bytes.labels(pacer.link.to_datacenter).set(pacer.counters.bytes_total)
