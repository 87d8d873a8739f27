"""One world: processes, clients, a fault plan, and what is looked at when."""

from __future__ import annotations

import asyncio
import gc
import math
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

from sim.clients import Asked, ask
from sim.engine import EngineTimes
from sim.faults import SECOND_HALF, Fault, Plan, draw_plan
from sim.invariants import Judge
from sim.kv import kv_over, spoil
from sim.network import Network, Process
from sim.probes import probes
from sim.routers import RouterNode, publish_policy, start_router, stop_router
from sim.shared import DECODES, PREFILLS, ROUTERS, Shared, a_fleet
from sim.store import STORE, StoreNode
from sim.story import Story, told_to
from sim.workers import WorkerNode, start_worker, stop_worker
from sim.workload import draw_calm, draw_requests

from controlplane.errors import TransferError
from controlplane.replay.loop import Host, VirtualLoop, finish, virtual_loop
from workers.kv.client import renew_segment

#: All faults are over, and everything is whole again.
HEAL_S = 14.0
#: From here on nearly everything must succeed.
CALM_S = HEAL_S + 10.0
CALM_REQUESTS = 8

#: Between two looks at everything.
STEP_S = 0.25

#: Between the lives of a worker that changes its role.
_REBORN_S = 0.02

#: A process exits so long after SIGTERM at most.
EXIT_S = 35.0

#: After the last answer: time for what goes on behind requests, and for all leases and claims.
SETTLE_S, TTL_S = 3.0, 7.0

#: What each kind of trouble with the store is called there.
_TROUBLES = {
    "store_error": "error",
    "store_lost_answer": "lost_answer",
    "store_lost_call": "lost_call",
    "store_slow": "slow_s",
}


@dataclass(slots=True, kw_only=True)
class Result:
    """What a run showed."""

    seed: int
    plan: Plan
    violations: list[tuple[str, str]]
    requests: int
    outcomes: Counter[str]
    faults: Counter[str]
    digest: str
    virtual_s: float
    story: Story

    @property
    def is_right(self) -> bool:
        """Nothing was violated."""
        return not self.violations


