"""A fleet on a virtual clock: production's router over emulated workers and links, wired once."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any, Final

from controlplane.config import (
    DatacenterConfig,
    FleetConfig,
    HeartbeatConfig,
    LimitsConfig,
    LinkConfig,
    RouterConfig,
    StoreConfig,
)
from controlplane.config_planner import PlannerConfig
from controlplane.domain.cluster import Role
from controlplane.domain.prefix import BlockHash
from controlplane.observe.metrics import RouterMetrics
from controlplane.planner.assembly import assemble_planner
from controlplane.replay.client import ReplayWorkerClient
from controlplane.replay.flows import SharedLink
from controlplane.replay.loop import VirtualLoop
from controlplane.replay.recorder import TallyRecorder
from controlplane.replay.results import LinkUse, RoleUse, Tally
from controlplane.replay.roles import Registry
from controlplane.replay.spec import LinkStep, Loss, WorldSpec
from controlplane.replay.worker import EmulatedWorker
from controlplane.router.assembly import assemble
from controlplane.router.dispatcher import Dispatcher
from controlplane.router.documents import DocumentFeed, take_plan
from controlplane.router.feed import ViewFeed
from controlplane.router.rules import view_rules
from controlplane.router.view import ViewTracker
from controlplane.store.memory_store import MemoryStore
from policies.api import Policy

#: Beats are coarse: the router counts its own claims between two of them, and each costs as much
#: as half a request. What receivers tell of a link is believed for two of them.
BEAT_S: Final = 2.5

#: Parts of a fleet that beat together, one after the other.
_BEAT_PARTS: Final = 4
_GIGABYTE: Final = 1e9

#: A transfer that moves nothing for so long fails, as in `KvConfig.stall_timeout_s`.
_STALL_S: Final = 5.0

#: Events that the store keeps, for each worker: several beats.
_EVENTS_PER_WORKER: Final = 8


#: What a fleet file may say of the workers of one site; more are there all the same.
_WORKERS_TOLD_MAX: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldOptions:
    """What of production's settings a replay changes."""

    beat_s: float = BEAT_S
    #: Seconds for a whole request.
    request_timeout_s: float = 600.0
    #: Requests that wait at the door, and for how long.
    queue_requests_max: int = 512
    queue_wait_s: float = 10.0
    #: The slow loop plans, and changes roles if it may; None plans nothing.
    planner: PlannerConfig | None = None


@dataclass(slots=True, kw_only=True)
class World:
    """A running fleet."""

    loop: VirtualLoop
    spec: WorldSpec
    workers: dict[str, EmulatedWorker]
    links: dict[str, SharedLink]
    registry: Registry
    client: ReplayWorkerClient
    store: MemoryStore
    dispatcher: Dispatcher
    tracker: ViewTracker
    #: Block hashes of requests in flight, by request id.
    hashes: dict[str, Sequence[BlockHash]]
    options: WorldOptions
    tasks: _Tasks

    async def stop(self) -> None:
        """End everything."""
        await self.tasks.stop()

    def link_uses(self) -> dict[str, LinkUse]:
        """How far each link was used."""
        uses = {}
        prices = {link.link_id: link.egress_price_per_gb for link in self.spec.links}
        for name, link in sorted(self.links.items()):
            link.catch_up()
            could = link.capacity_bits
            uses[name] = LinkUse(
                bytes_total=round(link.bytes_total),
                utilisation=link.bytes_total * 8 / could if could else 0.0,
                egress_cost=link.bytes_total / _GIGABYTE * prices[name],
            )
        return uses

    def role_uses(self) -> dict[str, RoleUse]:
        """How far workers were used, by datacenter and role."""
        used: dict[str, list[tuple[float, float]]] = {}
        for worker in self.workers.values():
            slots = max(1, worker.decoding.slots)
            spans: tuple[tuple[Role, float], ...] = (
                ("prefill", worker.prefilling.busy_s),
                ("decode", worker.decoding.busy_s / slots),
            )
            for role, busy_s in spans:
                if (had_s := worker.role_s(role)) > 0:
                    used.setdefault(f"{worker.datacenter}/{role}", []).append((busy_s, had_s))
        now_s = max(self.loop.time(), 1e-9)
        return {
            key: RoleUse(
                workers=round(sum(had_s for _, had_s in spans) / now_s, 3),
                utilisation=sum(busy for busy, _ in spans) / sum(had_s for _, had_s in spans),
            )
            for key, spans in sorted(used.items())
        }


