"""One segment at its owner: chunks that a prefill fills and connections read, with two owners."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from controlplane.errors import SegmentFailed, SegmentStale
from controlplane.wire import KvManifest, PrefillReport
from workers.engine import KvPiece
from workers.kv.frames import chunk_hasher
from workers.kv.layout import ChunkSpec, manifest_bytes

#: Why a segment can no longer be read.
DropCause: TypeAlias = Literal["failed", "released", "expired"]
#: filling -> complete, and from either of them to one of the three ends.
SegmentState: TypeAlias = Literal["filling", "complete"] | DropCause

_STALE_REASONS: Final[dict[str, str]] = {
    "released": "the segment was released",
    "expired": "the lease of the segment ended",
}


@dataclass(frozen=True, slots=True)
class FilledChunk:
    """A chunk that is there."""

    data: bytes
    #: From `chunk_hasher`, computed once when the chunk was filled.
    digest: bytes


class Segment:
    """
    The bytes of one prefill, filled by a writer and read by connections.

    Two owners hold the bytes: the writer (the prefill, until `complete` or `fail`) and the readers
    (`reading`). They go back to the store's account when nobody may start to read them any more
    *and* both have let go, so a late writer or a slow sender never meets memory of another
    request. `SegmentStore` makes segments and decides about leases; all methods belong to the
    event loop's thread.
    """

    def __init__(
        self,
        *,
        segment_id: str,
        generation: int,
        manifest: KvManifest,
        plan: tuple[ChunkSpec, ...],
        on_change: Callable[[Segment], None],
        is_copy: bool = False,
    ) -> None:
        #: Random; whoever knows it may read.
        self.segment_id = segment_id
        #: 1, 2, 3 ... within one process life; never used twice.
        self.generation = generation
        self.manifest = manifest
        self.plan = plan
        #: A cached prefix for another worker: its bytes may wait for those that a request waits for.
        self.is_copy = is_copy
        #: Bytes announced, all of them accounted from the start.
        self.total_bytes = manifest_bytes(manifest)
        #: On the owner's monotonic clock; kept by the store.
        self.lease_ends_s = 0.0
        #: Connections that fetch or have fetched from it; kept by the store.
        self.connections = 0
        self._on_change = on_change
        self._drop_cause: DropCause | None = None
        self._reason = ""
        self._chunks: list[FilledChunk] = []
        self._report: PrefillReport | None = None
        self._is_written = False
        self._readers = 0
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        return (
            f"<Segment generation {self.generation}, {self.state}: "
            f"{len(self._chunks)} of {len(self.plan)} chunks, {self._readers} readers>"
        )

    @property
    def state(self) -> SegmentState:
        """Where it stands; only `filling` and `complete` can be read."""
        return self._drop_cause or ("filling" if self._report is None else "complete")

    @property
    def is_readable(self) -> bool:
        """Whether a reader may start or go on."""
        return self._drop_cause is None

    @property
    def drop_cause(self) -> DropCause | None:
        """Why it can no longer be read, if so."""
        return self._drop_cause

    @property
    def is_held(self) -> bool:
        """Whether its bytes are accounted: somebody may read them, writes or still sends them."""
        return self.is_readable or not self._is_written or self._readers > 0

    @property
    def filled_chunks(self) -> int:
        """Chunks in memory: the first so many of the plan."""
        return len(self._chunks)

    # --- The writer's side -----------------------------------------------------------------

    def fill(self, piece: KvPiece) -> None:
        """
        Take the next piece of the prefill and wake its readers. Costs 0.2 ms per MB for the sum.

        Raises:
            ValueError: Not the next chunk of the plan, or of a wrong size.
            SegmentStale: Nobody wants it any more: stop the prefill.
            SegmentFailed: It was aborted: stop the prefill.
        """
        self.check_readable()
        index = len(self._chunks)
        if index == len(self.plan):
            raise ValueError(f"the segment has its {len(self.plan)} chunks already")
        spec = self.plan[index]
        found = (piece.group, piece.token_start, piece.token_end, len(piece.data))
        expected = (spec.group, spec.token_start, spec.token_end, spec.size_bytes)
        if found != expected:
            raise ValueError(f"expected (group, start, end, bytes) {expected}, got {found}")
        hasher = chunk_hasher(self.segment_id, self.generation, index)
        hasher.update(piece.data)
        self._chunks.append(FilledChunk(piece.data, hasher.digest()))
        self._wake()

    def complete(self, report: PrefillReport) -> None:
        """
        The writer lets go: all chunks are filled. Does nothing more once the segment is gone.

        Raises:
            ValueError: Chunks are missing.
        """
        if self.state == "filling":
            if len(self._chunks) != len(self.plan):
                raise ValueError(f"{len(self._chunks)} of {len(self.plan)} chunks are filled")
            self._report = report
        self._is_written = True
        self._wake()

    def fail(self, code: str, message: str) -> None:
        """
        The writer lets go without having finished. Idempotent.

        Args:
            code: Of `controlplane.errors`; readers get it inside `SegmentFailed`.
            message: Without prompt or address.
        """
        self._is_written = True
        if self.state == "filling":
            self.abort(f"the prefill failed with {code}: {message}")
        else:
            self._wake()

    def abort(self, reason: str) -> None:
        """Stop reading and writing; readers get `SegmentFailed`. Both owners still have to let go."""
        if self.is_readable:
            self._drop_cause, self._reason = "failed", reason
        self._wake()

    def drop(self, cause: Literal["released", "expired"]) -> None:
        """Stop reading and writing; readers get `SegmentStale`. The store calls this."""
        if self.is_readable:
            self._drop_cause, self._reason = cause, _STALE_REASONS[cause]
        self._wake()

    # --- The readers' side -----------------------------------------------------------------

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Hold the bytes while a connection sends from them."""
        self._readers += 1
        try:
            yield
        finally:
            self._readers -= 1
            self._wake()

    def has_chunk(self, index: int) -> bool:
        """Whether a chunk is filled."""
        return index < len(self._chunks)

    async def chunk(self, index: int) -> FilledChunk:
        """
        A chunk of the plan, once it is filled. Waits as long as the lease is kept.

        Raises:
            SegmentFailed: The prefill failed or was aborted.
            SegmentStale: The lease ended or the segment was released.
        """
        self.check_readable()
        while index >= len(self._chunks):
            await self._changed.wait()
            self.check_readable()
        return self._chunks[index]

    async def report(self) -> PrefillReport:
        """
        What the prefill was, once it is complete. Waits as long as the lease is kept.

        Raises:
            SegmentFailed: The prefill failed or was aborted.
            SegmentStale: The lease ended or the segment was released.
        """
        self.check_readable()
        while self._report is None:
            await self._changed.wait()
            self.check_readable()
        return self._report

    def check_readable(self) -> None:
        """
        Fail unless the segment may be read.

        Raises:
            SegmentFailed: The prefill failed or was aborted.
            SegmentStale: The lease ended or the segment was released.
        """
        if self._drop_cause == "failed":
            raise SegmentFailed(self._reason)
        if self._drop_cause is not None:
            raise SegmentStale(self._reason)

    def check_integrity(self) -> None:
        """
        Assert that state, chunks and owners fit together.

        Raises:
            AssertionError: They do not.
        """
        assert self._readers >= 0, self
        assert len(self._chunks) <= len(self.plan), self
        assert self.is_held or not self._chunks, f"{self} keeps bytes that nobody accounts for"
        if self.state == "complete":
            assert self._is_written, self
            assert sum(len(chunk.data) for chunk in self._chunks) == self.total_bytes, self

    def _wake(self) -> None:
        # A fresh event for the next change: whoever waits holds the old one and is woken once.
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        if not self.is_held:
            self._chunks.clear()
        self._on_change(self)
