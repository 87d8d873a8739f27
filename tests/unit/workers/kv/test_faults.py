"""Bytes that change on their way, owners that begin again, clocks that go wrong, slow readers."""

from __future__ import annotations

import asyncio
import socket
import time
import tracemalloc
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, TypeVar

import pytest
from kv_builders import (
    BLOCK,
    HOST,
    ManualClock,
    a_config,
    a_manifest,
    a_piece,
    an_owner,
    eventually,
    fetch,
    fill_all,
    identity_of,
)

from controlplane.config import KvConfig
from controlplane.errors import SegmentStale, TransferError
from controlplane.wire import KvLocation, KvManifest
from workers.engine import KvPiece
from workers.kv.frames import (
    HEADER_BYTES,
    FrameHeader,
    FrameKind,
    WireError,
    chunk_hasher,
    pack_header,
)
from workers.kv.goodput import GoodputMeter
from workers.kv.layout import ChunkSpec, chunk_plan
from workers.kv.owner import ChunkRefused, Owner
from workers.kv.requests import FetchRequest, ReportRequest, pack_request
from workers.kv.segments import SegmentStore
from workers.kv.server import KvServer

ResultT = TypeVar("ResultT")
MIB = 1 << 20

# --- Corruption: what verifies is used, and nothing else -----------------------------------------

INJECTIONS = 100_000
#: Three chunks of attention and a state, in parts of 48 bytes: small, so that every one is hit.
MANIFEST = a_manifest(2 * BLOCK + 3, bytes_per_token=6, state_bytes=144)
PART_BYTES = 48


class Wire:
    """A connection whose bytes are there already."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    async def read_into(self, view: memoryview) -> None:
        """The next bytes, or the end."""
        end = self._at + view.nbytes
        if end > len(self._data):
            raise EOFError
        view[:] = self._data[self._at : end]
        self._at = end


def run(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Run what never has to wait, without an event loop."""
    try:
        work.send(None)
    except StopIteration as done:
        result: ResultT = done.value
        return result
    raise AssertionError("it waits")


def frames_of(spec: ChunkSpec, data: bytes, location: KvLocation) -> list[bytes]:
    """A chunk as its owner sends it."""
    hasher = chunk_hasher(location.segment_id, location.generation, spec.index)
    hasher.update(data)
    frames = []
    for offset in range(0, max(1, len(data)), PART_BYTES):
        part = data[offset : offset + PART_BYTES]
        header = FrameHeader(
            kind=FrameKind.PART,
            flags=0,
            chunk_index=spec.index,
            chunk_bytes=len(data),
            generation=location.generation,
            offset_bytes=offset,
            payload_bytes=len(part),
            digest=hasher.digest(),
        )
        frames.append(pack_header(header) + part)
    return frames


class Answers:
    """What owners send for one plan: this generation, the one before, and another request's."""

    def __init__(self, location: KvLocation) -> None:
        self.location = location
        self.plan = chunk_plan(location.manifest)
        self.pieces = [a_piece(spec) for spec in self.plan]
        others = (
            location.model_copy(update={"generation": location.generation - 1}),
            location.model_copy(update={"segment_id": "other"}),
        )
        #: By source, by chunk: frames.
        self.sources = [
            [frames_of(spec, a_piece(spec, seed=seed).data, source) for spec in self.plan]
            for seed, source in enumerate((location, *others))
        ]

    def received(self, chunk: int, data: bytes) -> list[KvPiece]:
        """Pieces from a chunk on that a reader takes out of these bytes, up to its first doubt."""
        owner = Owner(Wire(data), self.location, KvConfig(), answer_by_s=0)  # type: ignore[arg-type]
        meter = GoodputMeter()
        meter.begin(0)
        taken: list[KvPiece] = []
        for spec in self.plan[chunk : chunk + 2]:
            try:
                taken.append(run(owner.chunk(spec, meter=meter, clock=float)))
            except ChunkRefused:
                continue
            except (WireError, TransferError):
                break
        return taken


