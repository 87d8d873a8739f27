"""The parts of a worker put together for a world."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from typing import Any

from sim.doors import (
    open_decode_door,
    open_prefill_door,
    open_probe_door,
    refuse_decodes,
    refuse_prefills,
)
from sim.engine import OracleEngine
from sim.kv import KV_PORT, SimKvServer
from sim.network import Process
from sim.shared import FINGERPRINT, MODEL, Shared
from sim.store import SimStore

from controlplane.wire import KvAddress, WorkerBeat
from workers.agent import Agent
from workers.decode_service import DecodeService
from workers.engine import Engine
from workers.identity import Identity
from workers.kv.pacing import LinkPacer, StoreLinkBudget
from workers.kv.segments import SegmentStore
from workers.links import LinkMeters
from workers.locations import LocationPublisher
from workers.metrics import WorkerMetrics
from workers.parts import Parts as _Parts
from workers.parts import drain as _drain
from workers.parts import engine_changed as _engine_changed
from workers.parts import requests_max as _requests_max
from workers.prefill_service import PrefillService
from workers.watch import EngineWatch


@dataclass(slots=True, kw_only=True)
class WorkerNode:
    """A running worker."""

    process: Process
    identity: Identity
    engine: OracleEngine
    parts: Any
    agent: Agent
    is_leaving: bool = False

    def jobs_of_requests(self) -> set[str]:
        """Ids of jobs it works on or keeps a readable segment for."""
        found = set(self.process.jobs)
        if self.prefill is not None:
            kept = self.prefill._segment_of.items()
            found |= {job_id for job_id, segment in kept if segment.is_readable}
            found |= set(self.prefill._jobs)
        return found

    @property
    def prefill(self) -> PrefillService | None:
        found: PrefillService | None = self.parts.prefill
        return found

    @property
    def decode(self) -> DecodeService | None:
        found: DecodeService | None = self.parts.decode
        return found

    @property
    def segments(self) -> SegmentStore | None:
        found: SegmentStore | None = self.parts.segments
        return found


def start_worker(shared: Shared, process: Process) -> WorkerNode:
    """A worker with all its tasks."""
    return process.host.run(_start_worker, shared, process)


def _start_worker(shared: Shared, process: Process) -> WorkerNode:
    fleet, clock = shared.fleet, shared.network.loop.time
    role = shared.roles[process.name]
    identity = Identity(
        worker_id=process.name,
        datacenter=process.datacenter,
        role=role,
        incarnation=f"life-{process.life}",
    )
    engine = OracleEngine(
        model=MODEL,
        fingerprint=FINGERPRINT,
        times=shared.times,
        on_wrong_kv=lambda said: shared.violate("I4", f"{process.name}: {said}"),
        on_poison=lambda: shared.on_poison(process.name),
    )
    store = SimStore(shared.store, process, shared.random(process, "store"))
    parts = _Parts(metrics=WorkerMetrics(), links=LinkMeters(identity.datacenter))
    if role == "prefill":
        _prefill_parts(shared, process, identity, engine, store, parts)
        refuse_decodes(process)
    else:
        refuse_prefills(process)
        _decode_parts(shared, process, identity, engine, parts)
    beats: Any = _OldBeats(store) if process.name in shared.old else store
    agent = Agent(
        _as_engine(engine),
        identity,
        beats,
        parts.metrics,
        heartbeat=fleet.heartbeat,
        requests_max=_requests_max(fleet, identity),
        slots=fleet.model.decode_slots if role == "decode" else 1,
        url=f"http://{process.name}",
        jobs=parts.jobs,
        links=parts.links,
        is_stalled=lambda: watch.is_stalled,
        kv=KvAddress(host=process.name, port=KV_PORT) if role == "prefill" else None,
        clock=clock,
    )
    watch = EngineWatch(
        _as_engine(engine),
        waiting=parts.waiting,
        stall_s=fleet.worker.engine_stall_s,
        on_change=partial(_engine_changed, parts, identity),
    )
    process.spawn(agent.run(), "heartbeat")
    process.spawn(watch.run(), "watch")
    process.doors["beat"] = agent.current
    return WorkerNode(process=process, identity=identity, engine=engine, parts=parts, agent=agent)


def _prefill_parts(
    shared: Shared,
    process: Process,
    identity: Identity,
    engine: OracleEngine,
    store: SimStore,
    parts: _Parts,
) -> None:
    fleet, clock = shared.fleet, shared.network.loop.time
    publisher = LocationPublisher(store, parts.metrics)
    process.spawn(publisher.run(), "locations")
    segments = SegmentStore(
        incarnation=identity.incarnation,
        config=fleet.kv,
        on_drop=lambda segment, _: service.dropped(segment),
        on_renew=lambda segment: service.renewed(segment),  # noqa: PLW0108 - made below
        clock=clock,
    )
    pacers = tuple(
        LinkPacer(link, StoreLinkBudget(store, link), floor_share=fleet.kv.floor_share, clock=clock)
        for link in fleet.links
        if link.from_datacenter == identity.datacenter
    )
    kv = SimKvServer(
        segments,
        worker_id=identity.worker_id,
        datacenter=identity.datacenter,
        pacers=pacers,
        config=fleet.kv,
        clock=clock,
    )
    service = PrefillService(
        _as_engine(engine),
        segments,
        identity,
        parts.metrics,
        requests_max=_requests_max(fleet, identity),
        locate=lambda segment: kv.location(segment, identity.worker_id, KV_PORT),
        publisher=publisher,
    )
    parts.prefill, parts.kv, parts.segments, parts.pacers = service, kv, segments, pacers
    open_prefill_door(process, service, lambda said: shared.violate("I15", said))
    kv.serve(process)


def _decode_parts(
    shared: Shared, process: Process, identity: Identity, engine: OracleEngine, parts: _Parts
) -> None:
    fleet = shared.fleet
    parts.decode = DecodeService(
        _as_engine(engine),
        identity,
        fleet.kv,
        parts.metrics,
        requests_max=_requests_max(fleet, identity),
        links=parts.links,
        clock=shared.network.loop.time,
    )
    open_decode_door(
        process,
        parts.decode,
        alive_interval_s=fleet.limits.alive_interval_s,
        violate=shared.violate,
        strip=_strip if process.name in shared.old else lambda head: head,
    )
    if process.name not in shared.old:
        open_probe_door(process)


async def stop_worker(shared: Shared, node: WorkerNode) -> None:
    """What a worker does after SIGTERM."""
    node.is_leaving = True
    await _drain(node.parts, node.agent, drain_s=shared.fleet.worker.drain_s)


class _OldBeats:
    """The store as a worker before 0.3 speaks with it."""

    def __init__(self, store: SimStore) -> None:
        self._store = store

    async def heartbeat(self, beat: WorkerBeat, *, ttl_s: float) -> Any:
        old = beat.model_copy(update={"can_resume": False, "age_s": None})
        return await self._store.heartbeat(old, ttl_s=ttl_s)

    async def deregister(self, worker_id: str, incarnation: str) -> None:
        await self._store.deregister(worker_id, incarnation)


def _strip(head: bytes) -> bytes:
    """A decode job as a worker before 0.3 reads it: unknown fields are ignored."""
    fields = json.loads(head)
    for name in ("resumed_tokens", "wants_tokens"):
        fields.pop(name, None)
    return json.dumps(fields).encode()


def _as_engine(engine: OracleEngine) -> Engine:
    """Async generators are what the contract calls closable iterators."""
    found: Any = engine
    return found
