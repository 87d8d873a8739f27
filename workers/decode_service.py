"""Decode jobs of one worker: fetch the KV while it is made, then stream tokens."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from typing import Protocol

from controlplane.config import KvConfig
from controlplane.domain.prefix import block_hashes
from controlplane.domain.tokens import TokenIds
from controlplane.errors import (
    DeadlineExceeded,
    Draining,
    MalformedRequest,
    WorkerLost,
    WorkerRefused,
)
from controlplane.wire import DecodeJob, DecodeReport, FrameKind
from workers.engine import Engine, KvImport
from workers.identity import Identity
from workers.kv.client import FetchResult, fetch_segment
from workers.links import LinkMeters
from workers.metrics import WorkerMetrics
from workers.output import AnswerWriter, FinishReason
from workers.text import TextStream


class Send(Protocol):
    """Sends frames to the router, those of one call together."""

    async def __call__(self, *frames: tuple[FrameKind, bytes]) -> None:
        """
        Send them.

        Raises:
            ConnectionError: The router has gone, or does not read.
        """


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
    ) -> None:
        self._engine = engine
        self._identity = identity
        self._config = config
        self._metrics = metrics
        self._requests_max = requests_max
        self._links = links
        self._jobs = 0
        self.is_draining = False

    def __repr__(self) -> str:
        return f"<DecodeService {self._jobs} jobs>"

    @property
    def jobs(self) -> int:
        """Jobs that fetch, wait or decode."""
        return self._jobs

    def check(self, job: DecodeJob, tokens: TokenIds) -> None:
        """
        Whether a job can be taken, before anything is sent.

        Raises:
            WorkerRefused: Full, another incarnation, or a location that does not fit.
            Draining: This worker is leaving.
            MalformedRequest: An empty prompt, or a manifest that covers another length.
        """
        spec = self._engine.spec
        manifest = job.location.manifest
        if self.is_draining:
            raise Draining("this worker is leaving and takes no new jobs")
        if job.incarnation != self._identity.incarnation:
            raise WorkerRefused("the job is for another life of this worker; look again")
        if manifest.fingerprint != spec.fingerprint or manifest.groups != spec.groups:
            raise WorkerRefused("the KV was made for another fingerprint than this worker's")
        if manifest.scope != job.scope:
            raise WorkerRefused("the KV belongs to another scope than the job")
        if self._jobs >= self._requests_max:
            raise WorkerRefused(f"{self._jobs} jobs are waiting or running, the limit")
        context_tokens = len(tokens) + job.sampling.output_tokens_max
        if not tokens or context_tokens > spec.context_tokens_max:
            raise MalformedRequest(
                f"prompt and output have {context_tokens} tokens; this worker takes prompts of at "
                f"least 1 token and {spec.context_tokens_max} in all"
            )
        if manifest.token_count != len(tokens) - 1:
            raise MalformedRequest(
                f"the KV covers {manifest.token_count} tokens, the prompt needs {len(tokens) - 1}"
            )

    async def run(self, job: DecodeJob, tokens: TokenIds, send: Send) -> None:
        """
        Serve one job; the last frame it sends is its report.

        Raises:
            PrfaasError: What went wrong; nothing has been sent after it.
        """
        arrived_s = time.monotonic()
        self._jobs += 1
        try:
            async with asyncio.timeout(job.deadline_s):
                await self._serve(job, tokens, send, arrived_s)
        except TimeoutError as error:
            raise DeadlineExceeded("the request's time was over while it was decoded") from error
        finally:
            self._jobs -= 1

    async def _serve(self, job: DecodeJob, tokens: TokenIds, send: Send, arrived_s: float) -> None:
        covered = tokens.head(len(tokens) - 1)
        hashes = block_hashes(covered, block_tokens=self._engine.spec.block_tokens, scope=job.scope)
        sequence = self._engine.begin_import(covered, hashes)
        try:
            fetched = await self._fetch(job, sequence, arrived_s)
            await self._decode(job, tokens, sequence, fetched, send, arrived_s)
        finally:
            sequence.close()

    async def _fetch(self, job: DecodeJob, sequence: KvImport, arrived_s: float) -> FetchResult:
        origin = job.location.datacenter
        fetched = await fetch_segment(
            job.location,
            held_tokens=sequence.held_tokens,
            destination=self._identity.datacenter,
            on_piece=sequence.write,
            config=self._config,
            arrived_s=arrived_s,
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

    async def _decode(
        self,
        job: DecodeJob,
        tokens: TokenIds,
        sequence: KvImport,
        fetched: FetchResult,
        send: Send,
        arrived_s: float,
    ) -> None:
        text = TextStream(job.sampling.stop)
        answer = AnswerWriter(job.output, prompt_tokens=len(tokens))
        ready_s = time.monotonic() - arrived_s
        first_token_s = 0.0
        output_tokens = 0
        finish_reason: FinishReason | None = None
        async with aclosing(self._engine.decode(sequence, tokens, job.sampling)) as outputs:
            async for output in outputs:
                if not first_token_s:
                    first_token_s = time.monotonic() - arrived_s
                output_tokens += 1
                finish_reason = output.finish_reason
                if finish_reason == "stop":
                    break
                await _send_text(answer, text.push(output.token), send)
                if text.is_stopped:
                    finish_reason = "stop"
                if finish_reason is not None:
                    break
        if finish_reason is None:
            # An engine that is closed ends its iterators: this answer is cut, not finished.
            raise WorkerLost("the engine stopped in the middle of the answer")
        await _send_text(answer, text.finish(), send)
        cached_tokens = fetched.prefill.cached_tokens
        last = answer.end(finish_reason, output_tokens=output_tokens, cached_tokens=cached_tokens)
        report = DecodeReport(
            finish_reason=finish_reason,
            output_tokens=output_tokens,
            prompt_tokens_computed=sequence.prompt_tokens_computed,
            queue_s=max(0.0, first_token_s - ready_s),
            first_token_s=first_token_s,
            finished_s=time.monotonic() - arrived_s,
            transfer=fetched.transfer,
            prefill=fetched.prefill,
        )
        # Together, so that a client that leaves with the end of its answer finds it reported.
        await send((FrameKind.CONTENT, last), (FrameKind.REPORT, report.model_dump_json().encode()))


async def _send_text(answer: AnswerWriter, text: str, send: Send) -> None:
    if text:
        event = answer.delta(text)
        if event:
            await send((FrameKind.CONTENT, event))