def flip(rng: Random, frames: list[bytes], _: Answers) -> bytes:
    """One bit, anywhere."""
    data = bytearray(b"".join(frames))
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def truncate(rng: Random, frames: list[bytes], _: Answers) -> bytes:
    """A hole of some bytes, in the middle or at the end."""
    data = b"".join(frames)
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.randrange(1, 100) :]


def swap(rng: Random, frames: list[bytes], _: Answers) -> bytes:
    """Two frames change places."""
    one, two = rng.sample(range(len(frames)), 2)
    frames[one], frames[two] = frames[two], frames[one]
    return b"".join(frames)


def swap_payloads(rng: Random, frames: list[bytes], _: Answers) -> bytes:
    """Two payloads of one size change places under their headers."""
    one, two = rng.sample([n for n, frame in enumerate(frames) if len(frame) == 96], 2)
    heads = frames[one][:HEADER_BYTES], frames[two][:HEADER_BYTES]
    tails = frames[one][HEADER_BYTES:], frames[two][HEADER_BYTES:]
    frames[one], frames[two] = heads[0] + tails[1], heads[1] + tails[0]
    return b"".join(frames)


def repeat(rng: Random, frames: list[bytes], _: Answers) -> bytes:
    """A frame comes twice."""
    at = rng.randrange(len(frames))
    return b"".join((*frames[: at + 1], *frames[at:]))


def reorder(rng: Random, frames: list[bytes], _: Answers) -> bytes:
    """All frames in another order."""
    mixed = list(frames)
    while mixed == frames:
        rng.shuffle(mixed)
    return b"".join(mixed)


def mix(rng: Random, frames: list[bytes], answers: Answers) -> bytes:
    """A payload, or a whole frame, of an older generation or another request."""
    at = rng.randrange(len(frames))
    foreign = [frame for chunk in answers.sources[rng.randrange(1, 3)] for frame in chunk]
    other = rng.choice([one for one in foreign if len(one) == len(frames[at])])
    frames[at] = other if rng.random() < 0.5 else frames[at][:HEADER_BYTES] + other[HEADER_BYTES:]
    return b"".join(frames)


INJECTORS: list[Callable[[Random, list[bytes], Answers], bytes]] = [
    flip,
    truncate,
    swap,
    swap_payloads,
    repeat,
    reorder,
    mix,
]


def a_location_of(manifest: KvManifest) -> KvLocation:
    return KvLocation(
        worker_id="east/p1",
        datacenter="east",
        incarnation="i1",
        segment_id="segment",
        generation=7,
        host=HOST,
        port=1,
        lease_s=30,
        manifest=manifest,
    )


def test_of_a_hundred_thousand_injected_corruptions_not_one_is_consumed() -> None:
    """Each kind at each chunk: a piece that is handed on is the piece that was computed."""
    answers = Answers(a_location_of(MANIFEST))
    rng = Random(0)
    wrong = lost = 0
    for number in range(INJECTIONS):
        inject = INJECTORS[number % len(INJECTORS)]
        chunk = number // len(INJECTORS) % (len(answers.plan) - 1)
        true = answers.pieces[chunk : chunk + 2]
        frames = [frame for part in answers.sources[0][chunk : chunk + 2] for frame in part]

        taken = answers.received(chunk, inject(rng, frames, answers))

        wrong += any(piece not in true for piece in taken)
        lost += taken != true

    print(f"{wrong} of {INJECTIONS} consumed, {lost} noticed")
    assert wrong == 0
    # A bit of a flag, or a repeated last frame, changes nothing that is used.
    assert lost > 0.9 * INJECTIONS


