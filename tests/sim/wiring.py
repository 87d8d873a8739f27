"""The product's own parts put together for a world: the one file that knows their constructors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

from sim.clients import serve_clients
from sim.doors import (
    SimLinkProber,
    SimProber,
    SimWorkerClient,
    open_decode_door,
    open_prefill_door,
    open_probe_door,
    refuse_decodes,
    refuse_prefills,
)
from sim.engine import EngineTimes, OracleEngine
from sim.kv import KV_PORT, SimKvServer
from sim.network import Network, Process
from sim.store import SimStore, StoreNode
from sim.story import Story

from controlplane.config import DatacenterConfig as Site
from controlplane.config import (
    FleetConfig,
    KvConfig,
    LimitsConfig,
    LinkConfig,
    ModelConfig,
    RouterConfig,
)
from controlplane.config_health import HealthConfig
from controlplane.observe.metrics import RouterMetrics
from controlplane.router.assembly import assemble
from controlplane.router.dispatcher import Dispatcher
from controlplane.router.documents import DocumentFeed, take_plan, take_policy
from controlplane.router.feed import ViewFeed
from controlplane.router.known import KnownWorker
from controlplane.router.link_probes import LinkProbes
from controlplane.router.policy_document import (
    PolicyChange,
    PolicyChoice,
    changed,
    read_document,
)
from controlplane.router.probes import Probes
from controlplane.router.recorder import Recorder
from controlplane.router.rules import view_rules
from controlplane.router.view import ViewTracker
from controlplane.store.memory_store import MemoryStore
from controlplane.wire import KvAddress, Role, WorkerBeat
from policies.registry import load_policy
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

MODEL = "sim"
FINGERPRINT = "sim-1"

#: A request's whole time, virtual seconds.
REQUEST_S = 30.0

PREFILLS = ("east/p1", "east/p2", "west/p1", "west/p2")
DECODES = ("west/d1", "west/d2", "west/d3", "east/d4")
ROUTERS = ("west/r1", "west/r2")


def parameters_of(policy: str) -> dict[str, Any]:
    """Parameters under which prompts of this small world cross links."""
    return {"threshold_tokens": 64} if policy == "prfaas" else {}


def a_fleet(policy: str) -> FleetConfig:
    """Two datacenters with two prefill workers each, and four decode workers."""
    return FleetConfig(
        name="sim",
        router=RouterConfig(
            datacenter="west",
            policy=policy,
            policy_parameters=parameters_of(policy),
        ),
        model=ModelConfig(
            name=MODEL, context_tokens_max=2048, decode_slots=4, queue_requests_max=12
        ),
        datacenters=(
            Site(name="east", prefill_workers=2, decode_workers=1),
            Site(name="west", prefill_workers=2, decode_workers=3),
        ),
        links=(
            LinkConfig(from_datacenter="east", to_datacenter="west", capacity_mbit_per_s=80),
            LinkConfig(from_datacenter="west", to_datacenter="east", capacity_mbit_per_s=80),
        ),
        limits=LimitsConfig(
            request_timeout_s=REQUEST_S,
            coalesce_tokens_min=96,
            coalesce_wait_s=5.0,
            client_write_timeout_s=5.0,
            reservation_ttl_s=6.0,
            retry_floor=2,
        ),
        kv=KvConfig(lease_s=6.0, renew_interval_s=2.0),
        # As often as in production they would be a third of all that is simulated.
        health=HealthConfig(link_probe_interval_s=1.5),
    )


@dataclass(slots=True, kw_only=True)
class RouterNode:
    """A running router."""

    process: Process
    router_id: str
    dispatcher: Dispatcher
    tracker: ViewTracker
    recorder: Recorder
    metrics: RouterMetrics
    store: SimStore
    in_flight_max: int = 0
    is_leaving: bool = False


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


@dataclass(slots=True, kw_only=True)
class Shared:
    """What all processes of a world share."""

    fleet: FleetConfig
    network: Network
    store: StoreNode
    story: Story
    #: A source of its own for each use in each life, so that one more use changes no other.
    random: Callable[[Process, str], Random]
    #: Told of what may never be, by invariant.
    violate: Callable[[str, str], None]
    times: EngineTimes = field(default_factory=EngineTimes)
    #: Workers that are of a version before resuming.
    old: set[str] = field(default_factory=set)
    #: What each worker does from its next life on.
    roles: dict[str, Role] = field(
        default_factory=lambda: (
            dict.fromkeys(PREFILLS, "prefill") | dict.fromkeys(DECODES, "decode")
        )
    )
    on_poison: Callable[[str], None] = lambda _: None


def start_router(shared: Shared, process: Process) -> RouterNode:
    """A router with all its tasks."""
    return process.host.run(_start_router, shared, process)


def _start_router(shared: Shared, process: Process) -> RouterNode:
    fleet, clock = shared.fleet, shared.network.loop.time
    store = SimStore(shared.store, process, shared.random(process, "store"))
    metrics = RouterMetrics()
    router_id = f"{process.name}-{process.life}"
    tracker = ViewTracker(
        home_datacenter=process.datacenter,
        links=fleet.links,
        ttl_s=fleet.heartbeat.ttl_s,
        clock=clock,
        rules=view_rules(fleet),
        rng=shared.random(process, "view"),
    )
    recorder = Recorder(store, metrics, recent_max=1000, pending_max=500, gather_s=0.01)
    workers = SimWorkerClient(process, fleet.limits)
    dispatcher = assemble(
        router_id=router_id,
        limits=fleet.limits,
        store=store,
        workers=workers,
        tracker=tracker,
        recorder=recorder,
        metrics=metrics,
        policy=load_policy(fleet.router.policy, fleet.router.policy_parameters),
        policy_parameters=fleet.router.policy_parameters,
        clock=clock,
        seeds=shared.random(process, "decisions"),
    )
    services = dispatcher.services
    documents = DocumentFeed(
        store,
        metrics,
        {"policy": partial(take_policy, services), "plan": partial(take_plan, tracker)},
    )
    feed = ViewFeed(
        store,
        tracker,
        clock,
        on_blamed=lambda blamed: services.quarantine.blame(blamed.fingerprint, blamed.incarnation),
        on_published=documents.published,
        on_synced=documents.missed,
    )
    node = RouterNode(
        process=process,
        router_id=router_id,
        dispatcher=dispatcher,
        tracker=tracker,
        recorder=recorder,
        metrics=metrics,
        store=store,
    )
    process.spawn(feed.run(), "feed")
    process.spawn(documents.run(), "documents")
    process.spawn(recorder.run(), "recorder")
    process.spawn(services.keys.run(), "keys")
    probes = Probes(
        SimProber(workers), tracker, metrics, fleet.health, shared.random(process, "probes")
    )
    process.spawn(probes.run(), "probes")
    link_probes = LinkProbes(
        SimLinkProber(process),
        tracker,
        metrics,
        fleet.health,
        shared.random(process, "link probes"),
        clock,
    )
    process.spawn(link_probes.run(), "link probes")

    async def listen() -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(fleet.store.slow_call_timeout_s):
                await feed.is_synced.wait()
        serve_clients(process, dispatcher, clock, fleet.limits.client_write_timeout_s)

    process.spawn(listen(), "listen")
    return node


async def publish_policy(store: MemoryStore, policy: str, shadow: str) -> None:
    """Let another policy decide in all routers, and one more answer in its shadow."""
    before = await store.document("policy")
    change = PolicyChange(
        policy=policy,
        parameters=parameters_of(policy),
        shadows=(PolicyChoice(policy=shadow, parameters=parameters_of(shadow)),),
    )
    after = changed(read_document(before.body) if before is not None else None, change, at=0.0)
    await store.publish("policy", after.model_dump_json().encode())


def decides(node: RouterNode) -> str:
    """The policy that decides in a router."""
    return node.dispatcher.services.policy.name


def published_policy(shared: Shared) -> str | None:
    """The policy that the store says should decide, None when none was published."""
    document = shared.store.memory._documents.get("policy")
    return read_document(document.body).live.policy if document is not None else None


def troubles_with_policies(node: RouterNode) -> list[str]:
    """Policies that failed, and documents that were refused: none of either is there."""
    metrics = node.metrics
    return [
        f"{metric.name} {sample.labels}"
        for counter in (metrics.policy_faults_total, metrics.documents_refused_total)
        for metric in counter.collect()
        for sample in metric.samples
        if sample.name.endswith("_total") and sample.value
    ]


def known_workers(node: RouterNode) -> list[tuple[str, KnownWorker]]:
    """What a router remembers of each worker."""
    return [(known.beat.worker_id, known) for known in node.tracker._members]


def index_of(node: RouterNode, worker_id: str) -> set[bytes]:
    """Blocks that a router believes a worker has."""
    return set(node.tracker._inventories._index._held.get(worker_id, ()))


async def stop_router(shared: Shared, node: RouterNode) -> None:
    """What a router does after SIGTERM."""
    node.is_leaving = True
    await node.dispatcher.drain(shared.fleet.limits.drain_s)
    await node.dispatcher.services.settle()
    await node.recorder.flush()


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
