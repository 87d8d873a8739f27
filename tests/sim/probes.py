"""Where the judge listens inside the product, for the time of one world."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import workers.kv.segments as segments_module
from controlplane.replay.loop import current_host
from controlplane.router.dispatcher import Dispatcher
from controlplane.router.recorder import Recorder
from controlplane.store.memory_store import MemoryStore
from workers.kv.segments import SegmentStore

if TYPE_CHECKING:
    from sim.invariants import Judge
    from sim.world import World

#: A lease may be over so much earlier by rounding.
_ROUNDING_S = 1e-6


@contextmanager
def swapped(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Another value for an attribute, for a while."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


class _SlotIds:
    """
    Segment ids that come again, as slots of memory do.

    Real ones are random, which hides what would happen without incarnation and generation: those
    are the fence, and here nothing else is.
    """

    def __init__(self) -> None:
        self.stores: dict[object, SegmentStore] = {}

    def token_hex(self, _: int) -> str:
        known = self.stores[current_host()]._known
        number = 0
        while f"slot-{number}" in known:
            number += 1
        return f"slot-{number}"


@contextmanager
def probes(world: World) -> Iterator[None]:
    """Listen."""
    with ExitStack() as stack:
        ids = _SlotIds()
        stack.enter_context(swapped(segments_module, "secrets", ids))
        for owner, name, wrap in (
            (SegmentStore, "open", _generations(world.judge, ids)),
            (SegmentStore, "find", _fences(world.judge)),
            (SegmentStore, "release", _releases(world.judge)),
            (SegmentStore, "_settle", _owners(world.judge)),
            (SegmentStore, "_expire", _lease_ends(world)),
            (Recorder, "add", _records(world)),
            (Dispatcher, "_serve", _requests(world.judge)),
            (MemoryStore, "reserve", _reservations(world.judge)),
            (MemoryStore, "heartbeat", _beats(world.judge)),
            (MemoryStore, "deregister", _goodbyes(world.judge)),
        ):
            stack.enter_context(swapped(owner, name, wrap(getattr(owner, name))))
        yield


_Wrap = Callable[[Any], Any]


def _generations(judge: Judge, ids: _SlotIds) -> _Wrap:
    def wrap(real: Any) -> Any:
        def probe(self: SegmentStore, manifest: Any) -> Any:
            host = current_host()
            ids.stores[host] = self
            segment = real(self, manifest)
            life = f"{host.name if host else ''} {self.incarnation}"
            if segment.generation <= judge.generations[life]:
                judge.violate("I8", f"{life} handed out generation {segment.generation} again")
            judge.generations[life] = max(judge.generations[life], segment.generation)
            return segment

        return probe

    return wrap


def _fences(judge: Judge) -> _Wrap:
    def wrap(real: Any) -> Any:
        def probe(self: SegmentStore, request: Any) -> Any:
            known = self._known.get(request.segment_id)
            ends_s = known.lease_ends_s if known is not None else 0.0
            segment = real(self, request)
            found = (self.incarnation, segment.generation, segment.manifest.scope)
            wanted = (request.incarnation, request.generation, request.scope)
            if found != wanted:
                judge.violate("I4", f"an owner let a reader of {wanted} read {found}")
            if ends_s <= self._clock():
                judge.violate("I4", f"an owner let a reader read {segment!r} after its lease")
            return segment

        return probe

    return wrap


def _releases(judge: Judge) -> _Wrap:
    """Letting one segment go ends no other."""

    def wrap(real: Any) -> Any:
        def probe(self: SegmentStore, segment: Any) -> None:
            before = self._readable - {segment.generation}
            real(self, segment)
            lost = before - self._readable
            if lost:
                judge.violate("I8", f"the release of {segment!r} ended generations {sorted(lost)}")

        return probe

    return wrap


def _owners(judge: Judge) -> _Wrap:
    """Bytes go back to the account when writer and readers have let go, not before."""

    def wrap(real: Any) -> Any:
        def probe(self: SegmentStore, segment: Any) -> None:
            real(self, segment)
            is_used = not segment._is_written or segment._readers > 0
            if is_used and segment.generation not in self._held:
                judge.violate("I6", f"{segment!r} is used, and its bytes are given away")

        return probe

    return wrap


def _lease_ends(world: World) -> _Wrap:
    """No lease ends before its time on the owner's own monotonic clock."""

    def wrap(real: Any) -> Any:
        def probe(self: SegmentStore, segment: Any) -> None:
            if segment.is_readable and world.loop.time() < segment.lease_ends_s - _ROUNDING_S:
                world.judge.violate(
                    "I5",
                    f"a lease ended {segment.lease_ends_s - world.loop.time():.2f} s too early",
                )
            real(self, segment)

        return probe

    return wrap


def _records(world: World) -> _Wrap:
    judge = world.judge

    def wrap(real: Any) -> Any:
        def probe(self: Recorder, record: Any, reservation: Any) -> None:
            judge.recorded[record.router][record.request_id] += 1
            judge.recorded_at[record.request_id] = (record.router, world.loop.now_s)
            judge.records.append(record)
            real(self, record, reservation)

        return probe

    return wrap


def _requests(judge: Judge) -> _Wrap:
    def wrap(real: Any) -> Any:
        async def probe(self: Dispatcher, incoming: Any, *rest: Any) -> Any:
            judge.taken[self.services.router_id].add(incoming.request_id)
            with judge.running(incoming.request_id, incoming.idempotency_key):
                return await real(self, incoming, *rest)

        return probe

    return wrap


def _reservations(judge: Judge) -> _Wrap:
    def wrap(real: Any) -> Any:
        async def probe(self: MemoryStore, reservation: Any) -> Any:
            reply = await real(self, reservation)
            if reply.refused_by is None:
                for worker_id, incarnation in (
                    (reservation.prefill_worker, reservation.prefill_incarnation),
                    (reservation.decode_worker, reservation.decode_incarnation),
                ):
                    known = self._roster.find(worker_id)
                    if known is None or known.beat.incarnation != incarnation:
                        judge.violate("I8", f"a claim at {worker_id} {incarnation}, which is gone")
            return reply

        return probe

    return wrap


def _beats(judge: Judge) -> _Wrap:
    def wrap(real: Any) -> Any:
        async def probe(self: MemoryStore, beat: Any, *, ttl_s: float) -> Any:
            known = self._roster.find(beat.worker_id)
            before = known.beat if known is not None else None
            reply = await real(self, beat, ttl_s=ttl_s)
            after = self._roster.find(beat.worker_id)
            if before is not None and after is not None:
                is_same = before.incarnation == after.beat.incarnation
                if is_same and after.beat.sequence < before.sequence:
                    judge.violate("I8", f"{beat.worker_id} went back to beat {beat.sequence}")
            return reply

        return probe

    return wrap


def _goodbyes(judge: Judge) -> _Wrap:
    def wrap(real: Any) -> Any:
        async def probe(self: MemoryStore, worker_id: str, incarnation: str) -> None:
            before = self._roster.find(worker_id)
            await real(self, worker_id, incarnation)
            is_another = before is not None and before.beat.incarnation != incarnation
            if is_another and self._roster.find(worker_id) is None:
                judge.violate("I8", f"{incarnation} of {worker_id} took a later life away")

        return probe

    return wrap
