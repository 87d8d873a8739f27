"""
One request in flight: performs each instruction of its life cycle; what comes back is an event.

No decision is made here. Which step follows which is in `domain/lifecycle`, where to run is the
policy's answer, and what a failure means is an error class that becomes one event.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from controlplane.domain import lifecycle as life
from controlplane.domain.cluster import WorkerView
from controlplane.domain.decision import Placement, RequestFeatures
from controlplane.domain.tokens import TokenIds
from controlplane.errors import (
    PeerError,
    PrfaasError,
    WorkerRefused,
    WorkerTimeout,
    WorkerUnreached,
)
from controlplane.router import jobs
from controlplane.router.autopsy import Autopsy, Case
from controlplane.router.holdings import Holdings
from controlplane.router.incoming import Incoming
from controlplane.router.output import Output, Taken
from controlplane.router.prefixes import find_prefix
from controlplane.router.records import Attempt, Timeline
from controlplane.router.services import Services
from controlplane.router.sink import ClientLeftError, ClientSink
from controlplane.router.workers import DecodeStream, read_rest
from controlplane.wire import DecodeReport, FrameKind, KvLocation

#: Instructions that wait for somebody else.
_NEED_WAITING = frozenset({
    life.AwaitTurn, life.AskRetry, life.Blame, life.Fail, life.Relay, life.Reserve,
    life.StartDecode, life.StartPrefill,
})  # fmt: skip

#: Frames that an answer begins with.
_OUTPUT_FRAMES = frozenset({FrameKind.CONTENT, FrameKind.OUTPUT})


class Flight:
    """One request: its life, what it holds, and what will be recorded of it."""

    def __init__(
        self,
        services: Services,
        incoming: Incoming,
        sink: ClientSink,
        *,
        sequence: int,
        store_waited_s: float = 0.0,
    ) -> None:
        self._services = services
        self._incoming = incoming
        self._sink = sink
        self._sequence = sequence
        self.life, self._todo = life.begin(
            jobs.terms_of(
                incoming,
                services.limits,
                can_wait=services.coalescing.is_worth(len(incoming.tokens)),
            )
        )
        self._attempts: list[Attempt] = []
        #: What the record's `Timeline` is made of, as far as it has happened.
        self._times = {"parsed_s": incoming.parsed_s - incoming.accepted_s}
        self._holdings = Holdings(services, store_waited_s=store_waited_s)
        self._output = Output(incoming.output, incoming.tokens.width_bytes)
        self._autopsy = Autopsy(services, incoming.digest)
        self._prefill: WorkerView | None = None
        self._decode: WorkerView | None = None
        #: The process life of each worker that was tried: a successor has not failed anybody.
        self._tried: dict[str, str] = {}
        self._location: KvLocation | None = None
        self._stream: DecodeStream | None = None
        self._first: list[tuple[FrameKind, bytes]] = []
        self._decode_sent_s = 0.0
        #: Tokens of output when this attempt began.
        self._output_at_begin = 0
        #: The worker that was lost may have seen this attempt's job.
        self._was_reached = True
        self._report: DecodeReport | None = None
        #: The client has the whole answer; what else could end the life came too late.
        self._answered: life.StreamEnded | None = None
        self._is_told = False
        self._failure = ""
        #: Set when the answer has to be an error; the edge turns it into a status.
        self.error: PrfaasError | None = None

    @property
    def headers(self) -> dict[str, str]:
        """Headers that say who served the request, as far as it got."""
        return jobs.answer_headers(self._incoming, self._placement)

    # --- The loop -----------------------------------------------------------------------------

    async def fly(self) -> None:
        """Perform instructions until the life is over."""
        while self._todo:
            instruction, self._todo = self._todo[0], self._todo[1:]
            if type(instruction) in _NEED_WAITING:
                event = await self._perform(instruction)
            else:
                event = self._perform_at_once(instruction)
            if event is not None:
                self._advance(event)

    def end(self, event: life.Event) -> None:
        """
        End the life from outside: the client left, time is over, or a bug.

        Performs what needs no waiting; aborts go on behind.
        """
        if not self.life.state.is_terminal:
            # Verdicts on workers that were still to come are dropped: nobody waits for them.
            self._advance(self._answered or event)
        # A life that was over already has only its last instructions left.
        for instruction in self._todo:
            if type(instruction) is not life.Decide:
                self._perform_at_once(instruction)
        self._todo = ()

    def _advance(self, event: life.Event) -> None:
        before = self.life
        self.life, more = life.advance(before, event)
        self._todo = (*self._todo, *more)
        is_retry = life.AskRetry in map(type, more)
        if (is_retry or self.life.state.is_terminal) and self._attempts:
            cause = type(event).__name__
            is_over = self._attempts[-1].ended_by != "ok"
            if not is_over and not isinstance(event, life.StreamEnded):
                # What comes later, while another attempt is waited for, does not end this one.
                self._attempts[-1] = replace(self._attempts[-1], ended_by=cause)
            if is_retry:
                self._tell_of_retry(before, cause)

    def _tell_of_retry(self, before: life.Life, cause: str) -> None:
        request_id, number = self._incoming.request_id, len(self._attempts)
        if before.state is life.State.DECODING and self.life.has_output:
            self._services.migrated(
                request_id, cause, number, worker=before.decode_worker, tokens=len(self._output)
            )
        else:
            self._services.redispatched(request_id, cause, number)

    async def _perform(self, instruction: life.Instruction) -> life.Event | None:
        event: life.Event | None = None
        match instruction:
            case life.AwaitTurn():
                event = await self._await_turn()
            case life.Reserve():
                event = await self._reserve()
            case life.StartPrefill():
                event = await self._start_prefill()
            case life.StartDecode():
                event = await self._start_decode()
            case life.Relay():
                event = await self._relay()
            case life.AskRetry(code, after_pause):
                event = await self._ask_retry(code, after_pause=after_pause)
            case life.Blame(worker_id, is_certain):
                await self._blame(worker_id, is_certain=is_certain)
            case life.Fail(code):
                await self._fail(code)
            case _:
                raise AssertionError(f"{instruction} needs no waiting")
        return event

    def _perform_at_once(self, instruction: life.Instruction) -> life.Event | None:
        match instruction:
            case life.Decide(excluded):
                return self._decide(excluded)
            case life.AbortDecode():
                self._close_stream()
            case life.AbortPrefill():
                if self._prefill is not None:
                    self._services.abort_prefill(self._prefill.url, self._job_id)
            case life.GiveBack():
                self._holdings.give_back()
            case life.ForgetOutput():
                self._output.forget()
            case life.Judge(worker_id, kind):
                self._services.outcome(worker_id, self._tried[worker_id], kind)
            case life.Fail(code):
                # The client cannot be waited for any more; the edge answers with the error.
                self.error = self._error(code)
            case life.Finish(state, code):
                self._finish(state.value, code)
            case _:
                # It needs waiting, and the life ended before its turn came.
                assert self.life.state.is_terminal, f"{instruction} needs waiting"
        return None

    # --- Before an attempt --------------------------------------------------------------------

    async def _await_turn(self) -> life.Event:
        await self._holdings.wait_for_prefix(self._incoming)
        self._times["turn_came_s"] = self._elapsed_s()
        return life.TurnCame()

    async def _ask_retry(self, code: str, *, after_pause: bool) -> life.Event:
        services = self._services
        if services.quarantine.refuses(self._incoming.digest):
            services.metrics.quarantined_total.inc()
            return life.RetryDenied("request_quarantined")
        self._holdings.give_back_retry_place()
        if after_pause:
            await asyncio.sleep(services.limits.retry_pause_s * services.seeds.uniform(0.5, 1.5))
        if await self._holdings.take_retry_place(services.limits.retry_wait_s):
            return life.RetryGranted()
        return life.RetryDenied(code)

    async def _blame(self, worker_id: str, *, is_certain: bool) -> None:
        worker = self._prefill if self.life.prefill_worker == worker_id else self._decode
        assert worker is not None, "a worker of this attempt"
        case = Case(
            is_certain=is_certain,
            was_there=self._was_reached,
            tokens=len(self._output),
            tokens_at_begin=self._output_at_begin,
            exposure_s=self._elapsed_s() - self._times["decided_s"],
        )
        await self._autopsy.examine(worker, case)

    def _decide(self, excluded: tuple[str, ...]) -> life.Event:
        incoming, services = self._incoming, self._services
        view = services.tracker.view()
        tokens, resumed_tokens = self._tokens(), len(self._output)
        hashes = jobs.hashes_of(incoming, tokens)
        features = RequestFeatures(
            request_id=incoming.request_id,
            model=incoming.output.model,
            input_tokens=len(tokens),
            output_tokens_max=incoming.sampling.output_tokens_max - resumed_tokens,
            sequence=self._sequence,
            prefix_hits=services.hits(hashes, block_tokens=incoming.block_tokens),
            excluded=tuple(name for name in excluded if self._has_tried(view.worker(name))),
            resumed_tokens=resumed_tokens,
            allowed_datacenters=incoming.allowed_datacenters,
            ttft_deadline_s=incoming.ttft_left_s(services.clock(), resumed_tokens),
        )
        attempt = services.decide(features)
        self._attempts.append(attempt)
        self._times["decided_s"] = self._elapsed_s()
        placement, prediction = attempt.decision.placement, attempt.decision.prediction
        if placement is None or prediction is None:
            self._failure = attempt.decision.explanation
            return life.NoPlacement()
        self._prefill = view.worker(placement.prefill_worker)
        self._decode = view.worker(placement.decode_worker)
        assert self._prefill is not None, "a policy chooses among the workers of the view"
        assert self._decode is not None, "a policy chooses among the workers of the view"
        for worker in (self._prefill, self._decode):
            self._tried[worker.worker_id] = worker.incarnation
        self._output_at_begin, self._was_reached = resumed_tokens, True
        source = view.worker(placement.copy_from_worker or "")
        self._holdings.claim(placement, prediction, self._prefill, self._decode, source)
        if services.coalescing.is_worth(prediction.uncached_tokens):
            self._holdings.lead(hashes, incoming.block_tokens, placement.prefill_worker)
        return life.Placed(placement.prefill_worker, placement.decode_worker)

    # --- An attempt ---------------------------------------------------------------------------

    async def _reserve(self) -> life.Event:
        assert self._prefill is not None
        assert self._decode is not None
        prediction = self._attempts[-1].decision.prediction
        assert prediction is not None
        reply = await self._holdings.reserve(self._job_id, prediction, self._prefill, self._decode)
        self._times["reserved_s"] = self._elapsed_s()
        if reply is None:
            return life.Reserved()
        refused_by = reply.refused_by
        if refused_by is None:
            return life.Reserved()
        worker = self._prefill if refused_by.startswith("prefill") else self._decode
        self._failure = f"{worker.worker_id} refused the reservation: {refused_by}"
        if refused_by.endswith("gone"):
            self._services.tracker.forget_incarnation(worker.worker_id, worker.incarnation)
        return life.ReservationRefused(worker.worker_id)

    async def _start_prefill(self) -> life.Event:
        assert self._prefill is not None
        assert self._decode is not None
        tokens = self._tokens()
        prefix = await self._find_prefix(tokens)
        job = jobs.prefill_job(
            self._incoming,
            self._job_id,
            tokens,
            prefill=self._prefill,
            decode=self._decode,
            remaining_s=self._remaining_s(),
            prefix=prefix,
        )
        try:
            self._location = await self._services.workers.prefill(self._prefill.url, job, tokens)
        except WorkerRefused as error:
            self._failure = error.message
            return life.PrefillRefused()
        except WorkerTimeout as error:
            self._failure = error.message
            return self._holdings.with_verdict_on_link(life.PrefillTimedOut())
        except PeerError as error:
            self._failure = error.message
            self._was_reached = not isinstance(error, WorkerUnreached)
            return life.PrefillWorkerLost()
        self._times["prefill_accepted_s"] = self._elapsed_s()
        return life.PrefillAccepted()

    async def _find_prefix(self, tokens: TokenIds) -> KvLocation | None:
        """Where the prefix that the placement copies can be read; the record says what was asked."""
        attempt = self._attempts[-1]
        found = await find_prefix(
            self._services.workers,
            self._incoming,
            attempt.decision,
            attempt.view,
            job_id=self._job_id,
            tokens=tokens,
        )
        if found is None:
            return None
        self._attempts[-1] = replace(attempt, copy=found.step)
        return found.location

    async def _start_decode(self) -> life.Event:
        assert self._decode is not None
        assert self._location is not None
        tokens = self._tokens()
        job = jobs.decode_job(
            self._incoming,
            self._job_id,
            tokens,
            resumed_tokens=len(self._output),
            decode=self._decode,
            location=self._location,
            remaining_s=self._remaining_s(),
        )
        self._decode_sent_s = self._elapsed_s()
        self._output.begin_attempt(tells_tokens=self._decode.can_resume)
        try:
            self._stream = await self._services.workers.decode(self._decode.url, job, tokens)
            while batch := await self._stream.frames():
                frames = [frame for frame in batch if frame[0] is not FrameKind.ALIVE]
                if frames:
                    return self._first_frames(frames)
        except PeerError as error:
            return self._decode_failed(error)
        self._failure = "the decode worker ended its stream without a token"
        return life.DecodeWorkerLost()

    def _first_frames(self, frames: list[tuple[FrameKind, bytes]]) -> life.Event:
        if frames[0][0] not in _OUTPUT_FRAMES:
            taken = self._output.take(frames)
            self._failure = taken.failure
            assert taken.end is not None, "what is no output ends a stream"
            return self._holdings.with_verdict_on_link(taken.end)
        self._first = frames
        is_resumed = len(self._output) > 0
        self._times["resumed_s" if is_resumed else "first_token_s"] = self._elapsed_s()
        self._holdings.prefill_done()
        return life.FirstToken(has_tokens=self._output.tells_tokens)

    def _decode_failed(self, error: PeerError) -> life.Event:
        self._failure = error.message
        if isinstance(error, WorkerRefused):
            return life.DecodeRefused()
        if isinstance(error, WorkerTimeout):
            return life.DecodeTimedOut()
        self._was_reached = not isinstance(error, WorkerUnreached)
        return life.DecodeWorkerLost()

    async def _relay(self) -> life.Event:
        assert self._stream is not None
        batch = self._first
        progress_s = self._services.clock()
        try:
            if not self._sink.is_begun:
                await self._sink.begin(self.headers)
            while batch:
                taken = self._output.take(batch)
                event = await self._pass_on(taken)
                if event is not None:
                    if isinstance(event, life.StreamEnded):
                        await read_rest(self._stream)
                    return event
                now_s = self._services.clock()
                if taken.has_progress:
                    progress_s = now_s
                elif now_s - progress_s > self._services.limits.token_idle_timeout_s:
                    self._failure = f"no token for {now_s - progress_s:.1f} s"
                    return life.DecodeTimedOut()
                batch = await self._stream.frames()
        except ClientLeftError:
            return life.ClientGone()
        except PeerError as error:
            return self._decode_failed(error)
        self._failure = "the decode worker ended its stream without a report"
        return life.DecodeWorkerLost()

    async def _pass_on(self, taken: Taken) -> life.Event | None:
        """Give the client what is for it; the end of the stream, if it has come."""
        if taken.content:
            await self._sink.write(taken.content)
        if isinstance(taken.end, life.StreamEnded):
            self._answered, self._report = taken.end, taken.report
            self._holdings.judge_copy(self._attempts[-1].copy, taken.report)
            is_whole = not self._incoming.output.is_stream
            if is_whole and taken.report is not None and len(self._attempts) == 1:
                # It came at once; its first token was earlier, as its worker has measured.
                self._times["first_token_s"] = self._decode_sent_s + taken.report.first_token_s
        elif taken.end is not None:
            self._failure = taken.failure
        return taken.end

    async def _fail(self, code: str) -> None:
        self.error = self._error(code)
        await self.tell()

    async def tell(self) -> None:
        """Send the error event of an answer that has begun, once."""
        if self.error is None or self._is_told or not self._sink.is_begun:
            return
        self._is_told = True
        try:
            await self._sink.fail(self.error)
        except ClientLeftError:
            # It cannot be told; the record has the code.
            self._failure = self._failure or "the client left before it could be told"

    # --- Ends ---------------------------------------------------------------------------------

    def _error(self, code: str) -> PrfaasError:
        return jobs.final_error(code, attempts=len(self._attempts), detail=self._failure)

    def _close_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _finish(self, outcome: str, code: str) -> None:
        reservation = self._holdings.finish()
        self._close_stream()
        record = jobs.record_of(
            self._incoming,
            router=self._services.router_id,
            outcome=outcome,
            code=code,
            detail=self._failure if outcome != "done" else "",
            attempts=tuple(self._attempts),
            timeline=Timeline(**self._times, finished_s=self._elapsed_s()),
            report=self._report,
            story=self.life.story,
        )
        self._services.finished(record, reservation)

    # --- Small ones ---------------------------------------------------------------------------

    @property
    def _placement(self) -> Placement | None:
        return self._attempts[-1].decision.placement if self._attempts else None

    @property
    def _job_id(self) -> str:
        """One id for each attempt, so that a late message of an old one finds nothing."""
        return f"{self._incoming.request_id}.{len(self._attempts)}"

    def _tokens(self) -> TokenIds:
        """The prompt, and the output so far behind it."""
        return jobs.tokens_of(self._incoming, self._output.tokens)

    def _has_tried(self, worker: WorkerView | None) -> bool:
        """Whether a worker is the very process that has failed this request."""
        return worker is not None and worker.incarnation == self._tried.get(worker.worker_id)

    def _elapsed_s(self) -> float:
        return self._services.clock() - self._incoming.accepted_s

    def _remaining_s(self) -> float:
        return max(0.0, self._incoming.deadline_s - self._services.clock())
