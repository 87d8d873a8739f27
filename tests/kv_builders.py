"""Builders around the KV path: manifests, pieces, owners that behave and owners that do not."""

from __future__ import annotations

import asyncio
import heapq
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeAlias

from hypothesis import settings

from controlplane.config import KvConfig, LinkConfig
from controlplane.store.api import BudgetGrant
from controlplane.wire import KvGroup, KvLocation, KvManifest, PrefillReport
from workers.engine import KvPiece
from workers.kv.client import FetchResult, fetch_segment
from workers.kv.frames import HEADER_BYTES, FrameHeader, FrameKind, parse_header
from workers.kv.layout import ChunkSpec, chunk_plan
from workers.kv.pacing import LinkPacer
from workers.kv.requests import (
    PREFACE_BYTES,
    FetchRequest,
    ReportRequest,
    Request,
    pack_request,
    parse_preface,
    parse_request,
)
from workers.kv.segment import Segment
from workers.kv.segments import SegmentStore
from workers.kv.server import KvServer

#: The `run` fixture: runs a test on one of the event loops.
Run: TypeAlias = Callable[[Coroutine[Any, Any, None]], None]

#: For every property here: without a deadline, which would test the machine.
property_settings = settings(deadline=None, max_examples=60)

HOST = "127.0.0.1"
BLOCK = 16


def a_manifest(
    token_count: int = 5 * BLOCK + 3,
    *,
    bytes_per_token: int = 64,
    state_bytes: int = 1000,
    **overrides: Any,
) -> KvManifest:
    """Six attention chunks, the last one short, and a state."""
    values: dict[str, Any] = {
        "fingerprint": "f",
        "scope": "s",
        "token_count": token_count,
        "block_tokens": BLOCK,
        "groups": (
            KvGroup(name="attention", bytes_per_token=bytes_per_token, fixed_bytes=0),
            KvGroup(name="state", bytes_per_token=0, fixed_bytes=state_bytes),
        ),
    }
    return KvManifest(**(values | overrides))


def a_piece(spec: ChunkSpec, *, seed: int = 0) -> KvPiece:
    """A piece for a chunk; its bytes depend on chunk and seed."""
    return KvPiece(
        group=spec.group,
        token_start=spec.token_start,
        token_end=spec.token_end,
        data=Random(f"{seed} {spec.index}").randbytes(spec.size_bytes),
    )


def pieces_of(manifest: KvManifest, *, seed: int = 0) -> list[KvPiece]:
    """All pieces of a segment in order."""
    return [a_piece(spec, seed=seed) for spec in chunk_plan(manifest)]


def a_report(**overrides: Any) -> PrefillReport:
    values = {"queue_s": 0.5, "compute_s": 1.5, "cached_tokens": 16, "computed_tokens": 67}
    return PrefillReport(**(values | overrides))


def a_link(**overrides: Any) -> LinkConfig:
    """From east to west, 8 Gbit/s (1 GB/s), without delay."""
    values = {"from_datacenter": "east", "to_datacenter": "west", "capacity_mbit_per_s": 8000}
    return LinkConfig(**(values | overrides))


def a_config(**overrides: Any) -> KvConfig:
    return KvConfig(**overrides)


def impatient(**overrides: Any) -> KvConfig:
    """Times as short as a busy machine allows, for tests that wait for their end."""
    return KvConfig(**({"connect_timeout_s": 0.2, "stall_timeout_s": 0.2} | overrides))


def fill_all(segment: Segment, *, seed: int = 0) -> list[KvPiece]:
    """Prefill in no time."""
    pieces = pieces_of(segment.manifest, seed=seed)
    for piece in pieces:
        segment.fill(piece)
    segment.complete(a_report())
    return pieces


async def eventually(is_true: Callable[[], bool]) -> None:
    """Turn the loop until something is true; fails after five seconds."""
    async with asyncio.timeout(5):
        while not is_true():  # noqa: ASYNC110 - what is waited for is not always an event
            await asyncio.sleep(0)


async def settle() -> None:
    """Let every task that can go on do so, sockets included."""
    for _ in range(20):
        await asyncio.sleep(0)


# --- Time --------------------------------------------------------------------------------------


class ManualClock:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


class VirtualTime(ManualClock):
    """A clock whose sleepers are woken in order, as fast as the machine can."""

    def __init__(self) -> None:
        super().__init__()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = 0

    async def sleep(self, seconds: float) -> None:
        self._count += 1
        sleeper = (self.now_s + seconds, self._count, asyncio.get_running_loop().create_future())
        heapq.heappush(self._sleepers, sleeper)
        await sleeper[2]

    async def run_until(self, work: asyncio.Future[Any]) -> None:
        """Wake sleepers one after the other until the work is done."""
        while True:
            for _ in range(10):
                await asyncio.sleep(0)
            if work.done():
                return
            if not self._sleepers:
                continue  # somebody still runs; the test's own timeout ends a hang
            due_s, _, future = heapq.heappop(self._sleepers)
            self.now_s = max(self.now_s, due_s)
            if not future.done():
                future.set_result(None)


