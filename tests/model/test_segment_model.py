"""
Every life that segments of one owner can have while its memory holds one of them at a time.

Breadth first over the real store: from each state that is reached, everything that a writer, two
readers, a router and time can do is done, a late writer and a late reader included. Beside it runs
a ledger of who holds what and until when, written from the promise and not from the code. States
that differ in nothing but their past are explored once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Final

from kv_builders import BLOCK, ManualClock, a_manifest, a_piece, a_report

from controlplane.config import KvConfig
from controlplane.errors import TransferError, WorkerRefused
from workers.kv.frames import chunk_hasher
from workers.kv.requests import ReportRequest
from workers.kv.segment import Segment
from workers.kv.segments import SegmentStore

#: One attention chunk and a state.
MANIFEST: Final = a_manifest(BLOCK)
LEASE_S: Final = 30.0
UNREAD_LEASE_S: Final = 5.0
READERS_MAX: Final = 2
#: Uses of the memory, and actions, that a life may have.
GENERATIONS_MAX: Final = 2
DEPTH: Final = 7
#: To both sides of either lease, alone and together.
WAITS_S: Final = (4.0, 5.0, 26.0)


@dataclass
class Holding:
    """The ledger of one generation: what is promised of it."""

    lease_ends_s: float
    is_readable: bool = True
    has_writer: bool = True
    readers: int = 0
    filled: int = 0

    @property
    def is_held(self) -> bool:
        """Its bytes cannot be used again."""
        return self.is_readable or self.has_writer or self.readers > 0


@dataclass
class World:
    """A store, what was done with it, and what must be true of it."""

    clock: ManualClock = field(default_factory=ManualClock)
    segments: list[Segment] = field(default_factory=list)
    ledger: list[Holding] = field(default_factory=list)
    reading: list[list[AbstractContextManager[None]]] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        probe = SegmentStore(incarnation="i1", config=KvConfig()).open(MANIFEST)
        config = KvConfig(lease_s=LEASE_S, unread_lease_s=UNREAD_LEASE_S)
        # Below what the field allows from a file, so that one small segment fills the memory.
        config = config.model_copy(update={"segment_bytes_max": probe.total_bytes})
        self.store = SegmentStore(
            incarnation="i1",
            config=config,
            clock=self.clock,
            on_drop=lambda segment, _: self.dropped.append(segment.generation),
        )

    # --- What can be done ---------------------------------------------------------------------

    def actions(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """Everything that somebody may do now, by name."""
        if len(self.segments) < GENERATIONS_MAX:
            yield "open", self.open
        for number, holding in enumerate(self.ledger):
            for name in ("release", "abort", "renew"):
                yield f"{name} {number}", lambda n=number, a=name: getattr(self, a)(n)
            if holding.has_writer:
                yield f"fill {number}", lambda n=number: self.fill(n)
                yield f"finish {number}", lambda n=number: self.finish(n)
            if holding.readers < READERS_MAX:
                yield f"begin {number}", lambda n=number: self.begin(n)
            if holding.readers:
                yield f"end {number}", lambda n=number: self.end(n)
        for seconds in WAITS_S:
            yield f"wait {seconds:g}", lambda s=seconds: self.clock.advance(s)
        yield "sweep", self.sweep

    def open(self) -> None:
        """A prefill is accepted; the memory is that of the generation before it."""
        is_free = not any(holding.is_held for holding in self.ledger)
        try:
            segment = self.store.open(MANIFEST)
        except WorkerRefused:
            assert not is_free, "free memory was refused"
            return
        assert is_free, "memory was given out that somebody still holds"
        assert segment.generation == len(self.segments) + 1, "a use without its own generation"
        self.segments.append(segment)
        self.ledger.append(Holding(self.clock() + UNREAD_LEASE_S))
        self.reading.append([])

    def fill(self, number: int) -> None:
        """The writer, perhaps late, brings its next chunk."""
        segment, holding = self.segments[number], self.ledger[number]
        if holding.filled == len(segment.plan):
            return
        piece = a_piece(segment.plan[holding.filled], seed=segment.generation)
        try:
            segment.fill(piece)
        except TransferError:
            assert not holding.is_readable, "a chunk was refused that somebody may read"
            return
        assert holding.is_readable, "a late writer wrote"
        holding.filled += 1

    def finish(self, number: int) -> None:
        """The writer lets go, with or without all chunks."""
        segment, holding = self.segments[number], self.ledger[number]
        holding.has_writer = False
        if holding.filled == len(segment.plan):
            segment.complete(a_report())
        else:
            holding.is_readable = False
            segment.fail("internal_error", "boom")

    def begin(self, number: int) -> None:
        """A connection asks, and holds the bytes while it sends from them."""
        if not self.find(number):
            return
        segment = self.segments[number]
        self.store.arrive(segment)
        reading = segment.reading()
        reading.__enter__()
        self.reading[number].append(reading)
        self.ledger[number].readers += 1

    def end(self, number: int) -> None:
        """A connection has ended."""
        holding = self.ledger[number]
        self.reading[number].pop().__exit__(None, None, None)
        self.store.leave(self.segments[number])
        holding.readers -= 1
        if not holding.readers:
            holding.lease_ends_s = min(holding.lease_ends_s, self.clock() + UNREAD_LEASE_S)

    def release(self, number: int) -> None:
        """A reader needs it no more."""
        if self.find(number):
            self.ledger[number].is_readable = False
            self.store.release(self.segments[number])

    def renew(self, number: int) -> None:
        """A reader waits."""
        if self.find(number):
            self.store.renew(self.segments[number])

    def abort(self, number: int) -> None:
        """The owner stops it."""
        self.ledger[number].is_readable = False
        self.store.abort(self.segments[number], "stopped")

    def sweep(self) -> None:
        """The owner looks at its leases."""
        self.store.sweep()
        for holding in self.ledger:
            if holding.lease_ends_s <= self.clock():
                holding.is_readable = False

    def find(self, number: int) -> bool:
        """The one door for readers; a location of any age knocks."""
        segment, holding = self.segments[number], self.ledger[number]
        is_over = holding.lease_ends_s <= self.clock()
        if is_over:
            holding.is_readable = False
        request = ReportRequest(
            incarnation="i1",
            segment_id=segment.segment_id,
            generation=segment.generation,
            fingerprint=MANIFEST.fingerprint,
            scope=MANIFEST.scope,
        )
        try:
            found = self.store.find(request)
        except TransferError:
            assert not holding.is_readable, "a reader was refused within its lease"
            return False
        assert holding.is_readable, "a reader was let in that is too late"
        assert found is segment, "a location led to another generation"
        holding.lease_ends_s = max(holding.lease_ends_s, self.clock() + LEASE_S)
        return True

    # --- What must be true --------------------------------------------------------------------

    def check(self) -> None:
        """Bytes are accounted exactly while somebody holds them, and are those of their use."""
        self.store.check_integrity()
        held = [one for one in self.ledger if one.is_held]
        assert len(held) <= 1, "two uses of one memory at a time"
        assert self.store.held_bytes == sum(
            segment.total_bytes
            for segment, holding in zip(self.segments, self.ledger, strict=True)
            if holding.is_held
        )
        gone = [n for n, one in enumerate(self.ledger, start=1) if not one.is_readable]
        assert sorted(self.dropped) == gone, "a drop was told twice, or not at all"
        for segment, holding in zip(self.segments, self.ledger, strict=True):
            assert segment.is_held == holding.is_held
            assert segment.filled_chunks == (holding.filled if holding.is_held else 0)
            for spec, chunk in zip(segment.plan, segment._chunks, strict=False):
                hasher = chunk_hasher(segment.segment_id, segment.generation, spec.index)
                hasher.update(chunk.data)
                assert hasher.digest() == chunk.digest
                assert chunk.data == a_piece(spec, seed=segment.generation).data

    def key(self) -> object:
        """What the future can depend on: in the ledger, and in the store, which may be wrong."""
        now_s = self.clock()
        return tuple(
            (
                repr(replace(holding, lease_ends_s=max(0.0, holding.lease_ends_s - now_s))),
                max(0.0, segment.lease_ends_s - now_s),
                segment.state,
                segment.connections,
            )
            for segment, holding in zip(self.segments, self.ledger, strict=True)
        )


def replayed(path: tuple[str, ...]) -> World:
    """A world in which these things have happened."""
    world = World()
    for name in path:
        dict(world.actions())[name]()
    return world


def test_memory_is_used_again_only_when_writer_and_readers_have_let_go() -> None:
    """All lives of seven actions: each use has its own generation, and its bytes are its own."""
    seen: set[object] = set()
    reused = late_writers = late_readers = taken = 0
    level: list[tuple[str, ...]] = [()]
    for _ in range(DEPTH):
        following: list[tuple[str, ...]] = []
        for path in level:
            for name, _ in tuple(replayed(path).actions()):
                world = replayed((*path, name))
                taken += 1
                world.check()
                if (key := world.key()) in seen:
                    continue
                seen.add(key)
                following.append((*path, name))
                first = world.ledger[0] if world.ledger else None
                if first is not None and not first.is_readable:
                    late_writers += first.has_writer
                    late_readers += first.readers > 0
                reused += len(world.segments) > 1
        level = following
    print(f"{len(seen)} states, {taken} steps, {reused} with a second use")
    assert len(seen) > 500
    assert min(reused, late_writers, late_readers) > 20, "the dangerous states were not reached"
