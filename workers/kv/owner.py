"""The reader's end of one connection: speaks to the owner, checks every byte, names what failed."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence
from typing import Self, TypedDict

from controlplane.config import KvConfig
from controlplane.errors import TRANSFER_ERRORS, LinkDown, LinkStalled, SegmentStale, TransferError
from controlplane.wire import KvLocation, PrefillReport, WorkerError
from workers.engine import KvPiece
from workers.kv.dial import connect, reason
from workers.kv.frames import (
    FLAG_WAITED,
    HEADER_BYTES,
    FrameHeader,
    FrameKind,
    WireError,
    chunk_hasher,
    gap_s,
    parse_header,
)
from workers.kv.goodput import Meter
from workers.kv.layout import ChunkSpec
from workers.kv.requests import (
    FetchRequest,
    ReleaseRequest,
    RenewRequest,
    ReportRequest,
    Request,
    pack_request,
    to_ranges,
)
from workers.kv.stream import Stream
from workers.kv.timing import Clock


class _Identity(TypedDict):
    incarnation: str
    segment_id: str
    generation: int
    fingerprint: str
    scope: str


class ChunkRefused(Exception):
    """One chunk did not match its checksum; the connection is fine."""


class Owner:
    """
    A connection to the owner of a segment.

    Every wait ends after the times of `KvConfig`. Bytes that are not the protocol, or not what was
    asked for, are a `WireError`: what follows on this connection cannot be trusted.
    """

    def __init__(
        self, stream: Stream, location: KvLocation, config: KvConfig, *, answer_by_s: float
    ) -> None:
        self._stream = stream
        self._location = location
        self._config = config
        #: On the loop's clock: the first frame has to be there.
        self._answer_by_s = answer_by_s
        self._writing = asyncio.Lock()
        self._header = bytearray(HEADER_BYTES)

    @classmethod
    async def connect(cls, location: KvLocation, config: KvConfig) -> Self:
        """
        Open a connection within `connect_timeout_s`.

        Raises:
            LinkDown: Refused, unreachable, or no connection in time.
        """
        deadline_s = asyncio.get_running_loop().time() + config.connect_timeout_s
        try:
            async with asyncio.timeout_at(deadline_s):
                sock = await connect(location.host, location.port)
        except TimeoutError as error:
            raise LinkDown(
                f"no connection to the owner of the KV within {config.connect_timeout_s:g} s"
            ) from error
        except OSError as error:
            raise LinkDown(f"no connection to the owner of the KV: {reason(error)}") from error
        stream = Stream(sock, stall_timeout_s=config.stall_timeout_s)
        return cls(stream, location, config, answer_by_s=deadline_s)

    def hang_up(self) -> None:
        """Tell the owner to stop; whoever waits on the connection gets `LinkDown`."""
        self._stream.hang_up()

    def close(self) -> None:
        """Close the socket. Idempotent; nobody may be waiting on the connection."""
        self._stream.close()

    # --- Asking ----------------------------------------------------------------------------

    async def ask_fetch(self, chunks: Sequence[ChunkSpec], *, destination: str) -> None:
        """Ask for chunks, ascending; `accepted` and then `chunk` for each of them follow."""
        await self._ask(
            FetchRequest(
                **self._identity(),
                destination=destination,
                ranges=to_ranges([chunk.index for chunk in chunks]),
            )
        )

    async def ask_report(self) -> None:
        """Ask for the prefill report; `report` follows."""
        await self._ask(ReportRequest(**self._identity()))

    async def renew(self, *, wants_answer: bool) -> None:
        """Renew the lease; if asked for, `done` follows."""
        await self._ask(RenewRequest(**self._identity(), wants_answer=wants_answer))

    async def release(self, *, wants_answer: bool) -> None:
        """Give the segment up; if asked for, `done` follows."""
        await self._ask(ReleaseRequest(**self._identity(), wants_answer=wants_answer))

    def release_at_once(self) -> None:
        """
        Give the segment up without waiting, for a reader that is being cancelled. Best effort.

        What the kernel does not take now, or what would stand inside another request, is not said:
        the owner sees the connection close, and the lease ends soon after.
        """
        if not self._writing.locked():
            request = ReleaseRequest(**self._identity(), wants_answer=False)
            self._stream.write_at_once(pack_request(request))

    # --- Hearing ---------------------------------------------------------------------------

    async def accepted(self) -> None:
        """
        The owner's yes to a fetch, within `connect_timeout_s` from connecting on.

        Raises:
            TransferError: It said no, or nothing.
            WireError: It said something else.
        """
        try:
            async with asyncio.timeout_at(self._answer_by_s):
                await self._expect(FrameKind.ACCEPTED)
        except TimeoutError as error:
            raise LinkStalled(
                "the owner of the KV took the connection and did not answer within "
                f"{self._config.connect_timeout_s:g} s"
            ) from error

    async def report(self) -> PrefillReport:
        """
        The prefill report, once the owner has it.

        Raises:
            TransferError: The prefill failed, the segment is gone, or the link is.
            WireError: Not a report.
        """
        payload = await self._expect(FrameKind.REPORT)
        try:
            return PrefillReport.model_validate_json(payload)
        except ValueError as error:
            raise WireError("the owner sent a prefill report that is none") from error

    async def done(self) -> None:
        """
        The answer to a renewal or release.

        Raises:
            TransferError: The segment is gone, or the link is.
            WireError: Not an answer.
        """
        await self._expect(FrameKind.DONE)

    async def heard(self) -> None:
        """
        The owner has said something, whatever it is.

        Raises:
            TransferError: The link is gone.
            WireError: It was not this protocol.
        """
        await self._read(memoryview(self._header))
        parse_header(self._header)

    async def chunk(self, spec: ChunkSpec, *, meter: Meter, clock: Clock) -> KvPiece:
        """
        The next chunk of a fetch, complete and verified.

        Raises:
            ChunkRefused: Its checksum is wrong.
            WireError: It is not the chunk that comes next, or of another size.
            TransferError: The prefill failed, the segment is gone, or the link is.
        """
        hasher = chunk_hasher(self._location.segment_id, self._location.generation, spec.index)
        # A `BytesIO` of the final size hands its bytes out without a copy, which a `bytearray`
        # cannot; with hundreds of MiB of state the second copy is what counts.
        buffer = io.BytesIO()
        if spec.size_bytes:
            buffer.seek(spec.size_bytes - 1)
            buffer.write(b"\0")
        digest: bytes | None = None
        received = 0
        with buffer.getbuffer() as view:
            while digest is None or received < spec.size_bytes:
                header = await self._part_header(spec, received, digest)
                digest = header.digest
                part = view[received : received + header.payload_bytes]
                await self._read(part)
                hasher.update(part)
                part.release()
                has_waited = received == 0 and bool(header.flags & FLAG_WAITED)
                received += header.payload_bytes
                meter.arrived(
                    header.payload_bytes,
                    clock(),
                    has_waited=has_waited,
                    owner_gap_s=gap_s(header.flags),
                )
        if hasher.digest() != digest:
            raise ChunkRefused(f"the checksum of chunk {spec.index} does not match its bytes")
        return KvPiece(
            group=spec.group,
            token_start=spec.token_start,
            token_end=spec.token_end,
            data=buffer.getvalue(),
        )

    async def _part_header(
        self, spec: ChunkSpec, received: int, digest: bytes | None
    ) -> FrameHeader:
        header = await self._next_frame()
        if header.kind is not FrameKind.PART:
            raise WireError(f"expected a part of chunk {spec.index}, got {header.kind.name}")
        if header.generation != self._location.generation:
            raise SegmentStale(
                f"the owner sent generation {header.generation}, not {self._location.generation}"
            )
        found = (header.chunk_index, header.chunk_bytes, header.offset_bytes)
        expected = (spec.index, spec.size_bytes, received)
        if found != expected:
            raise WireError(f"expected (chunk, bytes, offset) {expected}, got {found}")
        if digest not in (None, header.digest):
            raise WireError(f"two parts of chunk {spec.index} name different checksums")
        return header

    async def _expect(self, kind: FrameKind) -> bytes:
        header = await self._next_frame()
        if header.kind is not kind:
            raise WireError(f"expected {kind.name}, got {header.kind.name}")
        return await self._payload(header)

    async def _next_frame(self) -> FrameHeader:
        """The next header that is no keep-alive; its payload is still to be read."""
        while True:
            await self._read(memoryview(self._header))
            header = parse_header(self._header)
            if header.kind is FrameKind.FAILURE:
                raise self._failure(await self._payload(header))
            if header.kind is not FrameKind.KEEPALIVE:
                return header
            await self._payload(header)

    async def _payload(self, header: FrameHeader) -> bytes:
        payload = bytearray(header.payload_bytes)
        await self._read(memoryview(payload))
        return bytes(payload)

    def _failure(self, payload: bytes) -> Exception:
        try:
            said = WorkerError.model_validate_json(payload)
        except ValueError:
            return WireError("the owner sent a failure that cannot be read")
        kind = TRANSFER_ERRORS.get(said.code)
        if kind is None:
            return LinkDown(f"the owner of the KV refused with {said.code}: {said.message}")
        return kind(said.message)

    # --- Plumbing --------------------------------------------------------------------------

    def _identity(self) -> _Identity:
        location = self._location
        return {
            "incarnation": location.incarnation,
            "segment_id": location.segment_id,
            "generation": location.generation,
            "fingerprint": location.manifest.fingerprint,
            "scope": location.manifest.scope,
        }

    async def _ask(self, request: Request) -> None:
        # Renewals come from another task than fetches; two requests must not mix.
        async with self._writing:
            try:
                await self._stream.write(pack_request(request))
            except OSError as error:
                raise self._link_error(error) from error

    async def _read(self, view: memoryview) -> None:
        try:
            await self._stream.read_into(view)
        except (OSError, EOFError) as error:
            raise self._link_error(error) from error

    def _link_error(self, error: OSError | EOFError) -> TransferError:
        if isinstance(error, TimeoutError):
            return LinkStalled(
                "nothing moved on the connection to the owner of the KV for "
                f"{self._config.stall_timeout_s:g} s"
            )
        if isinstance(error, EOFError):
            return LinkDown("the owner of the KV closed the connection")
        return LinkDown(f"the connection to the owner of the KV broke: {reason(error)}")
