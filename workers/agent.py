"""The agent: tells the store who a worker is and how it does, once a second and independent of load."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from controlplane.config import HeartbeatConfig
from controlplane.errors import StoreError
from controlplane.observe.logs import get_logger
from controlplane.store.api import StateStore
from controlplane.wire import Inventory, KvAddress, Load, Profile, Role, WorkerBeat
from workers.engine import Engine
from workers.identity import Identity
from workers.inventory import TakeDelta
from workers.kv.timing import Clock
from workers.links import LinkMeters
from workers.metrics import WorkerMetrics

_log = get_logger()

#: A store that lacks a worker's earlier reports gets all of it after this pause.
_URGENT_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """What a worker can do besides its role; what workers before 0.4 could not."""

    #: Roles it can change to, its own included; empty when it keeps the one it has.
    roles: tuple[Role, ...] = ()
    can_export_prefix: bool = False
    #: The decode worker whose time a registration for prefill is a share of.
    lent_by: str | None = None
    #: That share now; for `lent_by` itself too.
    lend_share: Callable[[], float] = lambda: 0.0


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
        is_stalled: Callable[[], bool] = lambda: False,
        kv: KvAddress | None = None,
        abilities: Abilities | None = None,
        inventory: TakeDelta | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        """
        Args:
            engine: What the worker computes with.
            identity: Who it is.
            store: Who is told.
            metrics: Where beats that failed are counted.
            heartbeat: How often, and how long one may take.
            requests_max: Requests the worker takes, running ones included.
            slots: Requests it runs at the same time.
            url: Where it listens; it can take work from now on.
            jobs: Requests waiting and running now.
            links: What it measured on links.
            is_stalled: Whether its engine hangs; such a worker takes nothing new.
            kv: Where it serves KV, if it does.
            abilities: What it can do besides its role; None for nothing.
            inventory: Changes of its prefix cache; None for the engine's own.
            clock: Monotonic seconds.
        """
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
        self._is_stalled = is_stalled
        self._kv = kv
        self._abilities = abilities or Abilities()
        self._take_inventory = inventory or engine.take_inventory_delta
        self._clock = clock
        self._ready_at_s = clock()
        self._sequence = 0
        self._wants_full = True
        #: The store keeps only a part of the inventory; said once.
        self._is_cut = False
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

    def current(self) -> WorkerBeat:
        """
        What the worker would say now, for routers that ask it because their store is away.

        Its number is that of the last heartbeat (1 before the first), and it tells of no change of
        the inventory: the next heartbeat does.
        """
        return self._describe(max(1, self._sequence), Inventory())

    async def _beat(self) -> bool:
        is_full = self._wants_full
        delta = self._take_inventory(is_full=is_full)
        self._sequence += 1
        beat = self._describe(self._sequence, Inventory.from_delta(delta))
        try:
            async with asyncio.timeout(self._heartbeat.timeout_s):
                reply = await self._store.heartbeat(beat, ttl_s=self._heartbeat.ttl_s)
        except (StoreError, TimeoutError):
            # What this delta said may be lost, so the next one that arrives must say everything.
            self._wants_full = True
            self._metrics.store_errors_total.labels("heartbeat").inc()
            return False
        self._wants_full = reply.wants_full_inventory
        if reply.is_inventory_cut != self._is_cut:
            self._is_cut = reply.is_inventory_cut
            if self._is_cut:
                _log.warning("inventory.cut", worker=self._identity.worker_id)
        return True

    def _describe(self, sequence: int, inventory: Inventory) -> WorkerBeat:
        spec, abilities = self._engine.spec, self._abilities
        profile = self._profile()
        return WorkerBeat(
            worker_id=self._identity.worker_id,
            datacenter=self._identity.datacenter,
            role=self._identity.role,
            incarnation=self._identity.incarnation,
            sequence=sequence,
            url=self._url,
            kv=self._kv,
            model=spec.model,
            fingerprint=spec.fingerprint,
            vocabulary_size=spec.vocabulary_size,
            block_tokens=spec.block_tokens,
            context_tokens_max=spec.context_tokens_max,
            requests_max=self._requests_max,
            slots=self._slots,
            is_draining=self.is_draining or self._is_stalled(),
            can_resume=True,
            age_s=max(0.0, self._clock() - self._ready_at_s),
            profile=profile,
            load=self._load(profile),
            roles=abilities.roles,
            lend_share=abilities.lend_share(),
            lent_by=abilities.lent_by,
            can_export_prefix=abilities.can_export_prefix,
            inventory=inventory,
            links=self._links.reports(),
        )

    def _profile(self) -> Profile:
        """Measured times, longer where time is shared: by what the other role takes meanwhile."""
        profile = self._engine.profile()
        share = self._abilities.lend_share()
        if not share:
            return profile
        if self._abilities.lent_by is None:
            return profile.model_copy(update={"decode_step_s": profile.decode_step_s / (1 - share)})
        return profile.model_copy(
            update={
                "prefill_s_per_token": profile.prefill_s_per_token / share,
                "prefill_fixed_s": profile.prefill_fixed_s / share,
                "prefill_s_per_token_squared": profile.prefill_s_per_token_squared / share,
            }
        )

    def _load(self, profile: Profile) -> Load:
        load, jobs = self._engine.load(), self._jobs()
        is_prefill = self._identity.role == "prefill"
        queue_s = load.queue_tokens * profile.prefill_s_per_token + jobs * profile.prefill_fixed_s
        return Load(
            queue_requests=jobs,
            # What a decode worker's engine prefills is told by the registration of its lent time.
            queue_tokens=load.queue_tokens if is_prefill else 0,
            queue_s=queue_s if is_prefill else 0.0,
            # One engine runs what two registrations have.
            running=min(load.running, self._slots),
            kv_bytes=load.kv_bytes,
            kv_use=load.kv_use,
            preemptions_total=load.preemptions_total,
            has_guessed_prefixes=load.has_guessed_prefixes,
        )

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
