"""The parts of a router put together for a world."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from sim.clients import serve_clients
from sim.doors import (
    SimLinkProber,
    SimProber,
    SimWorkerClient,
)
from sim.network import Process
from sim.shared import Shared, parameters_of
from sim.store import SimStore

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
from policies.registry import load_policy


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