class GenerousBudget:
    """Grants whatever is asked and remembers it."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    async def take(self, want_bytes: int) -> BudgetGrant:
        self.asked.append(want_bytes)
        return BudgetGrant(granted_bytes=want_bytes, retry_after_s=0)


class ClosedBudget:
    """Grants nothing until it is opened."""

    def __init__(self) -> None:
        self.is_open = False
        self.asked = 0

    async def take(self, want_bytes: int) -> BudgetGrant:
        self.asked += 1
        if self.is_open:
            return BudgetGrant(granted_bytes=want_bytes, retry_after_s=0)
        return BudgetGrant(granted_bytes=0, retry_after_s=0.001)


# --- Owners that behave --------------------------------------------------------------------------


@dataclass
class TestOwner:
    """A prefill worker's KV side in datacenter east."""

    __test__ = False

    store: SegmentStore
    server: KvServer

    def location(self, segment: Segment) -> KvLocation:
        return self.server.location(segment, host=HOST)

    def open(self, manifest: KvManifest | None = None) -> tuple[Segment, KvLocation]:
        """A segment that is still empty."""
        segment = self.store.open(manifest or a_manifest())
        return segment, self.location(segment)

    def filled(self, manifest: KvManifest | None = None) -> tuple[list[KvPiece], KvLocation]:
        """A segment that is complete."""
        segment, location = self.open(manifest)
        return fill_all(segment), location


@asynccontextmanager
async def an_owner(
    *,
    config: KvConfig | None = None,
    pacers: tuple[LinkPacer, ...] = (),
    connections_max: int = 64,
    **store_overrides: Any,
) -> AsyncIterator[TestOwner]:
    """A running owner; afterwards nothing may be left of any connection."""
    config = config or a_config()
    store = SegmentStore(**({"incarnation": "i1", "config": config} | store_overrides))
    server = KvServer(
        store,
        worker_id="east/p1",
        datacenter="east",
        pacers=pacers,
        config=config,
        connections_max=connections_max,
    )
    try:
        server.start(HOST)
        yield TestOwner(store, server)
    finally:
        await server.close()
    await eventually(lambda: server.connections == 0)
    store.check_integrity()
    assert all(one._readers == 0 for one in store._held.values())


@dataclass
class Received:
    """What a fetch delivered."""

    pieces: list[KvPiece] = field(default_factory=list)
    result: FetchResult | None = None

    @property
    def in_order(self) -> list[KvPiece]:
        return sorted(self.pieces, key=lambda piece: (piece.group, piece.token_start))


async def fetch(
    location: KvLocation,
    *,
    received: Received | None = None,
    held_tokens: int = 0,
    destination: str = "east",
    config: KvConfig | None = None,
    on_piece: Callable[[KvPiece], None] | None = None,
    arrived_s: float | None = None,
    **overrides: Any,
) -> Received:
    """Fetch as a decode worker does; without a destination, from its own datacenter."""
    received = received or Received()
    received.result = await fetch_segment(
        location,
        held_tokens=held_tokens,
        destination=destination,
        on_piece=on_piece or received.pieces.append,
        config=config or a_config(),
        arrived_s=asyncio.get_running_loop().time() if arrived_s is None else arrived_s,
        **overrides,
    )
    return received


# --- Raw ends of the wire ------------------------------------------------------------------------


def identity_of(location: KvLocation) -> dict[str, Any]:
    return {
        "incarnation": location.incarnation,
        "segment_id": location.segment_id,
        "generation": location.generation,
        "fingerprint": location.manifest.fingerprint,
        "scope": location.manifest.scope,
    }


def a_fetch_request(location: KvLocation, **overrides: Any) -> FetchRequest:
    """All chunks in order, to the owner's own datacenter."""
    count = len(chunk_plan(location.manifest))
    values = identity_of(location) | {"destination": "east", "ranges": ((0, count, 1),)}
    return FetchRequest(**(values | overrides))


def a_report_request(location: KvLocation) -> ReportRequest:
    return ReportRequest(**identity_of(location))


