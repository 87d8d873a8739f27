"""Prefill jobs of one worker: accepted at once with a location, filled piece by piece."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from contextlib import aclosing
from typing import Final

from controlplane.domain.prefix import BlockHash, block_hashes
from controlplane.domain.tokens import TokenIds
from controlplane.errors import (
    Draining,
    MalformedRequest,
    PrfaasError,
    SegmentFailed,
    TransferError,
    WorkerRefused,
)
from controlplane.observe.logs import get_logger
from controlplane.wire import KvLocation, KvManifest, PrefillJob, PrefillReport
from workers.engine import Engine, JobContext
from workers.identity import Identity
from workers.kv.segment import Segment
from workers.kv.segments import SegmentStore
from workers.locations import LocationPublisher
from workers.metrics import WorkerMetrics
from workers.prefix_copy import Copy, PrefixCopier

_log = get_logger()

#: Aborts that are remembered; a job that comes so much later has a lease that ends it.
_ABORTED_MAX: Final = 1024


class PrefillService:
    """
    Runs prefill jobs on an engine and hands out their KV as leased segments.

    A job ends when its segment is complete, when its router aborts it, when its deadline passes,
    or when nobody holds its lease any more; in each case the engine stops at the next block.
    """

    def __init__(
        self,
        engine: Engine,
        segments: SegmentStore,
        identity: Identity,
        metrics: WorkerMetrics,
        *,
        requests_max: int,
        locate: Callable[[Segment], KvLocation],
        publisher: LocationPublisher,
        copier: PrefixCopier | None = None,
    ) -> None:
        """
        Args:
            engine: What computes.
            segments: Where KV is kept for readers.
            identity: Of this life.
            metrics: Of the process.
            requests_max: Jobs it takes, the running one included.
            locate: Says where a segment is read.
            publisher: Told of segments that come and go.
            copier: Brings prefixes from other workers; None computes them.
        """
        self._engine = engine
        self._segments = segments
        self._identity = identity
        self._metrics = metrics
        self._requests_max = requests_max
        self._locate = locate
        self._publisher = publisher
        self._copier = copier
        #: Jobs that compute, by job id; segments stay readable after their job has ended.
        self._jobs: dict[str, asyncio.Task[None]] = {}
        self._segment_of: dict[str, Segment] = {}
        #: Aborts of jobs that are not here, newest last: the job may still be on its way, because
        #: the two come over different connections.
        self._aborted: OrderedDict[str, None] = OrderedDict()
        self.is_draining = False
        #: The engine hangs: nothing new is taken.
        self.is_stalled = False

    def __repr__(self) -> str:
        return f"<PrefillService {len(self._jobs)} jobs>"

    @property
    def jobs(self) -> int:
        """Jobs that wait or compute."""
        return len(self._jobs)

    async def accept(self, job: PrefillJob, tokens: TokenIds) -> KvLocation:
        """
        Start a job.

        Args:
            job: Its header.
            tokens: The whole prompt; all but its last token are computed here.

        Raises:
            WorkerRefused: Full, another incarnation, or another fingerprint.
            Draining: This worker is leaving.
            MalformedRequest: An empty prompt, or one that is too long.
        """
        self._check(job, tokens)
        spec = self._engine.spec
        covered = tokens.head(len(tokens) - 1)
        manifest = KvManifest(
            fingerprint=spec.fingerprint,
            scope=job.scope,
            token_count=len(covered),
            block_tokens=spec.block_tokens,
            groups=spec.groups,
        )
        segment = self._segments.open(manifest)
        task = asyncio.get_running_loop().create_task(
            self._fill(job, segment, tokens), name=f"prefill {job.request_id}"
        )
        self._jobs[job.request_id] = task
        self._segment_of[job.request_id] = segment
        task.add_done_callback(lambda ended: self._ended(job.request_id, segment, ended))
        location = self._locate(segment)
        self._publisher.put(location)
        return location

    def abort(self, job_id: str) -> bool:
        """Stop a job and free its segment; false when there is none of this id. Idempotent."""
        task = self._jobs.get(job_id)
        segment = self._segment_of.pop(job_id, None)
        if segment is not None:
            self._segments.release(segment)
        if task is not None:
            task.cancel()
        if task is None and segment is None:
            self._aborted[job_id] = None
            if len(self._aborted) > _ABORTED_MAX:
                self._aborted.popitem(last=False)
        return task is not None or segment is not None

    def renewed(self, segment: Segment) -> None:
        """A reader renewed a segment's lease."""
        if segment.is_copy:
            return
        self._publisher.put(self._locate(segment))

    def dropped(self, segment: Segment) -> None:
        """A segment can no longer be read: its job, if it still computes, has no reader."""
        if segment.is_copy:
            # Of another worker's request: nobody was told of it here.
            return
        self._publisher.drop(segment.segment_id)
        for job_id, known in tuple(self._segment_of.items()):
            if known is segment:
                del self._segment_of[job_id]
                task = self._jobs.get(job_id)
                if task is not None:
                    task.cancel()

    def end_jobs(self, reason: PrfaasError) -> None:
        """Stop all that waits or computes; readers are told why. What is complete stays."""
        for job_id in tuple(self._jobs):
            segment = self._segment_of.get(job_id)
            if segment is not None:
                self._segments.abort(segment, f"{reason.code}: {reason.message}")

    def hand_over(self, reason: PrfaasError) -> None:
        """Stop all jobs and all reading; readers are told why, and their routers go elsewhere."""
        for segment in tuple(self._segment_of.values()):
            self._segments.abort(segment, f"{reason.code}: {reason.message}")

    async def close(self) -> None:
        """Stop all jobs."""
        tasks = tuple(self._jobs.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _check(self, job: PrefillJob, tokens: TokenIds) -> None:
        spec = self._engine.spec
        if self.is_draining:
            raise Draining("this worker is leaving and takes no new jobs")
        if self.is_stalled:
            raise WorkerRefused("the engine of this worker hangs")
        if job.incarnation != self._identity.incarnation:
            raise WorkerRefused("the job is for another life of this worker; look again")
        if job.fingerprint != spec.fingerprint:
            raise WorkerRefused("the job is for another fingerprint than this worker's")
        if job.request_id in self._aborted:
            raise WorkerRefused("the job was aborted before it came")
        if job.request_id in self._jobs:
            raise WorkerRefused("a job of this id is running already")
        if len(self._jobs) >= self._requests_max:
            raise WorkerRefused(f"{len(self._jobs)} jobs are waiting or running, the limit")
        if not 1 <= len(tokens) < spec.context_tokens_max:
            raise MalformedRequest(
                f"a prompt has 1 to {spec.context_tokens_max - 1} tokens, this one {len(tokens)}"
            )

    def _ended(self, job_id: str, segment: Segment, task: asyncio.Task[None]) -> None:
        """The writer lets go, also of a job that was cancelled before its first step."""
        self._jobs.pop(job_id, None)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, PrfaasError):
            _log.warning(
                "prefill.failed", request_id=job_id, cause=error.code, reason=error.message
            )
            segment.fail(error.code, error.message)
        elif error is not None:
            # Whatever the engine raised ends this job alone, and its text stays here.
            cause = type(error).__name__
            _log.error("prefill.failed", request_id=job_id, cause=cause, exc_info=error)
            segment.fail(SegmentFailed.code, "the engine could not compute it")
        segment.fail(SegmentFailed.code, "the prefill was aborted")

    async def _fill(self, job: PrefillJob, segment: Segment, tokens: TokenIds) -> None:
        try:
            async with asyncio.timeout(job.deadline_s):
                report = await self._compute(job, segment, tokens)
        except TimeoutError:
            segment.fail(SegmentFailed.code, "the request's time was over before its prefill")
        except TransferError:
            # The segment was dropped meanwhile: nobody reads it, and the engine stops here.
            return
        else:
            segment.complete(report)
            self._metrics.prefill_seconds.observe(report.compute_s)

    async def _compute(self, job: PrefillJob, segment: Segment, prompt: TokenIds) -> PrefillReport:
        tokens = prompt.head(len(prompt) - 1)
        context = JobContext(
            request_id=job.request_id, scope=job.scope, last_token=prompt.tail(1).to_list()[0]
        )
        hashes = block_hashes(tokens, block_tokens=self._engine.spec.block_tokens, scope=job.scope)
        copy = await self._copy(job, tokens, hashes)
        try:
            run = self._engine.prefill(tokens, hashes, context)
            async with aclosing(run.pieces()) as pieces:
                async for piece in pieces:
                    # It holds the cache by itself now.
                    copy.close()
                    segment.fill(piece)
        finally:
            copy.close()
        return PrefillReport(
            queue_s=run.queue_s,
            compute_s=run.compute_s,
            cached_tokens=run.cached_tokens,
            computed_tokens=len(tokens) - run.cached_tokens,
            copied_tokens=copy.tokens,
            copied_bytes=copy.moved_bytes,
            copy_s=copy.took_s,
            copy_failure=copy.failure,
        )

    async def _copy(self, job: PrefillJob, tokens: TokenIds, hashes: tuple[BlockHash, ...]) -> Copy:
        """Bring the prefix that the job names, if any; what cannot be brought is computed."""
        if job.prefix is None or self._copier is None:
            return Copy()
        return await self._copier.copy(job, job.prefix, tokens, hashes)
