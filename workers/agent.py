"""The agent: tells the store who a worker is and how it does, once a second and independent of load."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from controlplane.config import HeartbeatConfig
from controlplane.errors import StoreError
from controlplane.observe.logs import get_logger
from controlplane.store.api import StateStore
from controlplane.wire import Inventory, Load, WorkerBeat
from workers.engine import Engine
from workers.identity import Identity
from workers.links import LinkMeters
from workers.metrics import WorkerMetrics

_log = get_logger()

#: A store that lacks a worker's earlier reports gets all of it after this pause.
_URGENT_S = 0.05


class Agent:
    """Heartbeats of one worker."""

    def __init__(
        self,
        engine: Engine,
        identity: Identity,
        store: StateStore,
        metrics: WorkerMetrics,
        *,
        heartbeat: HeartbeatConfig,
        requests_max: int,
        slots: int,
        url: str,
        jobs: Callable[[], int],
        links: LinkMeters,
    ) -> None:
        self._engine = engine
        self._identity = identity
        self._store = store
        self._metrics = metrics
        self._heartbeat = heartbeat
        self._requests_max = requests_max
        self._slots = slots
        self._url = url
        self._jobs = jobs
        self._links = links
        self._sequence = 0
        self._wants_full = True
        #: One beat at a time, and none on its way when the goodbye is said.
        self._turn = asyncio.Lock()
        self._has_left = False
        self.is_draining = False

    async def run(self) -> None:
        """Beat until it has left; a store that is away costs nothing but its log line."""
        is_away = False
        while not self._has_left:
            is_known = await self.beat()
            if is_known == is_away:
                is_away = not is_known
                if is_away:
                    _log.warning("store.degraded", worker=self._identity.worker_id)
                else:
                    _log.info("store.restored", worker=self._identity.worker_id)
            # The store asked for everything: tell it now, routers are waiting for it.
            is_urgent = is_known and self._wants_full
            await asyncio.sleep(_URGENT_S if is_urgent else self._heartbeat.interval_s)

    async def beat(self) -> bool:
        """One heartbeat; false when the store did not take it."""
        async with self._turn:
            return self._has_left or await self._beat()

    async def _beat(self) -> bool:
        is_full = self._wants_full
        delta = self._engine.take_inventory_delta(is_full=is_full)
        self._sequence += 1
        spec = self._engine.spec
        load = self._engine.load()
        beat = WorkerBeat(
            worker_id=self._identity.worker_id,
            datacenter=self._identity.datacenter,
            role=self._identity.role,
            incarnation=self._identity.incarnation,
            sequence=self._sequence,
            url=self._url,
            model=spec.model,
            fingerprint=spec.fingerprint,
            vocabulary_size=spec.vocabulary_size,
            block_tokens=spec.block_tokens,
            context_tokens_max=spec.context_tokens_max,
            requests_max=self._requests_max,
            slots=self._slots,
            is_draining=self.is_draining,
            profile=self._engine.profile(),
            load=Load(
                queue_requests=self._jobs(),
                queue_tokens=load.queue_tokens,
                running=load.running,
                kv_bytes=load.kv_bytes,
            ),
            inventory=Inventory.from_delta(delta),
            links=self._links.reports(),
        )
        try:
            async with asyncio.timeout(self._heartbeat.timeout_s):
                reply = await self._store.heartbeat(beat, ttl_s=self._heartbeat.ttl_s)
        except (StoreError, TimeoutError):
            # What this delta said may be lost, so the next one that arrives must say everything.
            self._wants_full = True
            self._metrics.store_errors_total.labels("heartbeat").inc()
            return False
        self._wants_full = reply.wants_full_inventory
        return True

    async def drain(self) -> None:
        """Tell the routers at once that this worker takes nothing new. Best effort."""
        self.is_draining = True
        await self.beat()

    async def leave(self) -> None:
        """Say goodbye, so that routers need not wait for silence. Best effort, and the last word."""
        self._has_left = True
        async with self._turn:
            try:
                async with asyncio.timeout(self._heartbeat.timeout_s):
                    await self._store.deregister(
                        self._identity.worker_id, self._identity.incarnation
                    )
            except (StoreError, TimeoutError):
                # The registration expires by itself.
                return