def test_without_a_corruption_every_chunk_is_consumed() -> None:
    """Or the test above would say nothing."""
    answers = Answers(a_location_of(MANIFEST))

    for chunk in range(len(answers.plan) - 1):
        frames = [frame for part in answers.sources[0][chunk : chunk + 2] for frame in part]
        assert answers.received(chunk, b"".join(frames)) == answers.pieces[chunk : chunk + 2]


# --- Owners that begin again ---------------------------------------------------------------------


async def test_an_owner_that_was_restarted_on_its_port_answers_gone() -> None:
    """It may have a segment of the same generation; a location names a life."""
    async with an_owner() as owner:
        _, old = owner.filled()
    again = SegmentStore(incarnation="i2", config=a_config())
    server = KvServer(again, worker_id="east/p1", datacenter="east", config=a_config())
    server.start(HOST, old.port)
    segment = again.open(a_manifest())
    fill_all(segment, seed=1)

    with pytest.raises(SegmentStale):
        await fetch(old)
    received = await fetch(server.location(segment, HOST))
    await server.close()

    assert segment.generation == old.generation
    assert received.in_order[0] == a_piece(segment.plan[0], seed=1)


# --- Clocks --------------------------------------------------------------------------------------


def seen_by(clock: ManualClock, *, rate: float, offset_s: float) -> Callable[[], float]:
    """An owner's clock that goes wrong."""
    return lambda: offset_s + rate * clock()


@pytest.mark.parametrize("offset_s", [-3600.0, 0.0, 3600.0])
@pytest.mark.parametrize("rate", [0.9, 1.0, 1.1])
def test_a_clock_that_is_wrong_frees_nothing_early(rate: float, offset_s: float) -> None:
    """Ten per cent fast, slow, an hour off: a reader that renews in its own time keeps its KV."""
    config = a_config()
    true = ManualClock()
    store = SegmentStore(
        incarnation="i1", config=config, clock=seen_by(true, rate=rate, offset_s=offset_s)
    )
    segment = store.open(a_manifest())
    request = ReportRequest(
        incarnation="i1",
        segment_id=segment.segment_id,
        generation=segment.generation,
        fingerprint=segment.manifest.fingerprint,
        scope=segment.manifest.scope,
    )

    # An hour of renewals, each twice as late as it should be.
    true.advance(2.0)
    for _ in range(360):
        assert store.find(request) is segment
        true.advance(2 * config.renew_interval_s)
        store.sweep()
    freed_after_s = 2 * config.renew_interval_s
    while segment.is_readable:
        true.advance(0.1)
        freed_after_s += 0.1
        store.sweep()

    assert freed_after_s == pytest.approx(config.lease_s / rate, abs=0.2)


# --- Slow readers --------------------------------------------------------------------------------


async def test_readers_that_do_not_read_cost_no_memory_and_delay_nobody() -> None:
    """Eight of them at 64 MiB each: the owner sends from the segment and copies nothing."""
    config = a_config(segment_bytes_max=256 * MIB)
    async with an_owner(config=config) as owner:
        large, slow = owner.open(a_manifest(0, state_bytes=64 * MIB))
        fill_all(large)
        pieces, quick = owner.filled(a_manifest(200 * BLOCK))
        tracemalloc.start()
        socks = [await a_stuck_reader(slow) for _ in range(8)]
        await eventually(lambda: large._readers == 8)

        began_s = time.monotonic()
        received = await fetch(quick)
        took_s = time.monotonic() - began_s
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        for sock in socks:
            sock.close()

    assert received.in_order == pieces
    # The pieces of the quick reader are in it, 400 KiB.
    assert peak_bytes < 2 * MIB
    # Behind them it would never come at all.
    assert took_s < 20


async def a_stuck_reader(location: KvLocation) -> socket.socket:
    """It asks for all chunks and reads none."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, (location.host, location.port))
    count = len(chunk_plan(location.manifest))
    request = FetchRequest(**identity_of(location), destination="east", ranges=((0, count, 1),))
    await loop.sock_sendall(sock, pack_request(request))
    return sock