class _Tasks:
    """What runs as long as a world does."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._tasks: dict[asyncio.Task[None], None] = {}
        #: What one of them ended with, which none of them should.
        self.failed: BaseException | None = None

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run something."""
        task = self._loop.create_task(work, name=name)
        self._tasks[task] = None
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        if not task.cancelled() and self.failed is None:
            self.failed = task.exception()

    async def stop(self) -> None:
        """
        End everything.

        Raises:
            Exception: What one of them has ended with.
        """
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.failed is not None:
            raise self.failed


def build_world(
    loop: VirtualLoop,
    spec: WorldSpec,
    *,
    policy: Policy,
    parameters: Mapping[str, Any],
    tally: Tally,
    seed: int,
    options: WorldOptions,
) -> World:
    """Everything wired, nothing running yet but what `start` begins."""
    fleet = _fleet(spec, options)
    limits = fleet.limits
    links = {
        link.link_id: SharedLink(
            link.capacity_bps, rtt_s=link.rtt_s, stall_timeout_s=_STALL_S, loop=loop
        )
        for link in spec.links
    }
    workers = {
        one.worker_id: EmulatedWorker(
            one, spec, loop, lambda src, dst: links.get(f"{src}>{dst}") if src != dst else None
        )
        for one in spec.workers
    }
    events_max = max(100, _EVENTS_PER_WORKER * len(workers))
    store = MemoryStore(config=StoreConfig(decisions_max=1, events_max=events_max), clock=loop.time)
    metrics = RouterMetrics.unread()
    tracker = ViewTracker(
        home_datacenter=spec.home,
        links=fleet.links,
        ttl_s=fleet.heartbeat.ttl_s,
        clock=loop.time,
        rules=view_rules(fleet),
        rng=Random(seed + 1),
        wall_clock=loop.time,
    )
    hashes: dict[str, Sequence[BlockHash]] = {}
    control = _Control(spec, links)
    tasks = _Tasks(loop)
    registry = Registry(store, ttl_s=fleet.heartbeat.ttl_s, spawn=tasks.spawn)
    for worker in workers.values():
        registry.add(worker)
    client = ReplayWorkerClient(
        registry,
        limits=limits,
        hashes=lambda job_id: hashes.get(job_id.rpartition(".")[0], ()),
        control_rtt_s=control.rtt_s,
    )
    dispatcher = assemble(
        router_id="replay",
        limits=limits,
        store=store,
        workers=client,
        tracker=tracker,
        recorder=TallyRecorder(store, metrics, tally, loop.time),
        metrics=metrics,
        policy=policy,
        policy_parameters=parameters,
        clock=loop.time,
        seeds=Random(seed + 2),
    )
    return World(
        loop=loop,
        spec=spec,
        workers=workers,
        links=links,
        registry=registry,
        client=client,
        store=store,
        dispatcher=dispatcher,
        tracker=tracker,
        hashes=hashes,
        options=options,
        tasks=tasks,
    )


