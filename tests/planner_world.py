"""Several routers' planners over one store, on a virtual loop, with workers that change their roles."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, cast

from admin_world import a_record, an_attempt
from builders import a_link, a_view
from planner_builders import LINK, a_worker_beat, rules

from controlplane.config import StoreConfig
from controlplane.config_planner import PlannerConfig
from controlplane.domain.cluster import ClusterView, Role
from controlplane.domain.plan import Plan
from controlplane.errors import RoleRefused, StoreUnavailable
from controlplane.observe.metrics import RouterMetrics
from controlplane.observe.planner_metrics import PlannerMetrics
from controlplane.planner.meter import TrafficMeter
from controlplane.planner.planner import Planner
from controlplane.planner.role_changes import RoleChanges
from controlplane.router.records import DecisionRecord
from controlplane.store.api import StateStore
from controlplane.store.memory_store import MemoryStore
from controlplane.wire import Role as WireRole
from controlplane.wire import RoleChange, RoleReply, WorkerBeat
from controlplane.wire_plan import decode_plan

#: Lengths that requests have, in turn: most of them short, a few long.
LENGTHS = (101, 201, 301, 501, 801, 1201, 2001, 3501)
#: A worker that changes needs so long to finish what it has, and so long to be back.
DRAIN_S = 12.0
AWAY_S = 8.0


@cache
def a_request_of(tokens: int) -> DecisionRecord:
    """A request of this length, answered."""
    return a_record(an_attempt(input_tokens=tokens))


class Door:
    """The store as one router reaches it."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.is_shut = False

    def __getattr__(self, name: str) -> Any:
        async def call(*arguments: Any, **options: Any) -> Any:
            if self.is_shut:
                raise StoreUnavailable("the store is away")
            return await getattr(self._store, name)(*arguments, **options)

        return call


@dataclass
class Workers:
    """What all workers say, and how they change: drain, go, come back as another incarnation."""

    beats: dict[str, WorkerBeat]
    asked: list[tuple[str, str, float]] = field(default_factory=list)
    #: Most workers of a role change that drained or were away at one time.
    busy_max: int = 0
    #: Workers that say no.
    stubborn: frozenset[str] = frozenset()
    first_asked: asyncio.Event = field(default_factory=asyncio.Event)
    _changing: set[str] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def change_role(self, url: str, change: RoleChange) -> RoleReply:
        worker_id = url.removeprefix("http://")
        beat = self.beats[worker_id]
        self.asked.append((worker_id, change.role, change.lend_share))
        self.first_asked.set()
        if worker_id in self.stubborn or beat.incarnation != change.incarnation:
            raise RoleRefused("not now", reason="role_dwell")
        if change.role == beat.role:
            self.beats[worker_id] = beat.model_copy(update={"lend_share": change.lend_share})
        else:
            self._changing.add(worker_id)
            self.busy_max = max(self.busy_max, len(self._changing))
            task = asyncio.get_running_loop().create_task(self._become(worker_id, change.role))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return RoleReply(worker_id=worker_id, incarnation=beat.incarnation, role=change.role)

    async def _become(self, worker_id: str, role: WireRole) -> None:
        beat = self.beats[worker_id]
        self.beats[worker_id] = beat.model_copy(update={"is_draining": True})
        await asyncio.sleep(DRAIN_S)
        del self.beats[worker_id]
        await asyncio.sleep(AWAY_S)
        self.beats[worker_id] = beat.model_copy(
            update={"role": role, "incarnation": beat.incarnation + "'"}
        )
        self._changing.discard(worker_id)

    def counts(self) -> dict[str, int]:
        """Workers in west that take work, by role."""
        west = [beat for beat in self.beats.values() if beat.datacenter == "west"]
        return {
            role: sum(beat.role == role and not beat.is_draining for beat in west)
            for role in ("prefill", "decode")
        }


class Router:
    """One router: its picture, its meter, its planner, and its door to the store."""

    def __init__(self, world: PlannerWorld, name: str) -> None:
        self.name = name
        self._world = world
        self.door = Door(world.store)
        self.metrics = RouterMetrics()
        clock = asyncio.get_running_loop().time
        shown = PlannerMetrics(self.metrics.registry)
        self.meter = TrafficMeter(
            home="west",
            role_of=world.role_of,
            window_s=world.rules.window_s,
            burst_window_s=world.rules.burst_window_s,
            profile_window_s=world.rules.profile_window_s,
            clock=clock,
        )
        self.planner = Planner(
            router_id=name,
            store=cast("StateStore", self.door),
            cluster=self,
            meter=self.meter,
            changes=RoleChanges(world.workers, shown, world.rules, clock),
            metrics=shown,
            rules=world.rules,
            clock=clock,
        )
        self.task = asyncio.get_running_loop().create_task(self.planner.run())

    def view(self) -> ClusterView:
        return a_view(links=(a_link(capacity_bps=self._world.link_bps),))

    def beats(self) -> list[WorkerBeat]:
        return list(self._world.workers.beats.values())

    def kill(self) -> None:
        """It ends without a word: nothing of it reaches the store any more."""
        self.door.is_shut = True
        self.task.cancel()

    def count(self, outcome: str) -> float:
        """How often one thing became of its plans."""
        found = self.metrics.registry.get_sample_value("prfaas_plans_total", {"outcome": outcome})
        return found or 0.0


class PlannerWorld:
    """A store, workers in east and west, routers in west, and traffic."""

    def __init__(
        self,
        *,
        routers: int = 2,
        per_s: float = 4.0,
        link_mbit_per_s: float = 1000.0,
        west: Mapping[str, int] | None = None,
        **overrides: Any,
    ) -> None:
        self.store = MemoryStore(config=StoreConfig(), clock=asyncio.get_running_loop().time)
        self.rules: PlannerConfig = rules(**overrides)
        self.link_bps = link_mbit_per_s * 1e6
        self.per_s = per_s
        counts = west or {"prefill": 2, "decode": 2}
        beats = [a_worker_beat(f"east/p{number}", roles=()) for number in range(2)]
        beats += [
            a_worker_beat(f"west/{role[0]}{number}", role=role)
            for role, count in counts.items()
            for number in range(count)
        ]
        self.workers = Workers({beat.worker_id: beat for beat in beats})
        self.routers = [Router(self, f"west/router-{number}") for number in range(routers)]
        self._traffic = asyncio.get_running_loop().create_task(self._send())

    def role_of(self, worker_id: str) -> tuple[str, Role] | None:
        beat = self.workers.beats.get(worker_id)
        return None if beat is None else (beat.datacenter, beat.role)

    async def _send(self) -> None:
        """Requests, to the routers in turn."""
        number = 0
        while True:
            await asyncio.sleep(1 / self.per_s)
            meter = self.routers[number % len(self.routers)].meter
            record = a_request_of(LENGTHS[number % len(LENGTHS)])
            meter.arrived()
            meter.decided(record.attempts[0].features, record.attempts[0].decision)
            meter.observe(record)
            number += 1

    async def plan(self) -> Plan:
        """What stands in the store."""
        document = await self.store.document("plan")
        assert document is not None, "nothing was published"
        plan = decode_plan(document.body)
        assert plan.version == document.version
        return plan

    async def threshold(self) -> float:
        """The published threshold of the one link."""
        return (await self.plan()).threshold_tokens[LINK]

    def leaders(self) -> list[Router]:
        """Routers that may publish now."""
        return [router for router in self.routers if router.planner.leads]

    @property
    def leader(self) -> Router:
        (leader,) = self.leaders()
        return leader
