"""The reader of KV: fetches what it lacks of a segment over several connections, or gives up."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from controlplane.config import KvConfig
from controlplane.errors import ChunkCorrupt, LinkDown, MalformedRequest, TransferError
from controlplane.wire import KvLocation, PrefillReport, TransferReport
from workers.engine import KvPiece
from workers.kv.frames import WireError
from workers.kv.goodput import ConnectionMeter, GoodputMeter
from workers.kv.layout import ChunkSpec, chunk_plan, missing_chunks
from workers.kv.owner import ChunkRefused, Owner
from workers.kv.requests import RANGES_MAX, to_ranges
from workers.kv.timing import Clock
from workers.kv.traffic import Flow, LinkTraffic


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchResult:
    """What a fetch brought besides the pieces."""

    transfer: TransferReport
    prefill: PrefillReport
    #: Bits per second while bytes were moving; 0 when too little moved to tell.
    goodput_bps: float
    #: Seconds from a request to its first answer, the shortest of all connections.
    rtt_s: float


class Fetch(Protocol):
    """What `fetch_segment` is to those who call it; a simulation brings its own network."""

    async def __call__(
        self,
        location: KvLocation,
        *,
        held_tokens: int,
        destination: str,
        on_piece: Callable[[KvPiece], None],
        config: KvConfig,
        arrived_s: float,
        clock: Clock = ...,
        traffic: LinkTraffic | None = None,
    ) -> FetchResult:
        """As `fetch_segment`."""


async def fetch_segment(
    location: KvLocation,
    *,
    held_tokens: int,
    destination: str,
    on_piece: Callable[[KvPiece], None],
    config: KvConfig,
    arrived_s: float,
    clock: Clock = time.monotonic,
    traffic: LinkTraffic | None = None,
) -> FetchResult:
    """
    Fetch the chunks a decode worker lacks, renew the lease meanwhile, release at the end.

    May start before the first chunk is computed. The owner's keep-alives count as life, so a
    prefill that takes long is waited for: bound the whole by `asyncio.timeout`. Cancelling releases
    the segment without waiting and closes all connections; where the owner does not hear that, its
    lease ends `unread_lease_s` later.

    Args:
        location: Where and what; its fingerprint is the caller's to compare.
        held_tokens: Leading tokens whose attention KV is here already, >= 0.
        destination: Datacenter of the caller: names the link whose budget the bytes use.
        on_piece: Takes each verified piece, once, in no order between connections. On the event
            loop's thread; what it raises ends the fetch and comes out as it is.
        config: Connections and deadlines.
        arrived_s: When the decode job arrived, on `clock`; the report counts from there.
        clock: Monotonic seconds.
        traffic: Of the link that the bytes cross, if they cross one; counted as they arrive.

    Raises:
        LinkDown: No connection, or it broke, or the owner refuses this reader.
        LinkStalled: Neither bytes nor keep-alives for `stall_timeout_s`.
        ChunkCorrupt: A chunk was wrong twice, over two connections.
        SegmentStale: The owner no longer has this generation.
        SegmentFailed: The prefill failed or was aborted.
        MalformedRequest: The manifest cannot be cut into chunks.
    """
    try:
        missing = missing_chunks(chunk_plan(location.manifest), held_tokens)
    except ValueError as error:
        raise MalformedRequest(str(error), param="location.manifest") from error
    fetch = _Fetch(
        location,
        destination=destination,
        on_piece=on_piece,
        config=config,
        clock=clock,
        traffic=traffic,
    )
    prefill = await fetch.run(missing)
    meter = fetch.meter
    first_byte_s = arrived_s if meter.first_byte_s is None else meter.first_byte_s
    return FetchResult(
        transfer=TransferReport(
            bytes=meter.payload_bytes,
            chunks=len(missing),
            held_tokens=min(held_tokens, location.manifest.token_count),
            refetched_chunks=fetch.refetched_chunks,
            first_byte_s=max(0.0, first_byte_s - arrived_s),
            finished_s=max(0.0, clock() - arrived_s),
        ),
        prefill=prefill,
        goodput_bps=meter.goodput_bps,
        rtt_s=fetch.rtt_s or 0.0,
    )


async def renew_segment(location: KvLocation, *, config: KvConfig) -> None:
    """
    Renew a lease over a connection of its own, for a job that waits before it fetches.

    Raises:
        TransferError: As `fetch_segment`.
    """
    await _ask_once(location, config, lambda owner: owner.renew(wants_answer=True))


async def release_segment(location: KvLocation, *, config: KvConfig) -> bool:
    """
    Give a segment up, best effort, within `connect_timeout_s`: for requests that were cancelled.

    Returns:
        Whether the owner confirmed it. If not, the lease's end does the same.
    """
    try:
        async with asyncio.timeout(config.connect_timeout_s):
            await _ask_once(location, config, lambda owner: owner.release(wants_answer=True))
    except (TransferError, TimeoutError):
        return False
    return True


class _Fetch:
    """One transfer: its stripes, its lease and its measures."""

    def __init__(
        self,
        location: KvLocation,
        *,
        destination: str,
        on_piece: Callable[[KvPiece], None],
        config: KvConfig,
        clock: Clock,
        traffic: LinkTraffic | None,
    ) -> None:
        self._traffic = traffic
        self.meter = GoodputMeter()
        self.refetched_chunks = 0
        self.rtt_s: float | None = None
        self._location = location
        self._destination = destination
        self._on_piece = on_piece
        self._config = config
        self._clock = clock
        self._opened: list[Owner] = []
        #: The connection of the first stripe: carries report, renewals and release too.
        self._main: Owner | None = None
        self._prefill: PrefillReport | None = None

    async def run(self, missing: Sequence[ChunkSpec]) -> PrefillReport:
        """Fetch everything; the prefill report is the last thing to arrive."""
        count = max(1, min(self._config.connections, len(missing)))
        try:
            async with asyncio.TaskGroup() as tasks:
                renewing = tasks.create_task(self._renew())
                # Every n-th chunk each: what is computed first leaves first, over all connections.
                stripes = [
                    tasks.create_task(
                        self._fetch_stripe(missing[number::count], is_main=number == 0)
                    )
                    for number in range(count)
                ]
                await asyncio.wait(stripes)
                renewing.cancel()
            await self._release()
        except ExceptionGroup as group:
            error = _leading(group)
            raise error from error.__cause__
        except asyncio.CancelledError:
            # Whoever wanted the KV has gone, so its prefill need not go on.
            if self._main is not None:
                self._main.release_at_once()
            raise
        finally:
            for owner in self._opened:
                owner.close()
        assert self._prefill is not None, "the first stripe ends with the prefill report"
        return self._prefill

    async def _fetch_stripe(self, chunks: Sequence[ChunkSpec], *, is_main: bool) -> None:
        pending, refusal = await self._attempt(chunks, is_main=is_main)
        if refusal is None:
            return
        if len(to_ranges([chunk.index for chunk in pending])) > RANGES_MAX:
            raise ChunkCorrupt(f"{len(pending)} chunks are wrong, too many to ask again")
        self.refetched_chunks += len(pending)
        pending, refusal = await self._attempt(pending, is_main=is_main)
        if refusal is not None:
            raise ChunkCorrupt(f"{refusal}, also when asked for again") from refusal

    async def _attempt(
        self, chunks: Sequence[ChunkSpec], *, is_main: bool
    ) -> tuple[list[ChunkSpec], Exception | None]:
        """
        Fetch chunks over a new connection and hand on those that are right.

        Returns:
            What has to be asked for again, and why; the reason may stand without a chunk.
        """
        owner = await Owner.connect(self._location, self._config)
        self._opened.append(owner)
        wrong: list[ChunkSpec] = []
        done = 0
        refusal: Exception | None = None
        try:
            meter = await self._begin(owner, chunks, is_main=is_main)
            for spec in chunks:
                try:
                    self._on_piece(await owner.chunk(spec, meter=meter, clock=self._clock))
                except ChunkRefused as error:
                    refusal = error
                    wrong.append(spec)
                done += 1
            if is_main and self._prefill is None:
                self._prefill = await owner.report()
        except WireError as error:
            refusal = error
        if refusal is not None:
            if is_main:
                self._main = None
            owner.hang_up()
        return [*wrong, *chunks[done:]], refusal

    async def _begin(
        self, owner: Owner, chunks: Sequence[ChunkSpec], *, is_main: bool
    ) -> ConnectionMeter:
        """Ask for chunks and wait for the owner's yes; what measures their arrival."""
        asked_s = self._clock()
        await owner.ask_fetch(chunks, destination=self._destination)
        if is_main:
            self._main = owner
            if self._prefill is None:
                # Asked for ahead, the report follows the last chunk without another round trip.
                await owner.ask_report()
        await owner.accepted()
        now_s = self._clock()
        self.rtt_s = min(now_s - asked_s, self.rtt_s or math.inf)
        self.meter.begin(now_s)
        flow = None if self._traffic is None else Flow(self._traffic, now_s)
        return ConnectionMeter(self.meter, flow)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._config.renew_interval_s)
            owner = self._main
            if owner is None:
                continue
            try:
                await owner.renew(wants_answer=False)
            except TransferError:
                # A connection that was hung up meanwhile is no loss.
                if owner is self._main:
                    raise

    async def _release(self) -> None:
        # The answer would cost the first token a round trip, and a lost release only a lease.
        if self._main is not None:
            with contextlib.suppress(TransferError):
                await self._main.release(wants_answer=False)


async def _ask_once(
    location: KvLocation, config: KvConfig, ask: Callable[[Owner], Awaitable[None]]
) -> None:
    owner = await Owner.connect(location, config)
    try:
        await ask(owner)
        await owner.done()
    except WireError as error:
        raise LinkDown(f"the owner of the KV does not speak this protocol: {error}") from error
    finally:
        owner.close()


def _leading(group: BaseExceptionGroup[Exception]) -> Exception:
    """The error that a caller should see: one that is not about the link, else the first."""
    leaves = [
        _leading(error) if isinstance(error, BaseExceptionGroup) else error
        for error in group.exceptions
    ]
    return next((leaf for leaf in leaves if not isinstance(leaf, TransferError)), leaves[0])
