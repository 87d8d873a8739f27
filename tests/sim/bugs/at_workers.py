"""Bugs of workers: fences, leases, pages, answers."""

from __future__ import annotations

import asyncio
from typing import Any

from sim.bugs.plant import Patch, bug

import workers.agent
import workers.decode_service
import workers.kv.owner
import workers.prefill_service
from controlplane.domain.prefix import block_hashes
from workers.answers import Answer
from workers.decode_service import DecodeService
from workers.kv.segment import Segment
from workers.kv.segments import SegmentStore
from workers.prefill_service import PrefillService


@bug("the owner does not compare the generation of a request", "stale_reader")
def skip_generation_check(patch: Patch) -> None:
    def change(real: Any) -> Any:
        def match(self: SegmentStore, request: Any) -> Any:
            known = self._known.get(request.segment_id)
            generation = known.generation if known is not None else request.generation
            return real(self, request.model_copy(update={"generation": generation}))

        return match

    patch.wrap(SegmentStore, "_match", change)


@bug("the owner does not compare the incarnation of a request", "stale_reader", "kill")
def skip_incarnation_check(patch: Patch) -> None:
    def change(real: Any) -> Any:
        def match(self: SegmentStore, request: Any) -> Any:
            known = self._known.get(request.segment_id)
            generation = known.generation if known is not None else request.generation
            mine = {"incarnation": self.incarnation, "generation": generation}
            is_mine = request.incarnation == self.incarnation
            return real(self, request if is_mine else request.model_copy(update=mine))

        return match

    patch.wrap(SegmentStore, "_match", change)


@bug("the receiver does not compare checksums", "corrupt")
def skip_checksum(patch: Patch) -> None:
    class Anything(bytes):
        def __ne__(self, other: object) -> bool:
            return False

        __hash__ = bytes.__hash__

    class Hasher:
        def update(self, data: Any) -> None:
            del data

        def digest(self) -> bytes:
            return Anything()

    patch.set(workers.kv.owner, "chunk_hasher", lambda *_: Hasher())


@bug("bytes are given back while the writer or a reader still has them")
def reuse_before_done(patch: Patch) -> None:
    patch.set(Segment, "is_held", property(lambda self: self.is_readable))


@bug("a lease that is over may still be read", "stale_reader")
def lease_never_checked(patch: Patch) -> None:
    patch.set(SegmentStore, "sweep", lambda self: 0)

    def change(real: Any) -> Any:
        def match(self: SegmentStore, request: Any) -> Any:
            known = self._known.get(request.segment_id)
            if known is not None:
                self._extend(known)
            return real(self, request)

        return match

    patch.wrap(SegmentStore, "_match", change)


@bug("leases are never swept", "cut")
def no_sweep(patch: Patch) -> None:
    patch.set(SegmentStore, "sweep", lambda self: 0)


@bug("leases follow the wall clock, which is set while the worker runs")
def lease_by_wall_clock(patch: Patch) -> None:
    def change(real: Any) -> Any:
        def init(self: SegmentStore, **options: Any) -> None:
            real(self, **options)
            loop: Any = asyncio.get_running_loop()
            self._clock = lambda: loop.time() + (3600.0 if loop.now_s > 6.0 else 0.0)

        return init

    patch.wrap(SegmentStore, "__init__", change)


@bug("an abort of what has been released already frees what is in the slot now", "client_leaves")
def release_twice(patch: Patch) -> None:
    def release(self: SegmentStore, segment: Segment) -> None:
        there = self._known.pop(segment.segment_id, None)
        if there is not None and there.is_readable:
            there.drop("released")

    patch.set(SegmentStore, "release", release)

    def change_dropped(real: Any) -> Any:
        def dropped(self: PrefillService, segment: Segment) -> None:
            before = dict(self._segment_of)
            real(self, segment)
            gone = {job_id: one for job_id, one in before.items() if one is segment}
            self.__dict__.setdefault("_gone", {}).update(gone)

        return dropped

    def change_abort(real: Any) -> Any:
        def abort(self: PrefillService, job_id: str) -> Any:
            gone = self.__dict__.setdefault("_gone", {})
            if job_id in self._segment_of:
                gone[job_id] = self._segment_of[job_id]
            elif job_id in gone:
                self._segments.release(gone[job_id])
            return real(self, job_id)

        return abort

    patch.wrap(PrefillService, "dropped", change_dropped)
    patch.wrap(PrefillService, "abort", change_abort)


