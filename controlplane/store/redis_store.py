"""`StateStore` on Redis: one script and one round trip for each write, a deadline for every call."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from random import Random
from typing import Self

from controlplane.config import StoreConfig
from controlplane.errors import StoreUnavailable
from controlplane.store import commands, reads
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
from controlplane.store.budget import check_budget
from controlplane.store.calls import Calls
from controlplane.store.codec import CLAIMS, Decoder, check_cursor, check_document
from controlplane.store.gather import Gatherer
from controlplane.store.keys import Keys
from controlplane.store.roster import fitting
from controlplane.store.scripts import Command
from controlplane.wire import BeatReply, KvLocation, Reservation, ReserveReply, WorkerBeat


class RedisStore:
    """
    Shared soft state in Redis or Valkey, 6.2 or later.

    `reserve` and `take_link_budget` are on the request path and bounded by
    `StoreConfig.call_timeout_s`, everything else by `slow_call_timeout_s`; nothing is retried.
    Every method raises `StoreTimeout` or `StoreUnavailable` as the contract says.
    """

    def __init__(
        self,
        url: str,
        *,
        fleet: str,
        config: StoreConfig,
        client_name: str = "prfaas",
        clock: Callable[[], float] = time.monotonic,
        rng: Random | None = None,
    ) -> None:
        """
        A store that connects with its first call.

        Args:
            url: `redis://`, `rediss://` or `unix://`.
            fleet: Name of the fleet, `FleetConfig.name`.
            config: Deadlines and bounds.
            client_name: Shown by `CLIENT LIST`; no blanks.
            clock: Monotonic seconds, for the breaker.
            rng: Jitter of the breaker's probes; seeded by the system if None.

        Raises:
            ConfigError: The URL is not usable.
            ValueError: Not a fleet name.
        """
        self._keys = Keys(fleet)
        self._config = config
        self._decoder = Decoder()
        self._calls = Calls(
            url, config=config, client_name=client_name, clock=clock, rng=rng or Random()
        )
        self._reservations = Gatherer(self._calls, "reserve", timeout_s=config.call_timeout_s)

    @classmethod
    async def connect(
        cls, url: str, *, fleet: str, config: StoreConfig, client_name: str = "prfaas"
    ) -> Self:
        """
        A store that has answered once.

        Raises:
            ConfigError: The URL is not usable.
            StoreTimeout: No answer in time.
            StoreUnavailable: No connection.
        """
        store = cls(url, fleet=fleet, config=config, client_name=client_name)
        try:
            await store.ping()
        except BaseException:
            await store.close()
            raise
        return store

    def __repr__(self) -> str:
        return f"<RedisStore {self._keys.prefix} {self._calls!r}>"

    @property
    def breaker(self) -> Breaker:
        """The circuit breaker all calls go through."""
        return self._calls.breaker

    @property
    def decode_errors_total(self) -> int:
        """Values found in the store that were garbage: skipped, or their key repaired."""
        return self._decoder.errors_total

    async def ping(self) -> float:
        """Seconds of one round trip."""
        started_s = time.monotonic()
        await self._calls.ask_one("ping", ("PING",))
        return time.monotonic() - started_s

    # --- Workers ------------------------------------------------------------------------------

    async def heartbeat(self, beat: WorkerBeat, *, ttl_s: float) -> BeatReply:
        """
        Register or refresh a worker; see `heartbeat.lua`.

        Raises:
            StoreUnavailable: Also if the fleet has `StoreConfig.workers_max` other workers.
        """
        beat, is_cut = fitting(beat, blocks_max=self._config.inventory_blocks_max)
        command = commands.heartbeat(self._keys, beat, ttl_s=ttl_s, config=self._config)
        wants_full, is_cut_there = await self._run("heartbeat", command)
        if wants_full < 0:
            raise StoreUnavailable(
                f"heartbeat: the fleet has {self._config.workers_max} workers, which is all it may"
            )
        return BeatReply(
            wants_full_inventory=bool(wants_full), is_inventory_cut=is_cut or bool(is_cut_there)
        )

    async def deregister(self, worker_id: str, incarnation: str) -> None:
        """Remove a worker; see `deregister.lua`."""
        command = commands.deregister(
            self._keys, worker_id, incarnation, events_max=self._config.events_max
        )
        await self._run("deregister", command)

    # --- What routers see ---------------------------------------------------------------------

    async def snapshot(self) -> StoreSnapshot:
        """The whole picture, in two round trips; the cursor is taken in the first, before it."""
        return await reads.snapshot(self._calls, self._keys, self._decoder)

    async def events(self, cursor: Cursor, *, wait_s: float) -> tuple[Cursor, Sequence[StoreEvent]]:
        """
        Events after the cursor, in the order the store took them, waiting for the first one.

        Nothing is left out as long as the reader is at most `StoreConfig.events_max` events
        behind and the stream was not lost (flush, failover); what was trimmed or lost is not
        reported. So a router takes a snapshot at times, and one whenever this call failed. A
        worker that stops without a goodbye makes no event either.

        Raises:
            MalformedRequest: Not a cursor.
        """
        check_cursor(cursor)
        return await reads.events(self._calls, self._keys, self._decoder, cursor, wait_s=wait_s)

    # --- Reservations -------------------------------------------------------------------------

    async def reserve(self, reservation: Reservation) -> ReserveReply:
        """Claim capacity, all or nothing; see `reserve.lua`."""
        reply = await self._reservations.ask(
            commands.reserve(self._keys, reservation, links_max=self._config.links_max)
        )
        return self._decoder.reserve_reply(reply)

    async def finish(self, finished: Sequence[tuple[Reservation | None, str, bytes]]) -> None:
        """Release and record, in one round trip; see `finish.lua`."""
        if not finished:
            return
        batch = [
            commands.finish(
                self._keys,
                reservation,
                decision_id,
                record,
                decisions_max=self._config.decisions_max,
            )
            for reservation, decision_id, record in finished
        ]
        for reply in await self._calls.ask_all("finish", batch):
            self._decoder.numbers(reply)

    async def release(self, reservation: Reservation) -> None:
        """Release one reservation; see `release.lua`."""
        await self._run("release", commands.release(self._keys, reservation))

    async def take_link_budget(
        self, link: str, *, want_bytes: int, rate_bytes_per_s: float, burst_bytes: int
    ) -> BudgetGrant:
        """
        Take from a link's bucket; see `link_budget.lua`.

        Raises:
            ValueError: See `check_budget`.
        """
        check_budget(
            want_bytes=want_bytes, rate_bytes_per_s=rate_bytes_per_s, burst_bytes=burst_bytes
        )
        command = commands.take_link_budget(
            self._keys,
            link,
            want_bytes=want_bytes,
            rate_bytes_per_s=rate_bytes_per_s,
            burst_bytes=burst_bytes,
        )
        granted, wait_us = await self._run(
            "take_link_budget", command, timeout_s=self._config.call_timeout_s
        )
        return BudgetGrant(granted_bytes=granted, retry_after_s=wait_us / 1e6)

    # --- KV locations and decision records ----------------------------------------------------

    async def put_segment(self, location: KvLocation) -> None:
        """Publish or renew a KV location; see `put_segment.lua`."""
        command = commands.put_segment(self._keys, location, segments_max=self._config.segments_max)
        await self._run("put_segment", command)

    async def drop_segment(self, segment_id: str) -> None:
        """Withdraw a KV location; see `drop_segment.lua`."""
        await self._run("drop_segment", commands.drop_segment(self._keys, segment_id))

    async def segments(self, *, count: int) -> Sequence[KvLocation]:
        """Up to `count` live KV locations, those with the longest lease left first."""
        return await reads.segments(self._calls, self._keys, self._decoder, count=count)

    async def decisions(
        self, *, count: int, before: Cursor | None = None
    ) -> Sequence[StoredDecision]:
        """
        The newest decision records, newest first; older than `before` if given.

        Raises:
            MalformedRequest: `before` is not a cursor.
        """
        if before is not None:
            check_cursor(before)
        return await reads.decisions(
            self._calls, self._keys, self._decoder, count=count, before=before
        )

    async def decision(self, decision_id: str) -> StoredDecision | None:
        """One decision record, while it is among the newest `StoreConfig.decisions_max`."""
        return await reads.decision(self._calls, self._keys, self._decoder, decision_id)

    # --- Idempotency keys, blames and documents -----------------------------------------------

    async def claim_key(
        self, key: str, *, owner: str, digest: str, ttl_s: float, is_renewal: bool = False
    ) -> KeyClaim:
        """Claim an idempotency key; see `claim_key.lua`. On the request path."""
        command = commands.claim_key(
            self._keys, key, owner=owner, digest=digest, ttl_s=ttl_s, is_renewal=is_renewal
        )
        (answer,) = await self._run("claim_key", command, timeout_s=self._config.call_timeout_s)
        return CLAIMS[answer]

    async def release_key(self, key: str, *, owner: str, keep_s: float) -> None:
        """End the claim of an idempotency key; see `release_key.lua`."""
        command = commands.release_key(self._keys, key, owner=owner, keep_s=keep_s)
        # The next request with this key waits for it.
        await self._run("release_key", command, timeout_s=self._config.call_timeout_s)

    async def blame(self, blamed: Blamed) -> None:
        """Tell the routers that a worker died while it ran a request; see `blame.lua`."""
        await self._run(
            "blame", commands.blame(self._keys, blamed, events_max=self._config.events_max)
        )

    async def publish(
        self, topic: Topic, body: bytes, *, expected_version: int | None = None
    ) -> Document | None:
        """
        Replace a document and tell the routers; see `publish.lua`.

        Raises:
            RequestTooLarge: Over `StoreConfig.document_bytes_max`.
            MalformedRequest: Not JSON.
        """
        check_document(body, bytes_max=self._config.document_bytes_max)
        command = commands.publish(
            self._keys, topic, body, expected_version=expected_version, config=self._config
        )
        (version,) = await self._run("publish", command)
        return Document(version=version, body=body) if version else None

    async def document(self, topic: Topic) -> Document | None:
        """The newest version of a document; see `document.lua`."""
        command = commands.document(self._keys, topic, bytes_max=self._config.document_bytes_max)
        return self._decoder.document(await self._calls.ask_one("document", command))

    # --- The planner --------------------------------------------------------------------------

    async def lead(self, topic: Topic, owner: str, *, ttl_s: float) -> bool:
        """Take or keep the lead of a topic; see `lead.lua`."""
        (leads,) = await self._run("lead", commands.lead(self._keys, topic, owner, ttl_s=ttl_s))
        return bool(leads)

    async def resign(self, topic: Topic, owner: str) -> None:
        """Give the lead of a topic up; see `resign.lua`."""
        await self._run("resign", commands.resign(self._keys, topic, owner))

    async def put_traffic(self, router: str, body: bytes, *, ttl_s: float) -> None:
        """
        Tell what a router has served lately; see `put_segment.lua`.

        Raises:
            RequestTooLarge: Over `StoreConfig.traffic_bytes_max`.
            MalformedRequest: Not JSON.
        """
        check_document(body, bytes_max=self._config.traffic_bytes_max)
        command = commands.put_traffic(self._keys, router, body, ttl_s=ttl_s, config=self._config)
        await self._run("put_traffic", command)

    async def traffic(self) -> Sequence[bytes]:
        """What routers have told, those that end last first."""
        return await reads.traffic(
            self._calls, self._keys, self._decoder, count=self._config.routers_max
        )

    async def close(self) -> None:
        """Close connections; later calls raise `StoreUnavailable`."""
        await self._calls.close()

    async def _run(
        self, what: str, command: Command, *, timeout_s: float | None = None
    ) -> list[int]:
        """Run a script and count what it had to repair."""
        reply = await self._calls.ask_one(what, command, timeout_s=timeout_s)
        return self._decoder.numbers(reply)