@dataclass(slots=True)
class World:
    """The state of a run."""

    seed: int
    plan: Plan
    loop: VirtualLoop
    context: Context = field(default_factory=copy_context)
    nodes: dict[str, RouterNode | WorkerNode] = field(default_factory=dict)
    lives: Counter[str] = field(default_factory=Counter)
    asked: list[Asked] = field(default_factory=list)
    is_healed: bool = False
    healed_s: float = math.inf
    network: Network = field(init=False)
    story: Story = field(init=False)
    shared: Shared = field(init=False)
    judge: Judge = field(init=False)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.story = Story(lambda: self.loop.now_s)
        self.network = Network(self.loop, self.random("network"), self.context)
        self.network.spoil = spoil
        self.judge = Judge(self)
        policy = self.random("policy").choice(("prfaas", "prfaas", "lookahead", "round_robin"))
        fleet = a_fleet(policy)
        store_process = self.process(STORE)
        store = StoreNode(self.network, fleet.store, lambda: store_process.host.run(self.loop.time))
        times = self.random("times")
        engine_times = EngineTimes(
            prefill_s_per_token=times.choice((0.001, 0.001, 0.004)),
            decode_step_s=times.choice((0.02, 0.02, 0.06)),
            slots=fleet.model.decode_slots,
        )
        self.shared = Shared(
            fleet=fleet,
            network=self.network,
            store=store,
            story=self.story,
            random=lambda process, use: self.random(f"{process.name} {process.life} {use}"),
            violate=self.judge.violate,
            times=engine_times,
            old=set(self.plan.old),
            on_poison=self._poisoned,
        )

    def random(self, what: str) -> Random:
        """A stream of its own for each use, so that one more draw here changes nothing there."""
        return Random(f"{self.seed} {what}")

    # --- Processes ----------------------------------------------------------------------------

    def process(self, name: str) -> Process:
        """A new life of a process."""
        self.lives[name] += 1
        life = self.lives[name]
        clocks = {who: (ahead_s, rate) for who, ahead_s, rate in self.plan.clocks}
        ahead_s, rate = clocks.get(name, (0.0, 1.0))
        # Monotonic clocks begin anywhere; being an hour ahead is one place more.
        host = Host(name, offset_s=100.0 * len(self.lives) + ahead_s, rate=rate)
        datacenter = name.partition("/")[0] if "/" in name else "west"
        process = Process(self.network, name, datacenter, host, life)
        self.network.start(process)
        return process

    def start(self, name: str) -> None:
        """Start a life of a router or worker."""
        process = self.process(name)
        self.story.tell(f"{name} starts life {process.life}")
        if name in ROUTERS:
            self.nodes[name] = start_router(self.shared, process)
        else:
            self.nodes[name] = start_worker(self.shared, process)

    def kill(self, name: str, for_s: float) -> None:
        """End a life, and start another one later."""
        node = self.nodes.pop(name, None)
        if node is None:
            return
        self.story.tell(f"{name} is killed")
        node.process.kill()
        self.judge.died(node)
        self._later(for_s, lambda: self._restart(name))

    def _poisoned(self, name: str) -> None:
        self.judge.poisoned.append(f"{name} life {self.lives[name]}")
        self.kill(name, 1.0)

    def _restart(self, name: str) -> None:
        if name not in self.nodes:
            self.start(name)

    def _later(self, seconds: float, work: Callable[[], None]) -> None:
        self.context.run(self.loop.call_later, seconds, work)

    def spawn(self, coro: Coroutine[Any, Any, None], name: str) -> None:
        """Run something that belongs to no process."""
        self._tasks.append(self.loop.create_task(coro, name=name, context=self.context.copy()))

    # --- Faults -------------------------------------------------------------------------------

    async def _trouble(self, fault: Fault) -> None:
        lead_s = fault.amount if fault.kind == "store_failover" else 0.0
        await asyncio.sleep(max(0.0, fault.at_s - lead_s - self.loop.now_s))
        if lead_s:
            self.shared.store.save()
            await asyncio.sleep(lead_s)
        if self.is_healed:
            return
        self.story.tell(f"fault: {fault}")
        end = self._begin(fault)
        if end is None:
            return
        await asyncio.sleep(fault.for_s)
        self.story.tell(f"over: {fault}")
        end()

    def _begin(self, fault: Fault) -> Callable[[], None] | None:
        """Begin a fault; what ends it, if it lasts."""
        target = fault.target
        end: Callable[[], None] | None = None
        match fault.kind:
            case "kill":
                self.kill(target, fault.for_s)
            case "pause" | "store_pause":
                end = self._pause(target)
            case "hang":
                end = self._hang(target)
            case "drain":
                self.spawn(self._drain(fault), f"drain {target}")
            case "role":
                self.spawn(self._change_role(target), f"role {target}")
                end = partial(self._role_back, target)
            case "stale_reader":
                self._read_again(fault)
            case _:
                end = self._begin_at_network(fault)
        return end

    def _begin_at_network(self, fault: Fault) -> Callable[[], None] | None:
        network, target = self.network, fault.target
        end: Callable[[], None] | None = None
        match fault.kind:
            case "cut" | "cut_one_way" | "swizzle":
                network.block(target, fault.other)
                end = partial(network.heal, target, fault.other)
            case "delay":
                end = self._set(network.slow, (target, fault.other), fault.amount)
            case "duplicate":
                end = self._set(network.twice, target, fault.amount)
            case "corrupt":
                end = self._set(network.spoilt, target, fault.amount)
            case _:
                end = self._begin_at_store(fault)
        return end

    def _begin_at_store(self, fault: Fault) -> Callable[[], None] | None:
        store = self.shared.store
        match fault.kind:
            case "store_flush":
                store.flush()
            case "store_split":
                store.split(SECOND_HALF)
                self._revive_store()
                return self._join_store
            case "policy_switch":
                process = self.network.processes[STORE]
                process.spawn(publish_policy(store.memory, fault.target, fault.other), "publish")
            case "store_failover":
                store.lose_tail()
                self._revive_store()
            case "store_kill":
                self.network.processes[STORE].kill()
                store.flush()
                return self._revive_store
            case _:
                name = _TROUBLES[fault.kind]
                setattr(store.troubles, name, fault.amount)
                return lambda: setattr(store.troubles, name, 0.0)
        return None

    def _join_store(self) -> None:
        self.shared.store.join()
        self._revive_store()

    def _revive_store(self) -> None:
        """Another server takes over: connections of the first one break."""
        before = self.network.processes[STORE]
        before.kill()
        after = Process(self.network, STORE, before.datacenter, Host(STORE), before.life + 1)
        after.host.offset_s, after.host.rate = before.host.offset_s, before.host.rate
        self.network.start(after)

    def _set(self, where: dict[Any, float], key: Any, amount: float) -> Callable[[], None]:
        where[key] = amount

        def end() -> None:
            where.pop(key, None)

        return end

    def _pause(self, name: str) -> Callable[[], None] | None:
        process = self.network.processes[name]
        if not process.is_alive or process.host.is_paused:
            return None
        self.loop.pause(process.host)
        return lambda: self.loop.resume(process.host)

    def _hang(self, name: str) -> Callable[[], None] | None:
        node = self.nodes.get(name)
        if not isinstance(node, WorkerNode):
            return None
        node.engine.is_moving.clear()
        return node.engine.is_moving.set

    def _read_again(self, fault: Fault) -> None:
        """Ask an owner for a segment of long ago, with the real reader's words."""
        node, known = self.nodes.get(fault.target), self.network.locations.get(fault.other)
        if node is None or not known:
            return
        # The one that hurts most, if there is one: its slot holds another segment now.
        owner = self.nodes.get(fault.other)
        there = owner.segments._known if isinstance(owner, WorkerNode) and owner.segments else {}
        reused = [
            one
            for one in known
            if (now := there.get(one.segment_id)) is not None
            and now.manifest.scope == one.manifest.scope
            and one.incarnation != f"life-{self.lives[fault.other]}"
        ]
        chosen = reused or known
        location = chosen[int(fault.amount * len(chosen))]

        async def read() -> None:
            with suppress(TransferError, TimeoutError):
                async with asyncio.timeout(2.0):
                    await renew_segment(location, config=self.shared.fleet.kv)

        node.process.spawn(read(), "stale reader")

    async def _drain(self, fault: Fault) -> None:
        node = self.nodes.get(fault.target)
        if node is None or node.is_leaving:
            return
        if isinstance(node, RouterNode):
            leaving = node.process.spawn(stop_router(self.shared, node), "leave")
        else:
            leaving = node.process.spawn(stop_worker(self.shared, node), "leave")
        began_s = self.loop.now_s
        await asyncio.wait([leaving])
        if self.nodes.get(fault.target) is not node:
            return
        self.judge.left(node, self.loop.now_s - began_s, leaving)
        self.story.tell(f"{fault.target} has left")
        self.kill(fault.target, fault.for_s)

    async def _change_role(self, name: str) -> None:
        """What a worker does that is asked to: it drains, and its next life has the other role."""
        roles = self.shared.roles
        roles[name] = "decode" if roles[name] == "prefill" else "prefill"
        await self._drain(Fault(self.loop.now_s, "role", name, for_s=_REBORN_S))

    def _role_back(self, name: str) -> None:
        self.spawn(self._change_role(name), f"role {name}")

    def _heal(self) -> None:
        """All faults are over: what is cut joins, what is stopped goes on, what died is there."""
        self.story.tell("all faults are over")
        self.is_healed, self.healed_s = True, self.loop.now_s
        network = self.network
        for way in sorted(network.cut):
            network.heal(*way)
        network.slow.clear()
        network.twice.clear()
        network.spoilt.clear()
        troubles = self.shared.store.troubles
        troubles.error = troubles.lost_answer = troubles.lost_call = troubles.slow_s = 0.0
        self.shared.store.join()
        if not network.processes[STORE].is_alive:
            self._revive_store()
        for process in network.processes.values():
            self.loop.resume(process.host)
        for name in (*PREFILLS, *DECODES, *ROUTERS):
            self._restart(name)
            node = self.nodes[name]
            if isinstance(node, WorkerNode):
                node.engine.is_moving.set()

    # --- The run ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Everything, to the last look."""
        for name in (*PREFILLS, *DECODES, *ROUTERS):
            self.start(name)
        clients = self.process("clients")
        clients.host.offset_s, clients.host.rate = 0.0, 1.0
        self.asked = draw_requests(self.random("workload"), self.plan)
        self.asked += draw_calm(self.random("calm"), CALM_REQUESTS, CALM_S)
        for fault in self.plan.faults:
            self.spawn(self._trouble(fault), str(fault))
        self.spawn(self._look(), "look")
        asking = [self._ask(clients, asked) for asked in self.asked]
        await asyncio.sleep(HEAL_S)
        self._heal()
        last_s = max(asked.at_s + asked.deadline_s for asked in self.asked) + EXIT_S
        await asyncio.wait(asking, timeout=last_s - self.loop.now_s)
        await asyncio.sleep(SETTLE_S)
        self.judge.settled()
        self._judge_own_tasks()
        self.network.is_probing = False
        await asyncio.sleep(TTL_S)
        self.judge.final()

    def _judge_own_tasks(self) -> None:
        """A look that broke off has seen nothing since."""
        for task in self._tasks:
            if task.done() and not task.cancelled() and task.exception() is not None:
                self.judge.violate("bug", f"{task.get_name()} broke off: {task.exception()!r}")

    def _ask(self, clients: Process, asked: Asked) -> asyncio.Task[None]:
        async def later() -> None:
            await asyncio.sleep(asked.at_s - self.loop.now_s)
            self.story.tell(
                f"client asks {asked.router}: {len(asked.tokens)} tokens of {asked.scope}, up to "
                f"{asked.output_tokens_max} more within {asked.deadline_s} s",
                asked.request_id,
            )
            await ask(clients, asked, lambda said: self.story.tell(said, asked.request_id))

        return clients.spawn(later(), f"client {asked.request_id}")

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(STEP_S)
            self.judge.step()

    def result(self) -> Result:
        """What it showed."""
        faults = Counter(self.plan.counts())
        for name, count in self.network.counts.items():
            faults[f"{name} (done)"] += count
        return Result(
            seed=self.seed,
            plan=self.plan,
            violations=self.judge.violations,
            requests=len(self.asked),
            outcomes=Counter(f"{one.end or 'lost'} {one.code}".strip() for one in self.asked),
            faults=faults,
            digest=f"{self.story.digest}-{self.loop.trace & (1 << 64) - 1:016x}",
            virtual_s=self.loop.now_s,
            story=self.story,
        )


def run_world(seed: int, plan: Plan | None = None) -> Result:
    """Run one seed, with its own plan or another one."""
    was_enabled = gc.isenabled()
    # A world is dropped as a whole; looking for garbage in it takes a tenth of its time.
    gc.disable()
    try:
        return _run_world(seed, plan)
    finally:
        if was_enabled:
            gc.enable()
        gc.collect()


def _run_world(seed: int, plan: Plan | None) -> Result:
    loop = virtual_loop(seed)
    if plan is None:
        plan = draw_plan(seed)
    world = World(seed, plan, loop)
    with told_to(world.story), kv_over(world.network), probes(world):
        try:
            loop.run_until_complete(world.run())
        except Exception as error:  # noqa: BLE001 - a world that breaks is a finding like any other
            world.judge.violate("bug", f"the world broke: {type(error).__name__}: {error}")
        finally:
            world.judge.uncaught(loop.uncaught)
            result = world.result()
            _end(world)
    return result


def _end(world: World) -> None:
    """Leave nothing behind for the next world."""
    for process in tuple(world.network.owners.values()):
        process.kill()
    finish(world.loop)
