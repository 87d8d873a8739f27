"""The owner's end of one connection: hears requests, answers them in order, says that it lives."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from controlplane.config import KvConfig
from controlplane.errors import LinkDown, TransferError
from workers.kv.frames import (
    HEADER_BYTES,
    FrameHeader,
    FrameKind,
    WireError,
    pack_control,
    pack_failure,
    pack_header,
    part_flags,
)
from workers.kv.outbound import Outbound
from workers.kv.pacing import LinkPacer
from workers.kv.requests import (
    PREFACE_BYTES,
    FetchRequest,
    ReleaseRequest,
    RenewRequest,
    ReportRequest,
    Request,
    expand_ranges,
    parse_preface,
    parse_request,
)
from workers.kv.segment import FilledChunk, Segment
from workers.kv.segments import SegmentStore
from workers.kv.stream import Stream
from workers.kv.timing import Clock
from workers.kv.traffic import SendGaps

#: Requests a reader may send ahead of their answers: a fetch and a report are usual.
_REQUESTS_AHEAD_MAX: Final = 4
#: Payload of one frame where no link's budget sets a smaller one.
_PART_BYTES: Final = 1 << 20
#: A reader hears from a living owner at least this often, seconds.
_KEEPALIVE_S_MAX: Final = 1.0


@dataclass(slots=True)
class ServerCounters:
    """Totals of one server since its start."""

    connections_total: int = 0
    #: Connections over the bound, refused at once.
    refused_total: int = 0
    #: Connections that sent something else than this protocol.
    garbage_total: int = 0
    #: Connections closed because the peer neither read nor asked in time.
    stalled_total: int = 0
    #: Connections that broke in the middle.
    broken_total: int = 0
    chunks_total: int = 0
    #: Chunk payload handed to the kernel, whatever the destination.
    payload_bytes_total: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerParts:
    """What all connections of a server share."""

    segments: SegmentStore
    #: Pacers by destination datacenter.
    pacers: Mapping[str, LinkPacer]
    #: Where this owner stands: bytes to here are not paced.
    datacenter: str
    config: KvConfig
    clock: Clock
    counters: ServerCounters

    @property
    def keepalive_s(self) -> float:
        """Seconds between signs of life; several fit into the reader's patience."""
        return min(_KEEPALIVE_S_MAX, self.config.stall_timeout_s / 4)


