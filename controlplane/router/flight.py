"""
One request in flight: performs each instruction of its life cycle; what comes back is an event.

No decision is made here. Which step follows which is in `domain/lifecycle.py`, where to run is
the policy's answer, and what a failure means is an error class that becomes one event.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from pydantic import ValidationError

from controlplane.domain import lifecycle as life
from controlplane.domain.cluster import WorkerView, link_id
from controlplane.domain.decision import Placement, RequestFeatures
from controlplane.errors import (
    TRANSFER_ERRORS,
    PeerError,
    PrfaasError,
    StoreError,
    WorkerRefused,
    error_for,
)
from controlplane.router.incoming import Incoming
from controlplane.router.records import Attempt, DecisionRecord, Timeline
from controlplane.router.services import Services
from controlplane.router.sink import ClientLeftError, ClientSink
from controlplane.router.view import Claim
from controlplane.router.workers import DecodeStream
from controlplane.wire import (
    DecodeFailure,
    DecodeJob,
    DecodeReport,
    FrameKind,
    KvLocation,
    PrefillJob,
    Reservation,
)

#: What a client is asked to wait after a failure that another attempt may not meet.
_RETRY_AFTER_S = 1.0

#: After a whole answer its connection is read to the end for so long; a worker ends both at once.
_REST_S = 1.0

#: A reservation outlives its request's deadline by this, so that only a lost release expires.
_RESERVATION_SLACK_S = 5.0

#: The claim on prefill and link lives so many times the predicted time to the first token: by then
#: the worker's own heartbeats count what is left of it.
_PREFILL_TTL_FACTOR = 2.0


class Flight:
    """One request: its life, what it holds, and what will be recorded of it."""

    def __init__(
        self, services: Services, incoming: Incoming, sink: ClientSink, *, sequence: int
    ) -> None:
        self._services = services
        self._incoming = incoming
        self._sink = sink
        self._sequence = sequence
        self.life, self._todo = life.begin(services.limits.redispatch_max)
        self._attempts: list[Attempt] = []
        #: What the record's `Timeline` is made of, as far as it has happened.
        self._times = {"parsed_s": incoming.parsed_s - incoming.accepted_s}
        self._prefill: WorkerView | None = None
        self._decode: WorkerView | None = None
        self._claim: Claim | None = None
        self._is_prefill_claimed = False
        self._reservation: Reservation | None = None
        self._location: KvLocation | None = None
        self._stream: DecodeStream | None = None
        self._first: list[tuple[FrameKind, bytes]] = []
        self._decode_sent_s = 0.0
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
        headers = {
            "x-request-id": self._incoming.request_id,
            "x-prfaas-decision": self._incoming.decision_id,
        }
        placement = self._placement
        if placement is not None:
            headers["x-prfaas-prefill"] = placement.prefill_worker
            headers["x-prfaas-decode"] = placement.decode_worker
        if self._incoming.client_request_id is not None:
            headers["x-client-request-id"] = self._incoming.client_request_id
        return headers

    async def fly(self) -> None:
        """Perform instructions until the life is over."""
        while self._todo:
            instruction, self._todo = self._todo[0], self._todo[1:]
            event = await self._perform(instruction)
            if event is not None:
                self._advance(event)

    def end(self, event: life.Event) -> None:
        """
        End the life from outside: the client left, time is over, or a bug.

        Performs what needs no waiting; aborts go on behind.
        """
        if self.life.state.is_terminal:
            # It was over already; only its last instructions were interrupted.
            for instruction in self._todo:
                self._perform_at_once(instruction)
            self._todo = ()
            return
        self._advance(self._answered or event)
        for instruction in self._todo:
            self._perform_at_once(instruction)
        self._todo = ()

    def _advance(self, event: life.Event) -> None:
        before = self.life
        self.life, more = life.advance(before, event)
        self._todo = (*self._todo, *more)
        is_retry = life.Decide in map(type, more)
        if (is_retry or self.life.state.is_terminal) and self._attempts:
            name = type(event).__name__
            if not isinstance(event, life.StreamEnded):
                self._attempts[-1] = replace(self._attempts[-1], ended_by=name)
            if is_retry:
                self._services.redispatched(self._incoming.request_id, name, len(self._attempts))

    async def _perform(self, instruction: life.Instruction) -> life.Event | None:
        match instruction:
            case life.Reserve():
                return await self._reserve()
            case life.StartPrefill():
                return await self._start_prefill()
            case life.StartDecode():
                return await self._start_decode()
            case life.Relay():
                return await self._relay()
            case life.Fail(code):
                await self._fail(code)
                return None
            case _:
                return self._perform_at_once(instruction)

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
                self._give_back()
            case life.Suspect(worker_id):
                self._services.suspect(worker_id)
            case life.Fail(code):
                # The client cannot be waited for any more; the edge answers with the error.
                self.error = self._error(code)
            case life.Finish(state, code):
                self._finish(state.value, code)
            case _:
                raise AssertionError(f"{instruction} needs waiting")
        return None

    # --- Steps --------------------------------------------------------------------------------

    def _decide(self, excluded: tuple[str, ...]) -> life.Event:
        incoming, services = self._incoming, self._services
        features = RequestFeatures(
            request_id=incoming.request_id,
            model=incoming.output.model,
            input_tokens=len(incoming.tokens),
            output_tokens_max=incoming.sampling.output_tokens_max,
            sequence=self._sequence,
            prefix_hits=services.tracker.match(incoming.hashes, block_tokens=incoming.block_tokens),
            excluded=excluded,
        )
        attempt = services.decide(features)
        self._attempts.append(attempt)
        self._times["decided_s"] = self._elapsed_s()
        placement = attempt.decision.placement
        if placement is None:
            self._failure = attempt.decision.explanation
            return life.NoPlacement()
        self._prefill = attempt.view.worker(placement.prefill_worker)
        self._decode = attempt.view.worker(placement.decode_worker)
        assert self._prefill is not None, "a policy chooses among the workers of the view"
        assert self._decode is not None, "a policy chooses among the workers of the view"
        self._claim = _claim_of(attempt, placement, self._prefill, self._decode)
        services.tracker.claim(self._claim)
        self._is_prefill_claimed = True
        return life.Placed(placement.prefill_worker, placement.decode_worker)

    async def _reserve(self) -> life.Event:
        assert self._prefill is not None
        assert self._decode is not None
        assert self._claim is not None
        ttl_s = self._remaining_s() + _RESERVATION_SLACK_S
        prediction = self._attempts[-1].decision.prediction
        assert prediction is not None
        reservation = Reservation(
            reservation_id=self._job_id,
            owner=self._services.router_id,
            ttl_s=ttl_s,
            prefill_ttl_s=min(
                ttl_s, _PREFILL_TTL_FACTOR * prediction.ttft_s + _RESERVATION_SLACK_S
            ),
            prefill_worker=self._prefill.worker_id,
            prefill_incarnation=self._prefill.incarnation,
            prefill_tokens=self._claim.prefill_tokens,
            prefill_requests_max=self._prefill.requests_max,
            decode_worker=self._decode.worker_id,
            decode_incarnation=self._decode.incarnation,
            decode_requests_max=self._decode.requests_max,
            link=self._claim.link,
            link_bytes=self._claim.link_bytes,
        )
        # Held from here on: a call that is cancelled or times out may have been granted.
        self._reservation = reservation
        try:
            reply = await self._services.store.reserve(reservation)
        except StoreError:
            # Soft state only: without the store the workers themselves refuse what is too much.
            self._services.metrics.store_errors_total.labels("reserve").inc()
            self._services.tracker.store_lost()
            return life.Reserved()
        self._times["reserved_s"] = self._elapsed_s()
        if reply.refused_by is None:
            return life.Reserved()
        self._reservation = None
        worker = self._prefill if reply.refused_by.startswith("prefill") else self._decode
        self._failure = f"{worker.worker_id} refused the reservation: {reply.refused_by}"
        if reply.refused_by.endswith("gone"):
            self._services.tracker.forget_incarnation(worker.worker_id, worker.incarnation)
        self._release_claim()
        return life.ReservationRefused(worker.worker_id)

    async def _start_prefill(self) -> life.Event:
        assert self._prefill is not None
        assert self._decode is not None
        job = PrefillJob(
            request_id=self._job_id,
            incarnation=self._prefill.incarnation,
            fingerprint=self._prefill.fingerprint,
            scope=self._incoming.scope,
            token_width_bytes=self._incoming.tokens.width_bytes,
            destination=self._decode.datacenter,
            deadline_s=self._remaining_s(),
        )
        workers = self._services.workers
        try:
            self._location = await workers.prefill(self._prefill.url, job, self._incoming.tokens)
        except WorkerRefused as error:
            self._failure = error.message
            return life.PrefillRefused()
        except PeerError as error:
            self._failure = error.message
            return life.PrefillWorkerLost()
        self._times["prefill_accepted_s"] = self._elapsed_s()
        return life.PrefillAccepted()

    async def _start_decode(self) -> life.Event:
        assert self._decode is not None
        assert self._location is not None
        job = DecodeJob(
            request_id=self._job_id,
            incarnation=self._decode.incarnation,
            scope=self._incoming.scope,
            token_width_bytes=self._incoming.tokens.width_bytes,
            location=self._location,
            sampling=self._incoming.sampling,
            output=self._incoming.output,
            deadline_s=self._remaining_s(),
        )
        self._decode_sent_s = self._elapsed_s()
        try:
            self._stream = await self._services.workers.decode(
                self._decode.url, job, self._incoming.tokens
            )
            while batch := await self._stream.frames():
                frames = [frame for frame in batch if frame[0] is not FrameKind.ALIVE]
                if frames:
                    return self._first_frames(frames)
        except WorkerRefused as error:
            self._failure = error.message
            return life.DecodeRefused()
        except PeerError as error:
            self._failure = error.message
            return life.DecodeWorkerLost()
        self._failure = "the decode worker ended its stream without a token"
        return life.DecodeWorkerLost()

    def _first_frames(self, frames: list[tuple[FrameKind, bytes]]) -> life.Event:
        kind, payload = frames[0]
        if kind is FrameKind.CONTENT:
            self._first = frames
            self._times["first_token_s"] = self._elapsed_s()
            self._release_prefill_claim()
            return life.FirstToken()
        return self._failed_decode(payload)

    async def _relay(self) -> life.Event:
        assert self._stream is not None
        batch = self._first
        try:
            await self._sink.begin(self.headers)
            while batch:
                event = await self._copy(batch)
                if isinstance(event, life.StreamEnded):
                    self._answered = event
                    await self._read_rest(self._stream)
                if event is not None:
                    return event
                batch = await self._stream.frames()
        except ClientLeftError:
            return life.ClientGone()
        except PeerError as error:
            self._failure = error.message
            return life.DecodeWorkerLost()
        self._failure = "the decode worker ended its stream without a report"
        return life.DecodeWorkerLost()

    async def _read_rest(self, stream: DecodeStream) -> None:
        """Reading to the end lets the connection serve the next request; it is worth no wait."""
        try:
            async with asyncio.timeout(_REST_S):
                while await stream.frames():
                    pass
        except (PeerError, TimeoutError):
            # The answer was complete before: nothing that comes after it can harm it.
            return

    async def _copy(self, batch: list[tuple[FrameKind, bytes]]) -> life.Event | None:
        """Content goes to the client as it is; a report or a failure ends the stream."""
        content = [payload for kind, payload in batch if kind is FrameKind.CONTENT]
        if content:
            await self._sink.write(content[0] if len(content) == 1 else b"".join(content))
        for kind, payload in batch:
            if kind is FrameKind.REPORT:
                return self._reported(payload)
            if kind is FrameKind.FAILURE:
                self._failed_decode(payload)
                return life.DecodeWorkerLost()
        return None

    def _reported(self, payload: bytes) -> life.Event:
        try:
            self._report = DecodeReport.model_validate_json(payload)
        except ValidationError:
            self._failure = "the decode worker sent a malformed report"
            return life.DecodeWorkerLost()
        if not self._incoming.output.is_stream:
            # The whole answer came at once; its first token was earlier.
            self._times["first_token_s"] = self._decode_sent_s + self._report.first_token_s
        return life.StreamEnded()

    def _failed_decode(self, payload: bytes) -> life.Event:
        """A failure frame before the first token, as an event."""
        try:
            failure = DecodeFailure.model_validate_json(payload)
        except ValidationError:
            self._failure = "the decode worker sent a malformed failure"
            return life.DecodeWorkerLost()
        self._failure = failure.message
        if failure.code in TRANSFER_ERRORS:
            return life.KvUnavailable(failure.code)
        if failure.code == WorkerRefused.code:
            return life.DecodeRefused()
        return life.DecodeWorkerLost()

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
        detail = f": {self._failure}" if self._failure else ""
        attempts = len(self._attempts)
        tried = f" after {attempts} attempts" if attempts > 1 else ""
        said = _SAID.get(code, "the request failed")
        return error_for(code, f"{said}{tried}{detail}", retry_after_s=_RETRY_AFTER_S)

    def _close_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _give_back(self) -> None:
        self._release_claim()
        if self._reservation is not None:
            self._services.recorder.release(self._reservation)
            self._reservation = None

    def _release_prefill_claim(self) -> None:
        if self._claim is not None and self._is_prefill_claimed:
            self._services.tracker.prefill_done(self._claim)
            self._is_prefill_claimed = False

    def _release_claim(self) -> None:
        self._release_prefill_claim()
        if self._claim is not None:
            self._services.tracker.decode_done(self._claim)
            self._claim = None

    def _finish(self, outcome: str, code: str) -> None:
        self._release_claim()
        self._close_stream()
        incoming = self._incoming
        record = DecisionRecord(
            decision_id=incoming.decision_id,
            request_id=incoming.request_id,
            client_request_id=incoming.client_request_id,
            router=self._services.router_id,
            at=incoming.at,
            kind=incoming.output.kind,
            model=incoming.output.model,
            is_stream=incoming.output.is_stream,
            outcome=outcome,
            code=code,
            detail=self._failure if outcome != "done" else "",
            attempts=tuple(self._attempts),
            timeline=Timeline(**self._times, finished_s=self._elapsed_s()),
            report=self._report,
            story=self.life.story,
        )
        self._services.finished(record, self._reservation)
        self._reservation = None

    # --- Small ones ---------------------------------------------------------------------------

    @property
    def _placement(self) -> Placement | None:
        return self._attempts[-1].decision.placement if self._attempts else None

    @property
    def _job_id(self) -> str:
        """One id for each attempt, so that a late message of an old one finds nothing."""
        return f"{self._incoming.request_id}.{len(self._attempts)}"

    def _elapsed_s(self) -> float:
        return self._services.clock() - self._incoming.accepted_s

    def _remaining_s(self) -> float:
        return max(0.0, self._incoming.deadline_s - self._services.clock())


#: What each code that ends a flight means to its client.
_SAID = {
    "no_candidate": "no worker can take the request now",
    "deadline_exceeded": "the request was not finished in its time",
    "worker_lost": "a worker was lost",
    "worker_refused": "the workers refused the request",
    "internal_error": "the router failed; its log has the story of this request id",
}


def _claim_of(
    attempt: Attempt, placement: Placement, prefill: WorkerView, decode: WorkerView
) -> Claim:
    prediction = attempt.decision.prediction
    assert prediction is not None
    return Claim(
        prefill_worker=prefill.worker_id,
        prefill_incarnation=prefill.incarnation,
        prefill_tokens=prediction.uncached_tokens,
        decode_worker=decode.worker_id,
        decode_incarnation=decode.incarnation,
        link=link_id(placement.prefill_datacenter, placement.decode_datacenter)
        if placement.is_offloaded
        else None,
        link_bytes=prediction.transfer_bytes if placement.is_offloaded else 0,
    )
