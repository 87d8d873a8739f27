"""The store as one process of the world, and as each other process sees it: through the network."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

from sim.network import Network, Process

from controlplane.config import StoreConfig
from controlplane.errors import StoreTimeout, StoreUnavailable
from controlplane.store.api import (
    Blamed,
    BudgetGrant,
    Cursor,
    Document,
    KeyClaim,
    StoredDecision,
    StoreEvent,
    StoreSnapshot,
    Topic,
)
from controlplane.store.breaker import Breaker
from controlplane.store.memory_store import MemoryStore
from controlplane.wire import BeatReply, KvLocation, Reservation, ReserveReply, WorkerBeat

T = TypeVar("T")

STORE = "store"

#: What a store that loses its tail, or all, has of it; the clock and the number of the last event
#: go on, as the identifiers of a Redis stream do.
_KEPT = (
    "_ledger", "_roster", "_buckets", "_segments", "_decisions", "_claims", "_documents",
    "_leaders", "_traffic",
)  # fmt: skip


@dataclass(slots=True)
class StoreTroubles:
    """Parts of all calls, 0 to 1."""

    #: Refused before anything was done.
    error: float = 0.0
    #: Done, and the answer is lost.
    lost_answer: float = 0.0
    #: Neither done nor answered.
    lost_call: float = 0.0
    #: Most seconds that a call takes longer.
    slow_s: float = 0.0


class StoreNode:
    """The state, where it lives, and what is wrong with it."""

    def __init__(self, network: Network, config: StoreConfig, clock: Callable[[], float]) -> None:
        self.network = network
        self.config = config
        self.memory = MemoryStore(config=config, clock=clock)
        self.troubles = StoreTroubles()
        #: Calls that are waiting for events: cut when the store fails over.
        self._saved: dict[str, Any] | None = None
        #: The second primary of a split, and the processes that see it.
        self._other: MemoryStore | None = None
        self._there: frozenset[str] = frozenset()
        self._clock = clock

    def save(self) -> None:
        """Remember everything: a later failover goes back to here."""
        kept = {name: getattr(self.memory, name) for name in _KEPT}
        # The clock is shared by all parts and is no state of theirs.
        self._saved = copy.deepcopy(kept, {id(self._clock): self._clock})

    def lose_tail(self) -> None:
        """Fail over to a replica that has not seen what came after `save`."""
        if self._saved is not None:
            for name, value in self._saved.items():
                setattr(self.memory, name, value)
            self._saved = None

    def of(self, name: str) -> MemoryStore:
        """The state that a process sees."""
        return self._other if self._other is not None and name in self._there else self.memory

    def split(self, there: Iterable[str]) -> None:
        """Two primaries with the same past; from now on these processes see the second one."""
        kept = {name: getattr(self.memory, name) for name in (*_KEPT, "_events")}
        self._other = MemoryStore(config=self.config, clock=self._clock)
        for name, value in copy.deepcopy(kept, {id(self._clock): self._clock}).items():
            setattr(self._other, name, value)
        self._other._event_number = self.memory._event_number
        self._there = frozenset(there)

    def join(self) -> None:
        """One again; what the second one learned alone is lost, but for the number of its events."""
        if self._other is not None:
            numbers = (self.memory._event_number, self._other._event_number)
            self.memory._event_number = max(numbers)
            self._other = None

    def flush(self) -> None:
        """Forget everything."""
        empty = MemoryStore(config=self.config, clock=self._clock)
        for name in _KEPT:
            setattr(self.memory, name, getattr(empty, name))


class SimStore:
    """`StateStore` for one process: every call goes through the network, within its time."""

    def __init__(self, node: StoreNode, process: Process, random: Random) -> None:
        self._node = node
        self._network = node.network
        self._process = process
        self._config = node.config
        self._random = random
        self._is_closed = False
        self.decode_errors_total = 0
        self.breaker = Breaker(
            failures_max=node.config.breaker_failures,
            probe_s=node.config.breaker_probe_s,
            clock=node.network.loop.time,
            rng=random,
        )

    async def _ask(
        self, name: str, work: Callable[[MemoryStore], Awaitable[T]], timeout_s: float | None = None
    ) -> T:
        if self._is_closed or not self.breaker.allows():
            raise StoreUnavailable(f"{name}: the store did not answer before")
        limit_s = self._config.slow_call_timeout_s if timeout_s is None else timeout_s
        try:
            async with asyncio.timeout(limit_s):
                result = await self._send(name, work)
        except TimeoutError as error:
            self.breaker.failed()
            raise StoreTimeout(f"{name}: no answer within {limit_s} s") from error
        except (ConnectionError, StoreUnavailable) as error:
            self.breaker.failed()
            raise StoreUnavailable(f"{name}: no connection") from error
        self.breaker.succeeded()
        return result

    async def _send(self, name: str, work: Callable[[MemoryStore], Awaitable[T]]) -> T:
        troubles, counts = self._node.troubles, self._network.counts
        drawn = self._random.random()
        if drawn < troubles.error:
            counts["store_error"] += 1
            raise StoreUnavailable("the store refused")
        drawn -= troubles.error

        async def serve(_: Process) -> T:
            if troubles.slow_s:
                counts["store_slow"] += 1
                await asyncio.sleep(troubles.slow_s * self._random.random())
            return await work(self._node.of(self._process.name))

        async def never(_: Process) -> T:
            await asyncio.get_running_loop().create_future()
            raise AssertionError

        async def lose(process: Process) -> T:
            await serve(process)
            return await never(process)

        chosen = serve
        if drawn < troubles.lost_answer:
            counts["store_done_but_timed_out"] += 1
            chosen = lose
        elif drawn < troubles.lost_answer + troubles.lost_call:
            counts["store_timeout"] += 1
            chosen = never
        return await self._network.call(self._process, STORE, chosen, name=f"store {name}")

    # --- The contract -------------------------------------------------------------------------

    async def ping(self) -> float:
        return await self._ask("ping", lambda store: store.ping())

    async def heartbeat(self, beat: WorkerBeat, *, ttl_s: float) -> BeatReply:
        # Through JSON, as every beat goes: what does not survive that is a bug.
        data = beat.model_dump_json()
        return await self._ask(
            "heartbeat",
            lambda store: store.heartbeat(WorkerBeat.model_validate_json(data), ttl_s=ttl_s),
        )

    async def deregister(self, worker_id: str, incarnation: str) -> None:
        await self._ask("deregister", lambda store: store.deregister(worker_id, incarnation))

    async def snapshot(self) -> StoreSnapshot:
        return await self._ask("snapshot", lambda store: store.snapshot())

    async def events(self, cursor: Cursor, *, wait_s: float) -> tuple[Cursor, Sequence[StoreEvent]]:
        return await self._ask(
            "events",
            lambda store: store.events(cursor, wait_s=wait_s),
            wait_s + self._config.slow_call_timeout_s,
        )

    async def reserve(self, reservation: Reservation) -> ReserveReply:
        return await self._ask(
            "reserve", lambda store: store.reserve(reservation), self._config.call_timeout_s
        )

    async def finish(self, finished: Sequence[tuple[Reservation | None, str, bytes]]) -> None:
        await self._ask("finish", lambda store: store.finish(finished))

    async def release(self, reservation: Reservation) -> None:
        await self._ask("release", lambda store: store.release(reservation))

    async def take_link_budget(
        self, link: str, *, want_bytes: int, rate_bytes_per_s: float, burst_bytes: int
    ) -> BudgetGrant:
        return await self._ask(
            "budget",
            lambda store: store.take_link_budget(
                link,
                want_bytes=want_bytes,
                rate_bytes_per_s=rate_bytes_per_s,
                burst_bytes=burst_bytes,
            ),
            self._config.call_timeout_s,
        )

    async def put_segment(self, location: KvLocation) -> None:
        await self._ask("put", lambda store: store.put_segment(location))

    async def drop_segment(self, segment_id: str) -> None:
        await self._ask("drop", lambda store: store.drop_segment(segment_id))

    async def segments(self, *, count: int) -> Sequence[KvLocation]:
        return await self._ask("segments", lambda store: store.segments(count=count))

    async def decisions(
        self, *, count: int, before: Cursor | None = None
    ) -> Sequence[StoredDecision]:
        return await self._ask("decisions", lambda s: s.decisions(count=count, before=before))

    async def decision(self, decision_id: str) -> StoredDecision | None:
        return await self._ask("decision", lambda store: store.decision(decision_id))

    async def claim_key(
        self, key: str, *, owner: str, digest: str, ttl_s: float, is_renewal: bool = False
    ) -> KeyClaim:
        return await self._ask(
            "claim_key",
            lambda store: store.claim_key(
                key, owner=owner, digest=digest, ttl_s=ttl_s, is_renewal=is_renewal
            ),
            self._config.call_timeout_s,
        )

    async def release_key(self, key: str, *, owner: str, keep_s: float) -> None:
        await self._ask(
            "release_key", lambda store: store.release_key(key, owner=owner, keep_s=keep_s)
        )

    async def blame(self, blamed: Blamed) -> None:
        await self._ask("blame", lambda store: store.blame(blamed))

    async def publish(
        self, topic: Topic, body: bytes, *, expected_version: int | None = None
    ) -> Document | None:
        return await self._ask(
            "publish", lambda store: store.publish(topic, body, expected_version=expected_version)
        )

    async def document(self, topic: Topic) -> Document | None:
        return await self._ask("document", lambda store: store.document(topic))

    async def lead(self, topic: Topic, owner: str, *, ttl_s: float) -> bool:
        return await self._ask("lead", lambda store: store.lead(topic, owner, ttl_s=ttl_s))

    async def resign(self, topic: Topic, owner: str) -> None:
        await self._ask("resign", lambda store: store.resign(topic, owner))

    async def put_traffic(self, router: str, body: bytes, *, ttl_s: float) -> None:
        await self._ask("put_traffic", lambda store: store.put_traffic(router, body, ttl_s=ttl_s))

    async def traffic(self) -> Sequence[bytes]:
        return await self._ask("traffic", lambda store: store.traffic())

    async def close(self) -> None:
        self._is_closed = True