class RawReader:
    """A reader that says what it wants and shows every frame it gets."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def ask(self, request: Request) -> None:
        await self.send(pack_request(request))

    async def frame(self) -> tuple[FrameHeader, bytes]:
        """The next frame, whatever it is."""
        async with asyncio.timeout(5):
            header = parse_header(await self._reader.readexactly(HEADER_BYTES))
            return header, await self._reader.readexactly(header.payload_bytes)

    async def answer(self) -> tuple[FrameHeader, bytes]:
        """The next frame that is not a keep-alive."""
        while True:
            header, payload = await self.frame()
            if header.kind is not FrameKind.KEEPALIVE:
                return header, payload

    async def failure(self) -> str:
        """The code of a FAILURE, which must come next."""
        header, payload = await self.answer()
        assert header.kind is FrameKind.FAILURE, header
        return str(json.loads(payload)["code"])

    async def rest(self) -> bytes:
        """Everything until the owner closes."""
        async with asyncio.timeout(5):
            try:
                return await self._reader.read()
            except ConnectionError:
                return b""

    async def close(self) -> None:
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()


@asynccontextmanager
async def a_reader(owner: TestOwner) -> AsyncIterator[RawReader]:
    """A connection to an owner, by hand."""
    raw = RawReader(*await asyncio.open_connection(HOST, owner.server.port))
    try:
        yield raw
    finally:
        await raw.close()


def a_silent_port() -> int:
    """A port that nobody listens on."""
    with closing(socket.create_server((HOST, 0))) as listener:
        return int(listener.getsockname()[1])


Handler = Callable[["Peer"], Awaitable[None]]


class Peer:
    """One connection at an owner that does not behave."""

    def __init__(
        self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        #: 0 for the first connection.
        self.number = number
        self._reader = reader
        self._writer = writer

    async def request(self) -> Request:
        length = parse_preface(await self._reader.readexactly(PREFACE_BYTES))
        return parse_request(await self._reader.readexactly(length))

    async def send(self, *data: bytes) -> None:
        self._writer.write(b"".join(data))
        await self._writer.drain()

    async def silence(self) -> None:
        """Say nothing until the reader leaves."""
        while await self._reader.read(1 << 16):
            pass

    def reset(self) -> None:
        """Break the connection the hard way."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self._writer.transport.abort()


@asynccontextmanager
async def _listener(
    serve: Callable[[int, asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]],
) -> AsyncIterator[int]:
    """The port of a server; its connections end with it, and what they raised comes out."""
    serving: list[asyncio.Task[None]] = []
    writers: list[asyncio.StreamWriter] = []

    async def serve_one(
        number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await serve(number, reader, writer)

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(serve_one(len(serving), reader, writer))
        # Not in the task, which may be cancelled before its first step.
        task.add_done_callback(lambda _: writer.close())
        serving.append(task)
        writers.append(writer)

    server = await asyncio.start_server(connected, HOST, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in serving:
            task.cancel()
        ends = await asyncio.gather(*serving, return_exceptions=True)
        for writer in writers:
            # A close alone would wait for a reader to take what it never will.
            writer.transport.abort()
        await settle()
    for end in ends:
        if isinstance(end, Exception):
            raise end


@asynccontextmanager
async def a_bad_owner(handler: Handler) -> AsyncIterator[int]:
    """The port of an owner that does to each connection what the handler does."""

    async def serve(
        number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await handler(Peer(number, reader, writer))

    async with _listener(serve) as port:
        yield port


def a_location(port: int, manifest: KvManifest | None = None, **overrides: Any) -> KvLocation:
    """A segment at some port."""
    values: dict[str, Any] = {
        "worker_id": "east/p1",
        "datacenter": "east",
        "incarnation": "i1",
        "segment_id": "a" * 32,
        "generation": 7,
        "host": HOST,
        "port": port,
        "lease_s": 30,
        "manifest": manifest or a_manifest(),
    }
    return KvLocation(**(values | overrides))


#: Gets number of the connection, position in its stream and the bytes; returns what goes on.
Tamper = Callable[[int, int, bytearray], None]


@asynccontextmanager
async def a_proxy(port: int, tamper: Tamper) -> AsyncIterator[int]:
    """The port of something between reader and owner that changes what the owner sends."""

    async def pump(
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        change: Callable[[int, bytearray], None],
    ) -> None:
        position = 0
        try:
            while data := bytearray(await reader.read(1 << 16)):
                change(position, data)
                position += len(data)
                writer.write(bytes(data))
                await writer.drain()
        finally:
            # Either side's end is the other's, as if there were nothing in between.
            writer.close()

    async def serve(
        number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        up_reader, up_writer = await asyncio.open_connection(HOST, port)
        try:
            ends = await asyncio.gather(
                pump(reader, up_writer, lambda _position, _data: None),
                pump(up_reader, writer, lambda position, data: tamper(number, position, data)),
                return_exceptions=True,
            )
        finally:
            up_writer.transport.abort()
        assert all(end is None or isinstance(end, ConnectionError) for end in ends), ends

    async with _listener(serve) as proxy_port:
        yield proxy_port


def socket_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected TCP sockets."""
    with closing(socket.create_server((HOST, 0))) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    with one, other:
        yield one, other
