"""Composition root of a worker process: the only file that knows every class of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from controlplane.config import FleetConfig
from controlplane.errors import ConfigError, Draining, WorkerTimeout
from controlplane.observe.logs import get_logger
from controlplane.serving import background, listen
from controlplane.store.api import StateStore
from workers.agent import Agent
from workers.decode_service import DecodeService
from workers.engine import Engine
from workers.identity import Identity
from workers.kv.pacing import LinkPacer, StoreLinkBudget
from workers.kv.segments import SegmentStore
from workers.kv.server import KvServer
from workers.links import LinkMeters
from workers.locations import LocationPublisher
from workers.metrics import WorkerMetrics
from workers.prefill_service import PrefillService
from workers.server import WorkerServer
from workers.watch import EngineWatch

_log = get_logger()

#: What is left of the drain is looked at so often, seconds.
_DRAIN_POLL_S = 0.05
#: Jobs that are ended get this long to tell their routers, seconds.
_FAREWELL_S = 1.0
#: An engine that has not closed within this hangs; the process ends without it, seconds.
_ENGINE_CLOSE_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerAddress:
    """Where a worker listens, port 0 finds a free one; and where it is reached, if not there."""

    host: str
    port: int = 0
    kv_port: int = 0
    #: `host:port` that routers dial, when a proxy or a port mapping stands before the worker.
    advertised: str | None = None
    #: The same for decode workers and KV.
    advertised_kv: str | None = None

    def reached_kv(self, port: int) -> tuple[str, int]:
        """
        Host and port that KV locations name.

        Args:
            port: The one that is listened on.
        """
        if self.advertised_kv is None:
            return self.host, port
        host, _, reached = self.advertised_kv.rpartition(":")
        return host, int(reached)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningWorker:
    """A worker that listens."""

    identity: Identity
    url: str
    #: 0 for decode workers.
    kv_port: int


@asynccontextmanager
async def run_worker(
    fleet: FleetConfig, store: StateStore, identity: Identity, address: WorkerAddress
) -> AsyncIterator[RunningWorker]:
    """
    Start a worker, yield it while it serves, drain and stop it.

    Raises:
        ConfigError: An address cannot be listened on.
    """
    engine = await _build_engine(fleet)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(_close, engine)
        if identity.role == "prefill":
            parts = await _prefill_parts(stack, fleet, store, identity, address, engine)
        else:
            parts = _decode_parts(fleet, identity, engine)
        server = WorkerServer(
            prefill=parts.prefill,
            decode=parts.decode,
            metrics=parts.metrics,
            refresh_metrics=lambda: _refresh(parts, engine),
            beat=lambda: agent.current(),  # noqa: PLW0108 - made below
            alive_interval_s=fleet.limits.alive_interval_s,
        )
        url = await listen(stack, server.application(), address.host, address.port)
        if address.advertised is not None:
            url = f"http://{address.advertised}"
        agent = Agent(
            engine,
            identity,
            store,
            parts.metrics,
            heartbeat=fleet.heartbeat,
            requests_max=_requests_max(fleet, identity),
            slots=fleet.model.decode_slots if identity.role == "decode" else 1,
            url=url,
            jobs=parts.jobs,
            links=parts.links,
            is_stalled=lambda: watch.is_stalled,
        )
        watch = EngineWatch(
            engine,
            waiting=parts.waiting,
            stall_s=fleet.worker.engine_stall_s,
            on_change=partial(_engine_changed, parts, identity),
        )
        await stack.enter_async_context(background(heartbeat=agent.run(), watch=watch.run()))
        kv_port = parts.kv.port if parts.kv is not None else 0
        _log.info(
            "worker.started",
            worker=identity.worker_id,
            incarnation=identity.incarnation,
            url=url,
            kv_port=kv_port,
        )
        yield RunningWorker(identity=identity, url=url, kv_port=kv_port)
        await _drain(parts, agent, drain_s=fleet.worker.drain_s)
        _log.info("worker.stopped", worker=identity.worker_id)


@dataclass(slots=True, kw_only=True)
class _Parts:
    """What a role has."""

    metrics: WorkerMetrics
    links: LinkMeters
    prefill: PrefillService | None = None
    decode: DecodeService | None = None
    kv: KvServer | None = None
    segments: SegmentStore | None = None
    pacers: tuple[LinkPacer, ...] = ()

    def jobs(self) -> int:
        """Requests waiting and running."""
        return sum(service.jobs for service in (self.prefill, self.decode) if service is not None)

    def waiting(self) -> int:
        """Jobs that wait for the engine."""
        waiting = self.prefill.jobs if self.prefill is not None else 0
        return waiting + (self.decode.waiting if self.decode is not None else 0)


async def _build_engine(fleet: FleetConfig) -> Engine:
    # Imported here: an engine brings its own heavy libraries, others never load them.
    from workers.engines.reference.engine import ReferenceEngine  # noqa: PLC0415

    # Weights and calibration take a second or so: not on the event loop.
    return await asyncio.to_thread(ReferenceEngine, fleet.model)


def _requests_max(fleet: FleetConfig, identity: Identity) -> int:
    running = fleet.model.decode_slots if identity.role == "decode" else 1
    return running + fleet.model.queue_requests_max


async def _prefill_parts(
    stack: AsyncExitStack,
    fleet: FleetConfig,
    store: StateStore,
    identity: Identity,
    address: WorkerAddress,
    engine: Engine,
) -> _Parts:
    parts = _Parts(metrics=WorkerMetrics(), links=LinkMeters(identity.datacenter))
    publisher = LocationPublisher(store, parts.metrics)
    await stack.enter_async_context(background(locations=publisher.run()))
    segments = SegmentStore(
        incarnation=identity.incarnation,
        config=fleet.kv,
        on_drop=lambda segment, _: service.dropped(segment),
        on_renew=lambda segment: service.renewed(segment),  # noqa: PLW0108 - made below
    )
    pacers = tuple(
        LinkPacer(link, StoreLinkBudget(store, link), floor_share=fleet.kv.floor_share)
        for link in fleet.links
        if link.from_datacenter == identity.datacenter
    )
    kv = KvServer(
        segments,
        worker_id=identity.worker_id,
        datacenter=identity.datacenter,
        pacers=pacers,
        config=fleet.kv,
    )
    service = PrefillService(
        engine,
        segments,
        identity,
        parts.metrics,
        requests_max=_requests_max(fleet, identity),
        locate=lambda segment: kv.location(segment, *address.reached_kv(kv.port)),
        publisher=publisher,
    )
    stack.push_async_callback(service.close)
    try:
        kv.start(address.host, address.kv_port)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {address.host}:{address.kv_port} for KV: {error.strerror or error}"
        ) from error
    stack.push_async_callback(kv.close)
    parts.prefill, parts.kv, parts.segments, parts.pacers = service, kv, segments, pacers
    return parts


def _decode_parts(fleet: FleetConfig, identity: Identity, engine: Engine) -> _Parts:
    parts = _Parts(metrics=WorkerMetrics(), links=LinkMeters(identity.datacenter))
    parts.decode = DecodeService(
        engine,
        identity,
        fleet.kv,
        parts.metrics,
        requests_max=_requests_max(fleet, identity),
        links=parts.links,
    )
    return parts


async def _drain(parts: _Parts, agent: Agent, *, drain_s: float) -> None:
    """Take no new jobs, tell the routers, let jobs end for a while, move the rest, say goodbye."""
    if parts.prefill is not None:
        parts.prefill.is_draining = True
    if parts.decode is not None:
        parts.decode.is_draining = True
    await agent.drain()
    await _until(lambda: not _is_busy(parts), drain_s)
    if parts.decode is not None and parts.decode.jobs:
        parts.decode.end_jobs(lambda: Draining("this worker leaves before the answer is complete"))
        await _until(lambda: not _is_busy(parts), _FAREWELL_S)
    if parts.prefill is not None and parts.kv is not None and _is_busy(parts):
        # A reader that is cut off would take this for a death, and its request for the cause.
        parts.prefill.hand_over(Draining("this worker leaves before its KV was read"))
        await _until(partial(_has_no_reader, parts.kv), _FAREWELL_S)
    await agent.leave()


async def _until(is_done: Callable[[], bool], within_s: float) -> None:
    """Wait until something is true, or for so long."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + within_s
    while not is_done() and loop.time() < deadline_s:  # noqa: ASYNC110 - jobs and leases have no event in common
        await asyncio.sleep(_DRAIN_POLL_S)


