"""The owner's segments: ids, generations, leases and the account of bytes."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Final

from controlplane.config import KvConfig
from controlplane.errors import SegmentStale, WorkerRefused
from controlplane.wire import KvManifest
from workers.kv.layout import chunk_plan, manifest_bytes
from workers.kv.requests import SegmentRequest
from workers.kv.segment import DropCause, Segment
from workers.kv.timing import Clock

#: Segments in the index, failed ones included: they keep no bytes, but a few KiB until their
#: lease is over, so that a reader learns why.
SEGMENTS_MAX: Final = 4096


@dataclass(slots=True)
class SegmentCounters:
    """Totals since the start."""

    opened_total: int = 0
    #: Announced size would not fit `segment_bytes_max`.
    refused_total: int = 0
    released_total: int = 0
    #: Leases that ended without a release.
    expired_total: int = 0
    failed_total: int = 0
    #: Requests for a segment, generation, incarnation, fingerprint or scope that is not here.
    stale_refused_total: int = 0


class SegmentStore:
    """
    All segments of one worker process.

    The owner's monotonic clock alone decides about leases. Hooks are called on the event loop's
    thread and must not block: `on_drop` once for each segment when it can no longer be read
    (withdraw its location, stop its prefill), `on_renew` for each renewal.
    """

    def __init__(
        self,
        *,
        incarnation: str,
        config: KvConfig,
        on_drop: Callable[[Segment, DropCause], None] | None = None,
        on_renew: Callable[[Segment], None] | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.incarnation = incarnation
        self.counters = SegmentCounters()
        self._config = config
        self._on_drop = on_drop
        self._on_renew = on_renew
        self._clock = clock
        self._generations = count(1)
        #: Everything a request can name, by segment id.
        self._known: dict[str, Segment] = {}
        #: Everything whose bytes are accounted, by generation; some of it no request can name.
        self._held: dict[int, Segment] = {}
        #: Readable until now; `on_drop` is due for each that leaves.
        self._readable: set[int] = set()
        self._held_bytes = 0

    def __repr__(self) -> str:
        return f"<SegmentStore {len(self._known)} known, {self._held_bytes} bytes held>"

    @property
    def _unread_lease_s(self) -> float:
        return min(self._config.unread_lease_s, self._config.lease_s)

    @property
    def held_bytes(self) -> int:
        """Announced bytes of all segments that are not given back."""
        return self._held_bytes

    @property
    def readable_segments(self) -> int:
        """Segments that a reader could fetch now."""
        return len(self._readable)

    def open(self, manifest: KvManifest, *, is_copy: bool = False) -> Segment:
        """
        Begin a segment and its first lease; its bytes are accounted from now.

        Args:
            manifest: What it will be.
            is_copy: Of a cached prefix; see `Segment.is_copy`.

        Raises:
            WorkerRefused: The announced bytes would not fit `segment_bytes_max`.
            ValueError: The manifest cannot be cut into chunks.
        """
        plan = chunk_plan(manifest)
        total_bytes, bytes_max = manifest_bytes(manifest), self._config.segment_bytes_max
        if self._held_bytes + total_bytes > bytes_max or len(self._known) >= SEGMENTS_MAX:
            self.counters.refused_total += 1
            raise WorkerRefused(
                f"a segment of {total_bytes} bytes does not fit: {self._held_bytes} of {bytes_max} "
                f"bytes and {len(self._known)} of {SEGMENTS_MAX} segments are taken"
            )
        segment = Segment(
            segment_id=secrets.token_hex(16),
            generation=next(self._generations),
            manifest=manifest,
            plan=plan,
            on_change=self._settle,
            is_copy=is_copy,
        )
        segment.lease_ends_s = self._clock() + self._unread_lease_s
        self._known[segment.segment_id] = segment
        self._held[segment.generation] = segment
        self._readable.add(segment.generation)
        self._held_bytes += total_bytes
        self.counters.opened_total += 1
        return segment

    def find(self, request: SegmentRequest) -> Segment:
        """
        The segment a request names, its lease begun anew: the one door for every reader.

        Raises:
            SegmentStale: Another incarnation, generation, fingerprint or scope, a lease that is
                over, or a segment that was never here.
            SegmentFailed: Its prefill failed or was aborted.
        """
        try:
            segment = self._match(request)
            segment.check_readable()
        except SegmentStale:
            self.counters.stale_refused_total += 1
            raise
        self._extend(segment)
        return segment

    def arrive(self, segment: Segment) -> None:
        """A connection begins to fetch; `leave` has to follow once it has ended."""
        segment.connections += 1

    def leave(self, segment: Segment) -> None:
        """
        A connection that fetched has ended.

        With the last of them the reader has gone: a lease that it would have needed for a pause is
        cut to the time in which it, or another one, would come again.
        """
        segment.connections -= 1
        if segment.connections == 0 and segment.is_readable:
            segment.lease_ends_s = min(segment.lease_ends_s, self._clock() + self._unread_lease_s)

    def renew(self, segment: Segment) -> None:
        """Begin the lease of a readable segment anew and tell the hook."""
        if segment.is_readable:
            self._extend(segment)
            if self._on_renew is not None:
                self._on_renew(segment)

    def release(self, segment: Segment) -> None:
        """Nobody needs it any more. Idempotent."""
        if segment.is_readable:
            self.counters.released_total += 1
            segment.drop("released")
        self._known.pop(segment.segment_id, None)

    def abort(self, segment: Segment, reason: str) -> None:
        """Stop a segment for a reason of the owner: readers get `SegmentFailed`. Idempotent."""
        segment.abort(reason)

    def abort_all(self, reason: str) -> None:
        """Stop every segment that can be read, as `abort`."""
        for segment in tuple(self._known.values()):
            segment.abort(reason)

    def sweep(self) -> int:
        """
        Drop every segment whose lease is over.

        Looks at all of them: renewals make the order of ends unlike the order of begins.

        Returns:
            How many were dropped.
        """
        now_s = self._clock()
        expired = [one for one in self._known.values() if one.lease_ends_s <= now_s]
        for segment in expired:
            self._expire(segment)
        return len(expired)

    def check_integrity(self) -> None:
        """
        Assert conservation of bytes: the account is the sum of what is held.

        Raises:
            AssertionError: It is not, or a segment is in a list it does not belong to.
        """
        held = {one.generation for one in self._held.values() if one.is_held}
        assert held == set(self._held), f"{self} accounts for segments nobody holds"
        total_bytes = sum(one.total_bytes for one in self._held.values())
        assert total_bytes == self._held_bytes, f"{self} but {total_bytes} bytes by segment"
        assert 0 <= self._held_bytes <= self._config.segment_bytes_max, self
        readable = {one.generation for one in self._known.values() if one.is_readable}
        assert readable == self._readable, f"{self} but readable are {readable}"
        for segment in (*self._held.values(), *self._known.values()):
            segment.check_integrity()

    def _match(self, request: SegmentRequest) -> Segment:
        if request.incarnation != self.incarnation:
            raise SegmentStale("the owner is another process life than the location names")
        segment = self._known.get(request.segment_id)
        if segment is None:
            raise SegmentStale("the owner has no such segment: released, or its lease ended")
        if segment.lease_ends_s <= self._clock():
            self._expire(segment)
            raise SegmentStale("the lease of the segment ended")
        if request.generation != segment.generation:
            raise SegmentStale(
                f"the segment is of generation {segment.generation}, not {request.generation}"
            )
        manifest = segment.manifest
        if (request.fingerprint, request.scope) != (manifest.fingerprint, manifest.scope):
            raise SegmentStale("the segment was made for another fingerprint or scope")
        return segment

    def _extend(self, segment: Segment) -> None:
        # A request never makes a lease shorter, whatever the clock function does.
        segment.lease_ends_s = max(
            segment.lease_ends_s,
            self._clock() + self._config.lease_s,
        )

    def _expire(self, segment: Segment) -> None:
        del self._known[segment.segment_id]
        if segment.is_readable:
            self.counters.expired_total += 1
            segment.drop("expired")

    def _settle(self, segment: Segment) -> None:
        """Called by a segment after each change: keeps the account and tells the hook once."""
        if not segment.is_held and segment.generation in self._held:
            del self._held[segment.generation]
            self._held_bytes -= segment.total_bytes
        cause = segment.drop_cause
        if cause is not None and segment.generation in self._readable:
            self._readable.discard(segment.generation)
            if cause == "failed":
                self.counters.failed_total += 1
            if self._on_drop is not None:
                self._on_drop(segment, cause)