class Connection:
    """
    Serves one reader. Memory is bounded by one request, one part and the delay line.

    Renewals and releases act as soon as they are heard, even in the middle of a fetch; fetches
    and reports are answered one after the other.
    """

    def __init__(self, stream: Stream, parts: ServerParts) -> None:
        self._stream = stream
        self._parts = parts
        self._outbound = Outbound(stream, clock=parts.clock)
        self._asked: asyncio.Queue[FetchRequest | ReportRequest] = asyncio.Queue(
            _REQUESTS_AHEAD_MAX
        )
        self._is_answering = False
        #: What it has fetched from; the store counts its readers.
        self._attended: set[Segment] = set()
        #: When silence of the reader is over; moved by each request, void while answering.
        self._silence_ends_s = parts.clock() + parts.config.connect_timeout_s

    async def run(self) -> None:
        """Serve until the reader leaves or breaks a rule. The caller closes the stream."""
        counters = self._parts.counters
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._hear())
                tasks.create_task(self._answer())
                tasks.create_task(self._watch())
                tasks.create_task(self._outbound.run())
        except* EOFError:
            pass
        except* WireError:
            counters.garbage_total += 1
        except* TimeoutError:
            counters.stalled_total += 1
        except* OSError:
            counters.broken_total += 1
        finally:
            for segment in self._attended:
                self._parts.segments.leave(segment)

    # --- Hearing ---------------------------------------------------------------------------

    async def _hear(self) -> None:
        while True:
            try:
                await self._obey(await self._read_request())
            except WireError as error:
                await self._outbound.send(pack_failure("bad_request", str(error)))
                await self._outbound.flush()
                raise

    async def _read_request(self) -> Request:
        preface = bytearray(PREFACE_BYTES)
        # Silence before a request is `_watch`'s business; once it began it has to come soon,
        # and a byte now and then is no progress.
        await self._stream.read_into(memoryview(preface)[:1], is_patient=True)
        async with asyncio.timeout(self._parts.config.connect_timeout_s):
            await self._stream.read_into(memoryview(preface)[1:])
            body = bytearray(parse_preface(preface))
            await self._stream.read_into(memoryview(body))
        self._silence_ends_s = self._parts.clock() + self._parts.config.lease_s
        return parse_request(body)

    async def _obey(self, request: Request) -> None:
        if isinstance(request, FetchRequest | ReportRequest):
            try:
                self._asked.put_nowait(request)
            except asyncio.QueueFull as error:
                raise WireError(f"over {_REQUESTS_AHEAD_MAX} requests without answer") from error
            return
        answer = self._renew_or_release(request)
        if request.wants_answer:
            await self._outbound.send(answer)

    def _renew_or_release(self, request: RenewRequest | ReleaseRequest) -> bytes:
        segments = self._parts.segments
        try:
            segment = segments.find(request)
        except TransferError as error:
            return _failure(request, error)
        if isinstance(request, ReleaseRequest):
            segments.release(segment)
        else:
            segments.renew(segment)
        return pack_control(FrameKind.DONE, segment.generation)

    async def _watch(self) -> None:
        """Say that the owner lives while it owes bytes; close on readers that ask nothing."""
        keepalive_s, clock = self._parts.keepalive_s, self._parts.clock
        while True:
            await asyncio.sleep(keepalive_s)
            if not self._is_answering:
                if clock() >= self._silence_ends_s:
                    raise TimeoutError("the reader asked for nothing in time")
            elif clock() - self._outbound.last_sent_s >= keepalive_s:
                await self._outbound.send(pack_control(FrameKind.KEEPALIVE, 0))

    # --- Answering -------------------------------------------------------------------------

    async def _answer(self) -> None:
        while True:
            request = await self._asked.get()
            self._is_answering = True
            try:
                await self._serve(request)
            except WireError as error:
                await self._outbound.send(pack_failure("bad_request", str(error)))
                await self._outbound.flush()
                raise
            self._is_answering = False
            self._silence_ends_s = self._parts.clock() + self._parts.config.lease_s

    async def _serve(self, request: FetchRequest | ReportRequest) -> None:
        try:
            segment = self._parts.segments.find(request)
        except TransferError as error:
            await self._outbound.send(_failure(request, error))
            return
        self._attend(segment)
        with segment.reading():
            try:
                if isinstance(request, ReportRequest):
                    await self._serve_report(segment)
                else:
                    await self._serve_fetch(segment, request)
            except TransferError as error:
                await self._outbound.send(_failure(request, error))
            # The delay line refers to the segment's bytes until they are with the kernel, also
            # those sent before a failure.
            await self._outbound.flush()

    def _attend(self, segment: Segment) -> None:
        if segment not in self._attended:
            self._attended.add(segment)
            self._parts.segments.arrive(segment)

    async def _serve_report(self, segment: Segment) -> None:
        report = await segment.report()
        payload = report.model_dump_json().encode()
        await self._outbound.send(pack_control(FrameKind.REPORT, segment.generation, payload))

    async def _serve_fetch(self, segment: Segment, request: FetchRequest) -> None:
        indexes = expand_ranges(request.ranges, chunk_count=len(segment.plan))
        pacer = self._route(request.destination)
        await self._outbound.send(pack_control(FrameKind.ACCEPTED, segment.generation))
        gaps = SendGaps(self._parts.clock())
        for index in indexes:
            has_waited = not segment.has_chunk(index)
            chunk = await segment.chunk(index)
            await self._send_chunk(
                segment, index, chunk, has_waited=has_waited, pacer=pacer, gaps=gaps
            )
            self._parts.counters.chunks_total += 1

    def _route(self, destination: str) -> LinkPacer | None:
        """The pacer of the way to a datacenter; None inside the owner's own."""
        if destination == self._parts.datacenter:
            return None
        pacer = self._parts.pacers.get(destination)
        if pacer is None:
            # Sending without a budget would be the one way past the promise about egress.
            raise LinkDown("the owner has no link to the reader's datacenter")
        self._stream.prefer_bbr()
        self._outbound.set_delay(pacer.delay_s, window_bytes=pacer.window_bytes)
        return pacer

    async def _send_chunk(
        self,
        segment: Segment,
        index: int,
        chunk: FilledChunk,
        *,
        has_waited: bool,
        pacer: LinkPacer | None,
        gaps: SendGaps,
    ) -> None:
        view = memoryview(chunk.data)
        part_bytes = _PART_BYTES if pacer is None else pacer.slice_bytes - HEADER_BYTES
        # A chunk without bytes is one part without payload.
        for offset in range(0, max(1, len(view)), part_bytes):
            part = view[offset : offset + part_bytes]
            if pacer is not None:
                await pacer.acquire(HEADER_BYTES + len(part), is_urgent=not segment.is_copy)
            # A release, an abort or the end of the lease stops a large chunk in its middle.
            segment.check_readable()
            gap_ms = gaps.next_ms(self._parts.clock(), has_waited=has_waited)
            header = FrameHeader(
                kind=FrameKind.PART,
                flags=part_flags(has_waited=has_waited, gap_ms=gap_ms),
                chunk_index=index,
                chunk_bytes=len(view),
                generation=segment.generation,
                offset_bytes=offset,
                payload_bytes=len(part),
                digest=chunk.digest,
            )
            await self._outbound.send(pack_header(header), part)
            self._parts.counters.payload_bytes_total += len(part)


def _failure(request: Request, error: TransferError) -> bytes:
    return pack_failure(error.code, error.message, generation=request.generation)