@bug("aborts of prefill are ignored", "client_leaves")
def no_abort_of_prefill(patch: Patch) -> None:
    patch.set(PrefillService, "abort", lambda self, job_id: False)


@bug("an abort that comes before its job is forgotten", "client_leaves")
def abort_overtakes(patch: Patch) -> None:
    def change(real: Any) -> Any:
        def abort(self: PrefillService, job_id: str) -> Any:
            found = real(self, job_id)
            self._aborted.clear()
            return found

        return abort

    patch.wrap(PrefillService, "abort", change)


@bug("a decode job goes on when its router has gone", "client_leaves")
def swallow_cancellation(patch: Patch) -> None:
    def change(real: Any) -> Any:
        async def run(self: DecodeService, job: Any, tokens: Any, send: Any) -> None:
            async def deaf(*frames: Any) -> None:
                try:
                    await send(*frames)
                except ConnectionError:
                    return

            inner = asyncio.ensure_future(real(self, job, tokens, deaf))
            while not inner.done():
                try:
                    await asyncio.shield(inner)
                except asyncio.CancelledError:
                    continue

        return run

    patch.wrap(DecodeService, "run", change)


@bug("a resumed answer repeats its last token", "kill")
def resume_repeats(patch: Patch) -> None:
    def change(real: Any) -> Any:
        def resume(self: Answer, tokens: Any) -> Any:
            found = real(self, tokens)
            if tokens and found is None:
                self._repeated = tokens[-1]  # type: ignore[attr-defined]
            return found

        return resume

    patch.wrap(Answer, "resume", change)

    def change_push(real: Any) -> Any:
        async def push(self: Any, token: int) -> Any:
            again = self.__dict__.pop("_repeated", None)
            if again is not None:
                await real(self, again)
            return await real(self, token)

        return push

    patch.wrap(Answer, "push", change_push)


@bug("a resumed answer drops its first token", "kill")
def resume_drops(patch: Patch) -> None:
    def change(real: Any) -> Any:
        def resume(self: Any, tokens: Any) -> Any:
            self._drops = bool(tokens)
            return real(self, tokens)

        return resume

    def change_push(real: Any) -> Any:
        async def push(self: Any, token: int) -> Any:
            if self.__dict__.pop("_drops", False):
                return False
            return await real(self, token)

        return push

    patch.wrap(Answer, "resume", change)
    patch.wrap(Answer, "push", change_push)


@bug("a worker that leaves takes new prefill jobs", "drain", "cut_one_way")
def draining_takes_jobs(patch: Patch) -> None:
    def change(real: Any) -> Any:
        def check(self: PrefillService, job: Any, tokens: Any) -> None:
            was, self.is_draining = self.is_draining, False
            try:
                real(self, job, tokens)
            finally:
                self.is_draining = was

        return check

    patch.wrap(PrefillService, "_check", change)


@bug("hashes of blocks do not name the scope")
def cross_scope(patch: Patch) -> None:
    def hashes(tokens: Any, *, block_tokens: int, scope: str) -> Any:
        del scope
        return block_hashes(tokens, block_tokens=block_tokens, scope="everybody")

    patch.set(workers.prefill_service, "block_hashes", hashes)
    patch.set(workers.decode_service, "block_hashes", hashes)


@bug("what a lost heartbeat said of the inventory is never said again", "store_error")
def inventory_lost(patch: Patch) -> None:
    def change(real: Any) -> Any:
        async def beat(self: Any) -> Any:
            was_full = self._wants_full
            is_taken = await real(self)
            self._wants_full = was_full and not is_taken and self._sequence == 1
            return is_taken

        return beat

    patch.wrap(workers.agent.Agent, "_beat", change)


@bug("text that only the end makes certain is not sent")
def end_without_held_text(patch: Patch) -> None:
    async def end(self: Answer, finish_reason: Any, *, cached_tokens: int) -> bytes:
        return self._writer.end(
            finish_reason, output_tokens=self.output_tokens, cached_tokens=cached_tokens
        )

    patch.set(Answer, "end", end)