def _has_no_reader(kv: KvServer) -> bool:
    return kv.connections == 0


def _engine_changed(parts: _Parts, identity: Identity, is_stalled: bool) -> None:  # noqa: FBT001 - a hook
    """An engine that hangs gets no new jobs, and those it has go elsewhere."""
    if parts.prefill is not None:
        parts.prefill.is_stalled = is_stalled
    if parts.decode is not None:
        parts.decode.is_stalled = is_stalled
    if not is_stalled:
        _log.info("engine.recovered", worker=identity.worker_id)
        return
    _log.error("engine.stalled", worker=identity.worker_id)
    said = "the engine has finished nothing for a while"
    if parts.prefill is not None:
        parts.prefill.end_jobs(WorkerTimeout(said))
    if parts.decode is not None:
        parts.decode.end_jobs(lambda: WorkerTimeout(said))


async def _close(engine: Engine) -> None:
    try:
        async with asyncio.timeout(_ENGINE_CLOSE_S):
            await engine.close()
    except TimeoutError:
        _log.error("engine.stalled")


def _is_busy(parts: _Parts) -> bool:
    """Jobs run, or segments wait for their readers."""
    readable = parts.segments.readable_segments if parts.segments is not None else 0
    return parts.jobs() > 0 or readable > 0


def _refresh(parts: _Parts, engine: Engine) -> None:
    """Gauges that are read from elsewhere, at the moment of a scrape."""
    metrics, counters, load = parts.metrics, engine.counters(), engine.load()
    computed = metrics.prompt_tokens_computed
    computed.labels("prefill").set(counters.prefill_tokens_total)
    computed.labels("decode").set(counters.decode_prompt_tokens_total)
    metrics.output_tokens.set(counters.output_tokens_total)
    metrics.queue_requests.set(parts.jobs())
    metrics.queue_tokens.set(load.queue_tokens)
    metrics.kv_bytes.set(load.kv_bytes)
    if parts.segments is not None:
        metrics.segments.set(parts.segments.readable_segments)
        metrics.segment_bytes.set(parts.segments.held_bytes)
    for pacer in parts.pacers:
        metrics.kv_sent_bytes.labels(pacer.link.to_datacenter).set(pacer.counters.bytes_total)
