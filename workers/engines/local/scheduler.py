"""What the compute thread does next: prefill blocks and decode steps in turn."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from workers.engines.local.compute import ComputeThread
from workers.engines.local.meter import Meter
from workers.engines.local.model import Batch
from workers.engines.local.prefill import LocalPrefill
from workers.engines.local.sequence import ImportedSequence
from workers.engines.local.share import PrefillShare

ResultT = TypeVar("ResultT")


class Scheduler:
    """
    Runs units of work one after the other on one thread; decides between them on the event loop.

    All bookkeeping happens on the loop's thread, so nothing is locked: the compute thread sees
    only arrays that belong to it and bytes that nobody changes. Prefills are served first come,
    first served, one at a time; between two of their blocks there is one step for all sequences
    that decode, or as many as `share` wants. The queues are bounded by the requests a worker accepts.
    """

    def __init__(self, batch: Batch, meter: Meter, *, slots: int) -> None:
        self._batch = batch
        self._meter = meter
        self._slots = slots
        #: What prefill may take of the time.
        self.share = PrefillShare()
        self._prefills: deque[LocalPrefill] = deque()
        self._waiting: deque[ImportedSequence] = deque()
        self._running: list[ImportedSequence] = []
        self._executor = ComputeThread("prfaas-engine")
        self._task: asyncio.Task[None] | None = None
        self._is_closing = False

    def __repr__(self) -> str:
        return (
            f"<Scheduler {len(self._prefills)} prefills, {len(self._waiting)} waiting, "
            f"{len(self._running)} of {self._slots} slots>"
        )

    # --- Queues -------------------------------------------------------------------------------

    @property
    def prefills(self) -> tuple[LocalPrefill, ...]:
        """Open prefills, the one that runs first."""
        return tuple(self._prefills)

    @property
    def waiting(self) -> tuple[ImportedSequence, ...]:
        """Sequences without a slot, next one first."""
        return tuple(self._waiting)

    @property
    def running(self) -> tuple[ImportedSequence, ...]:
        """Sequences with a slot."""
        return tuple(self._running)

    @property
    def is_closing(self) -> bool:
        """It takes no more work."""
        return self._is_closing

    def add_prefill(self, job: LocalPrefill) -> None:
        """Queue a prefill."""
        self._prefills.append(job)
        self._wake()

    def add_sequence(self, sequence: ImportedSequence) -> None:
        """Queue a sequence for a slot."""
        self._waiting.append(sequence)
        self._wake()

    def drop_prefill(self, job: LocalPrefill) -> None:
        """Forget a prefill that was closed."""
        self._prefills.remove(job)

    def drop_sequence(self, sequence: ImportedSequence) -> None:
        """Forget a sequence that was closed; its slot is free with the next step."""
        for queue in (self._waiting, self._running):
            if sequence in queue:
                queue.remove(sequence)
                # A batch that nobody steps any more would keep the arrays of its last rows.
                self._wake()

    async def close(self) -> None:
        """Finish the unit that runs and stop the thread."""
        self._is_closing = True
        if self._task is not None:
            await asyncio.wait([self._task])  # if it failed, its readers were told
        self._executor.shutdown(wait=False)

    def check_integrity(self) -> None:
        """
        Assert that nothing closed is queued, nothing is queued twice, and slots are enough.

        Raises:
            AssertionError: Not so.
        """
        decoding = (*self._waiting, *self._running)
        assert not any(job.is_closed for job in self._prefills), "a closed prefill is queued"
        assert not any(sequence.is_closed for sequence in decoding), "a closed sequence is queued"
        assert len(set(decoding)) == len(decoding), "a sequence is queued twice"
        assert len(self._running) <= self._slots, f"{self!r} has more sequences than slots"
        if self._task is not None and self._task.done() and not self._is_closing:
            assert not self._prefills, "nobody works on what is queued"
            assert not decoding, "nobody works on what is queued"
            assert self._batch.is_empty, "the batch keeps sequences that have ended"

    # --- Work ---------------------------------------------------------------------------------

    def _wake(self) -> None:
        if not self._is_closing and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._work())
            self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Nobody waits for ever, even if the bookkeeping itself has a bug."""
        cause = None if task.cancelled() else task.exception()
        if cause is not None:
            error = RuntimeError("the engine's scheduler has failed")
            error.__cause__ = cause
            prefills, decodes = self.prefills, self.waiting + self.running
            for prefill in prefills:
                prefill.fail(error)
            for sequence in decodes:
                sequence.fail(error)

    async def _work(self) -> None:
        """Units of work until there is none."""
        has_worked = True
        while has_worked and not self._is_closing:
            has_prefilled = await self._prefill_turn()
            has_decoded = await self._decode_turn()
            has_worked = has_prefilled or has_decoded

    async def _prefill_turn(self) -> bool:
        """One block of the oldest prefill, if it is its turn."""
        has_decode = bool(self._waiting or self._running)
        if not has_decode:
            self.share.idle()
        if not self._prefills or not self.share.has_turn:
            return False
        job = self._prefills[0]
        if not job.is_running:
            job.begin()
        if not job.is_closed:
            step = await self._compute(job.next_block(), job.fail)
            if step is not None:
                self.share.prefilled(step.total_s, has_decode=has_decode)
                job.deliver(step)
        return True

    async def _decode_turn(self) -> bool:
        """One token of every sequence that has a slot."""
        if self._is_closing:
            return False
        while self._waiting and len(self._running) < self._slots:
            self._running.append(self._waiting.popleft())
        running = self.running
        if not running and self._batch.is_empty:
            return False
        rows = [sequence.row for sequence in running]

        def fail(error: Exception) -> None:
            for sequence in running:
                sequence.fail(error)

        step = await self._compute(lambda: self._batch.step(rows), fail)
        if step is not None and rows:
            self.share.decoded(step.step_s)
            self._meter.add_step(step_s=step.step_s, first_tokens=step.first_tokens)
            for sequence, token in zip(running, step.tokens, strict=True):
                if sequence.deliver(token):
                    self._meter.add_output()
        return True

    async def _compute(
        self, unit: Callable[[], ResultT], fail: Callable[[Exception], None]
    ) -> ResultT | None:
        """
        Run a unit on the compute thread.

        A unit that raises is a bug or a lack of memory. Only those it was computed for hear of
        it: the next ones are served, so that one bad request cannot stop the engine.
        """
        future = asyncio.get_running_loop().run_in_executor(self._executor, unit)
        await asyncio.wait([future])
        self._meter.add_unit()
        error = future.exception()
        if error is None:
            return future.result()
        if not isinstance(error, Exception):
            raise error
        fail(error)
        return None
