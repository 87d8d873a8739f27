"""How an emulated worker changes its role, or what it lends: by drain, as real ones do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

from controlplane.domain.cluster import Role
from controlplane.errors import RoleRefused
from controlplane.replay.worker import EmulatedWorker, Life
from controlplane.store.memory_store import MemoryStore
from controlplane.wire import RoleChange, RoleReply
from workers.role_rules import Duties, Refusal, RoleState, duties_of, step_of

#: How long what is under way may take, as in `WorkerConfig.drain_s`.
_DRAIN_S: Final = 28.0
_LOOK_S: Final = 0.25


class Registry:
    """All workers of a world in the store, and by the URLs that they are reached at."""

    def __init__(
        self,
        store: MemoryStore,
        *,
        ttl_s: float,
        spawn: Callable[[Coroutine[Any, Any, None], str], None],
    ) -> None:
        """
        Args:
            store: Where workers register.
            ttl_s: Of a registration.
            spawn: Runs something as long as the world does.
        """
        self._store = store
        self._ttl_s = ttl_s
        self._spawn = spawn
        self._workers: dict[str, EmulatedWorker] = {}
        self._duties: dict[str, Duties] = {}
        self._stays_until_s: dict[str, float] = {}
        self._changing: set[str] = set()

    def __repr__(self) -> str:
        return f"<Registry of {len(self._workers)} workers>"

    def add(self, worker: EmulatedWorker) -> None:
        """A worker that is reached from now on."""
        self._workers[worker.url] = worker
        self._duties[worker.url] = Duties(role=worker.main.role)

    def find(self, url: str) -> tuple[EmulatedWorker, Life | None]:
        """Who is meant by a URL; no life where what was lent is not lent any more."""
        worker = self._workers.get(url)
        if worker is not None:
            return worker, worker.main
        worker = self._workers[url.removesuffix("/lent")]
        return worker, worker.lent

    async def beat(self, life: Life) -> None:
        """One heartbeat."""
        reply = await self._store.heartbeat(life.beat(), ttl_s=self._ttl_s)
        if reply.wants_full_inventory:
            life.wants_full_inventory = True

    def change(self, worker: EmulatedWorker, change: RoleChange) -> RoleReply:
        """
        Do what a planner asks, behind this call.

        Raises:
            RoleRefused: Not now, or never.
        """
        url, now_s, wanted = worker.url, worker.loop.time(), duties_of(change)
        state = RoleState(
            incarnation=worker.main.incarnation,
            roles=worker.spec.hardware.roles,
            duties=self._duties[url],
            is_busy=url in self._changing,
            dwell_left_s=self._stays_until_s.get(url, 0.0) - now_s,
        )
        step = step_of(state, change)
        if isinstance(step, Refusal):
            raise RoleRefused(step.message, reason=step.code)
        if step != "nothing":
            self._duties[url] = wanted
            self._changing.add(url)
            if step == "role":
                self._stays_until_s[url] = now_s + change.dwell_s
            self._spawn(self._turn(worker, wanted), f"role of {worker.spec.worker_id}")
        return RoleReply(
            worker_id=worker.main.worker_id,
            incarnation=worker.main.incarnation,
            role=wanted.role,
            lend_share=wanted.lend_share,
            is_draining=step == "role",
        )

    async def _turn(self, worker: EmulatedWorker, wanted: Duties) -> None:
        try:
            if wanted.role != worker.main.role:
                await self._change_role(worker, wanted.role)
            await self._lend(worker, wanted.lend_share)
        finally:
            self._changing.discard(worker.url)

    async def _change_role(self, worker: EmulatedWorker, role: Role) -> None:
        await self._drain(worker, worker.lives)
        lent = worker.lent
        if lent is not None:
            worker.lend(0.0)
            await self._store.deregister(lent.worker_id, lent.incarnation)
        old = worker.main
        await self._store.deregister(old.worker_id, old.incarnation)
        worker.reborn(role)
        await self.beat(worker.main)

    async def _lend(self, worker: EmulatedWorker, share: float) -> None:
        lent = worker.lent
        if lent is not None and not share:
            await self._drain(worker, (lent,))
            worker.lend(0.0)
            await self._store.deregister(lent.worker_id, lent.incarnation)
        elif share != worker.lend_share:
            worker.lend(share)
            for life in worker.lives:
                await self.beat(life)

    async def _drain(self, worker: EmulatedWorker, lives: tuple[Life, ...]) -> None:
        """Take nothing new, and wait for what there is; what does not end goes on elsewhere."""
        for life in lives:
            life.is_draining = True
            await self.beat(life)
        until_s = worker.loop.time() + _DRAIN_S
        while worker.is_alive and any(map(_requests, lives)) and worker.loop.time() < until_s:  # noqa: ASYNC110 - engines know nothing of who waits for them
            await asyncio.sleep(_LOOK_S)
        for life in lives:
            if life.role == "decode":
                worker.decoding.hand_over()
            else:
                life.prefilling.lose_all()


def _requests(life: Life) -> int:
    """What a life has to finish: prefills whose KV was not fetched, or decodes."""
    return life.worker.decoding.requests if life.role == "decode" else len(life.prefilling.runs)