def _fleet(spec: WorldSpec, options: WorldOptions) -> FleetConfig:
    """Production's settings for such a fleet: the defaults, but for what a replay changes."""
    ends = [name for link in spec.links for name in (link.from_datacenter, link.to_datacenter)]
    names = {*ends, *(worker.datacenter for worker in spec.workers)}
    sites = {name: {"prefill": 0, "decode": 0} for name in sorted(names)}
    for worker in spec.workers:
        counts = sites[worker.datacenter]
        counts[worker.role] = min(_WORKERS_TOLD_MAX, counts[worker.role] + 1)
    return FleetConfig(
        name="replay",
        router=RouterConfig(datacenter=spec.home),
        datacenters=tuple(
            DatacenterConfig(
                name=name, prefill_workers=counts["prefill"], decode_workers=counts["decode"]
            )
            for name, counts in sorted(sites.items())
        ),
        links=tuple(
            LinkConfig(
                from_datacenter=link.from_datacenter,
                to_datacenter=link.to_datacenter,
                capacity_mbit_per_s=link.capacity_bps / 1e6,
                emulated_delay_ms=link.rtt_s * 1000,
                egress_price_per_gb=link.egress_price_per_gb,
            )
            for link in spec.links
        ),
        limits=LimitsConfig(
            requests_max=100_000,
            request_timeout_s=options.request_timeout_s,
            queue_requests_max=options.queue_requests_max,
            queue_wait_s=options.queue_wait_s,
        ),
        heartbeat=HeartbeatConfig(
            interval_s=options.beat_s, timeout_s=options.beat_s / 5, ttl_s=4 * options.beat_s
        ),
    )


class _Control:
    """How messages reach a datacenter: over the links between it and the router's, if there are any."""

    def __init__(self, spec: WorldSpec, links: Mapping[str, SharedLink]) -> None:
        self._home = spec.home
        self._links: dict[str, list[SharedLink]] = {}
        for link in spec.links:
            ends = {link.from_datacenter, link.to_datacenter}
            if spec.home in ends:
                (other,) = ends - {spec.home}
                self._links.setdefault(other, []).append(links[link.link_id])

    def rtt_s(self, datacenter: str) -> float | None:
        """Round trip; None while a link between the two is cut."""
        found = self._links.get(datacenter, ())
        if any(link.capacity_bps <= 0 for link in found):
            return None
        return max((link.rtt_s for link in found), default=0.0)


async def start(world: World) -> None:
    """Let all workers register, and the router have heard of them."""
    control = _Control(world.spec, world.links)
    spawn, services = world.tasks.spawn, world.dispatcher.services
    for worker in world.workers.values():
        await world.registry.beat(worker.main)
    documents = DocumentFeed(
        world.store, services.metrics, {"plan": partial(take_plan, world.tracker)}
    )
    feed = ViewFeed(world.store, world.tracker, world.loop.time, on_published=documents.published)
    spawn(feed.run(), "feed")
    spawn(services.recorder.run(), "recorder")
    if world.options.planner is not None:
        planner = assemble_planner(
            services,
            world.options.planner,
            home=world.spec.home,
            clock=world.loop.time,
            client=world.client,
        )
        spawn(documents.run(), "documents")
        spawn(planner.run(), "planner")
    spawn(_beats(world, control), "heartbeats")
    if world.spec.changes:
        spawn(_change(world), "changes")
    await feed.is_synced.wait()


async def _beats(world: World, control: _Control) -> None:
    """
    All heartbeats, a part of the workers at a time: the router takes those of a part in one turn.

    A worker that is dead, or cut off from the store, is not heard.
    """
    workers = tuple(world.workers.values())
    parts = [workers[start::_BEAT_PARTS] for start in range(_BEAT_PARTS)]
    while True:
        for part in parts:
            await asyncio.sleep(world.options.beat_s / _BEAT_PARTS)
            for worker in part:
                if worker.is_alive and control.rtt_s(worker.datacenter) is not None:
                    for life in worker.lives:
                        await world.registry.beat(life)


async def _change(world: World) -> None:
    """What the fleet file and the steps of links say happens by itself."""
    began_s = world.loop.time()
    for change in sorted(world.spec.changes, key=lambda one: one.at_s):
        await asyncio.sleep(max(0.0, began_s + change.at_s - world.loop.time()))
        if isinstance(change, LinkStep):
            world.links[change.link].set_capacity(change.capacity_bps)
        else:
            _lose(world, change)


def _lose(world: World, loss: Loss) -> None:
    lost = [world.workers[name] for name in loss.workers]
    for worker in lost:
        worker.die()
    if loss.back_after_s is not None:
        for worker in lost:
            world.loop.call_later(loss.back_after_s, worker.rise)
