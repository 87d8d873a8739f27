"""Decode jobs of one worker: fetch the KV while it is made, then stream tokens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Final

from controlplane.config import KvConfig
from controlplane.domain.fingerprint import fingerprint_difference
from controlplane.domain.prefix import block_hashes
from controlplane.domain.tokens import TokenIds
from controlplane.errors import (
    DeadlineExceeded,
    Draining,
    MalformedRequest,
    PrfaasError,
    WorkerLost,
    WorkerRefused,
)
from controlplane.tokenizing import ByteTokenizer, Tokenizer
from controlplane.wire import (
    DecodeJob,
    DecodeReport,
    FrameKind,
    PrefillReport,
    Sampling,
    TransferReport,
)
from workers.answers import Answer, Send
from workers.engine import ClosableIterator, Engine, EngineTransfer, JobContext, KvImport, TokenOut
from workers.identity import Identity
from workers.kv.client import Fetch, FetchResult, fetch_segment
from workers.kv.timing import Clock
from workers.links import LinkMeters
from workers.metrics import WorkerMetrics
from workers.output import FinishReason

_BITS: Final = 8

#: What an answer that needed no KV says of it.
_NO_FETCH = FetchResult(
    transfer=TransferReport(),
    prefill=PrefillReport(queue_s=0.0, compute_s=0.0, cached_tokens=0, computed_tokens=0),
    goodput_bps=0.0,
    rtt_s=0.0,
)


class DecodeService:
    """Runs decode jobs on an engine, each from a KV location to its last token."""

    def __init__(
        self,
        engine: Engine,
        identity: Identity,
        config: KvConfig,
        metrics: WorkerMetrics,
        *,
        requests_max: int,
        links: LinkMeters,
        tokenizer: Tokenizer | None = None,
        fetch: Fetch = fetch_segment,
        clock: Clock = time.monotonic,
    ) -> None:
        self._engine = engine
        self._identity = identity
        self._config = config
        self._metrics = metrics
        self._requests_max = requests_max
        self._links = links
        self._tokenizer = tokenizer or ByteTokenizer()
        self._fetch_segment = fetch
        self._clock = clock
        #: Jobs by their deadline, and why they are ended before it, if they are.
        self._running: dict[asyncio.Timeout, PrfaasError | None] = {}
        self._waiting = 0
        self.is_draining = False
        #: The engine hangs: nothing new is taken.
        self.is_stalled = False

    def __repr__(self) -> str:
        return f"<DecodeService {self.jobs} jobs>"

    @property
    def jobs(self) -> int:
        """Jobs that fetch, wait or decode."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Jobs that wait for the engine now."""
        return self._waiting

    def end_jobs(self, reason: Callable[[], PrfaasError]) -> None:
        """End all jobs with an error; their routers go on elsewhere."""
        for deadline in tuple(self._running):
            self._end_job(deadline, reason())

    def _end_job(self, deadline: asyncio.Timeout, reason: PrfaasError) -> None:
        if self._running.get(deadline) is None and not deadline.expired():
            self._running[deadline] = reason
            deadline.reschedule(asyncio.get_running_loop().time())

    def check(self, job: DecodeJob, tokens: TokenIds) -> None:
        """
        Whether a job can be taken, before anything is sent.

        Raises:
            WorkerRefused: Full, another incarnation, or a location that does not fit.
            Draining: This worker is leaving.
            MalformedRequest: An empty prompt, resumed tokens that are more than there are, or a
                manifest that covers another length.
        """
        spec = self._engine.spec
        manifest = job.location.manifest
        if self.is_draining:
            raise Draining("this worker is leaving and takes no new jobs")
        if self.is_stalled:
            raise WorkerRefused("the engine of this worker hangs")
        if job.incarnation != self._identity.incarnation:
            raise WorkerRefused("the job is for another life of this worker; look again")
        self._check_manifest(job)
        if self.jobs >= self._requests_max:
            raise WorkerRefused(f"{self.jobs} jobs are waiting or running, the limit")
        prompt_tokens = len(tokens) - job.resumed_tokens
        context_tokens = prompt_tokens + job.sampling.output_tokens_max
        if prompt_tokens < 1 or context_tokens > spec.context_tokens_max:
            raise MalformedRequest(
                f"prompt and output have {context_tokens} tokens; this worker takes prompts of at "
                f"least 1 token and {spec.context_tokens_max} in all"
            )
        if job.resumed_tokens > job.sampling.output_tokens_max:
            raise MalformedRequest(
                f"{job.resumed_tokens} tokens of output are more than the "
                f"{job.sampling.output_tokens_max} that were asked for"
            )
        if manifest.token_count != len(tokens) - 1:
            raise MalformedRequest(
                f"the KV covers {manifest.token_count} tokens, the job needs {len(tokens) - 1}"
            )

    def _check_manifest(self, job: DecodeJob) -> None:
        """Whether the KV can be used here: anything that differs would be wrong KV, not lost KV."""
        spec, manifest = self._engine.spec, job.location.manifest
        if manifest.fingerprint != spec.fingerprint:
            differs = fingerprint_difference(spec.fingerprint, manifest.fingerprint)
            raise WorkerRefused(
                f"the KV was made for another fingerprint than this worker's: {differs}"
            )
        if manifest.groups != spec.groups:
            raise WorkerRefused("the KV was made in another layout than this worker's")
        if manifest.scope != job.scope:
            raise WorkerRefused("the KV belongs to another scope than the job")

    async def run(self, job: DecodeJob, tokens: TokenIds, send: Send) -> None:
        """
        Serve one job; the last frame it sends is its report.

        Raises:
            PrfaasError: What went wrong; nothing has been sent after it.
        """
        arrived_s = self._clock()
        deadline = asyncio.timeout(job.deadline_s)
        self._running[deadline] = None

        def end(reason: PrfaasError) -> None:
            self._end_job(deadline, reason)

        try:
            async with deadline:
                await self._serve(job, tokens, send, arrived_s, end)
        except TimeoutError as error:
            if not deadline.expired():
                # The engine's own, not this job's: it must not pass for the request's time.
                raise
            late = DeadlineExceeded("the request's time was over while it was decoded")
            raise self._running[deadline] or late from error
        finally:
            del self._running[deadline]

    async def _serve(
        self,
        job: DecodeJob,
        tokens: TokenIds,
        send: Send,
        arrived_s: float,
        on_failure: Callable[[PrfaasError], None],
    ) -> None:
        prompt_tokens = len(tokens) - job.resumed_tokens
        answer = Answer(
            job,
            prompt_tokens=prompt_tokens,
            send=send,
            clock=self._clock,
            detokenizer=self._tokenizer.detokenizer(),
        )
        finish_reason = answer.resume(tokens.tail(job.resumed_tokens).to_list())
        if finish_reason is not None:
            # All was said but the end: the worker before died between its last token and that.
            await self._finish(answer, finish_reason, send, _Times(arrived_s), _NO_FETCH, 0)
            return
        covered = tokens.head(len(tokens) - 1)
        hashes = block_hashes(covered, block_tokens=self._engine.spec.block_tokens, scope=job.scope)
        sampling = job.sampling.model_copy(update={"output_tokens_max": answer.tokens_left})
        context = JobContext(
            request_id=job.request_id,
            scope=job.scope,
            last_token=tokens.tail(1).to_list()[0],
            sampling=sampling,
            on_failure=on_failure,
        )
        sequence = self._engine.begin_import(covered, hashes, context)
        try:
            fetched = await self._fetch(job, sequence, arrived_s)
            times = _Times(arrived_s, ready_s=self._clock() - arrived_s)
            finish_reason = await self._decode(tokens, sampling, sequence, answer, times)
            await sequence.settle()
            fetched = self._with_engine(job, fetched, sequence.transfer)
            computed = sequence.prompt_tokens_computed
            await self._finish(answer, finish_reason, send, times, fetched, computed)
        finally:
            sequence.close()

    async def _fetch(self, job: DecodeJob, sequence: KvImport, arrived_s: float) -> FetchResult:
        origin = job.location.datacenter
        with self._links.fetching(origin, self._config) as config:
            fetched = await self._fetch_segment(
                job.location,
                held_tokens=sequence.held_tokens,
                destination=self._identity.datacenter,
                on_piece=sequence.write,
                config=config,
                arrived_s=arrived_s,
                clock=self._clock,
                traffic=self._links.traffic(origin),
            )
        self._links.add(
            origin,
            moved_bytes=fetched.transfer.bytes,
            goodput_bps=fetched.goodput_bps,
            rtt_s=fetched.rtt_s,
        )
        self._metrics.kv_transfer_seconds.labels(origin).observe(fetched.transfer.finished_s)
        self._metrics.kv_received_bytes_total.labels(origin).inc(fetched.transfer.bytes)
        return fetched

    def _with_engine(
        self, job: DecodeJob, fetched: FetchResult, moved: EngineTransfer | None
    ) -> FetchResult:
        """What was fetched, and what the engine has fetched by itself."""
        if moved is None:
            return fetched
        origin = job.location.datacenter
        goodput_bps = moved.moved_bytes * _BITS / moved.moving_s if moved.moving_s else 0.0
        self._links.add(origin, moved_bytes=moved.moved_bytes, goodput_bps=goodput_bps, rtt_s=0.0)
        if (traffic := self._links.traffic(origin)) is not None:
            traffic.moved(moved.moved_bytes, moved.moving_s, ended_s=self._clock())
        self._metrics.kv_received_bytes_total.labels(origin).inc(moved.moved_bytes)
        if moved.is_mismatch:
            self._metrics.transfer_mismatches_total.labels(origin).inc()
        report = fetched.transfer.model_copy(
            update={
                "bytes": fetched.transfer.bytes + moved.moved_bytes,
                "evidence": moved.evidence,
                "is_mismatch": moved.is_mismatch,
            }
        )
        return replace(fetched, transfer=report, goodput_bps=goodput_bps)

    async def _decode(
        self,
        tokens: TokenIds,
        sampling: Sampling,
        sequence: KvImport,
        answer: Answer,
        times: _Times,
    ) -> FinishReason:
        """Put the engine's tokens out up to the last one."""
        async with aclosing(self._engine.decode(sequence, tokens, sampling)) as outputs:
            while (output := await self._next(outputs)) is not None:
                if not times.first_token_s:
                    times.first_token_s = self._clock() - times.arrived_s
                if output.finish_reason == "stop":
                    answer.count_end()
                    return "stop"
                if await answer.push(output.token):
                    return "stop"
                if output.finish_reason is not None:
                    return output.finish_reason
        # An engine that is closed ends its iterators: this answer is cut, not finished.
        raise WorkerLost("the engine stopped in the middle of the answer")

    async def _next(self, outputs: ClosableIterator[TokenOut]) -> TokenOut | None:
        self._waiting += 1
        try:
            return await anext(outputs, None)
        finally:
            self._waiting -= 1

    async def _finish(
        self,
        answer: Answer,
        finish_reason: FinishReason,
        send: Send,
        times: _Times,
        fetched: FetchResult,
        prompt_tokens_computed: int,
    ) -> None:
        last = await answer.end(finish_reason, cached_tokens=fetched.prefill.cached_tokens)
        report = DecodeReport(
            finish_reason=finish_reason,
            output_tokens=answer.output_tokens,
            prompt_tokens_computed=prompt_tokens_computed,
            queue_s=max(0.0, times.first_token_s - times.ready_s),
            first_token_s=times.first_token_s,
            finished_s=self._clock() - times.arrived_s,
            transfer=fetched.transfer,
            prefill=fetched.prefill,
        )
        # Together, so that a client that leaves with the end of its answer finds it reported.
        await send((FrameKind.CONTENT, last), (FrameKind.REPORT, report.model_dump_json().encode()))


@dataclass(slots=True)
class _Times:
    """When a job came to what; but for the first, seconds from its arrival."""

    #: On the service's clock.
    arrived_s: float
    #: Its KV was complete.
    ready_s: float = 0.0
    #: The first token of this worker was there; 0 before.
    first_token_s: float = 0.0
