"""The messages of one attempt, and the words for an attempt that was the last."""

from __future__ import annotations

from collections.abc import Sequence

from controlplane.config import LimitsConfig
from controlplane.domain import lifecycle as life
from controlplane.domain.cluster import WorkerView
from controlplane.domain.decision import Placement
from controlplane.domain.prefix import BlockHash, block_hashes
from controlplane.domain.tokens import TokenIds
from controlplane.errors import PrfaasError, error_for
from controlplane.router.incoming import Incoming
from controlplane.router.records import Attempt, DecisionRecord, Timeline
from controlplane.wire import DecodeJob, DecodeReport, KvLocation, PrefillJob

#: What a client is asked to wait after a failure that another attempt may not meet.
_RETRY_AFTER_S = 1.0

#: What each code that ends a flight means to its client.
_SAID = {
    "no_candidate": "no worker can take the request now",
    "deadline_exceeded": "the request was not finished in its time",
    "worker_lost": "a worker was lost",
    "worker_timeout": "a worker did not answer in time",
    "worker_refused": "the workers refused the request",
    "request_quarantined": "this request has ended workers and is not tried again for a while",
    "draining": "this router is leaving and the request had not ended in time; another can take it",
    "internal_error": "the router failed; its log has the story of this request id",
}

#: Codes that a client should not try again with.
_NOT_AGAIN = frozenset({"request_quarantined", "internal_error"})


def terms_of(incoming: Incoming, limits: LimitsConfig, *, can_wait: bool) -> life.Terms:
    """What a request may ask of the system."""
    sampling = incoming.sampling
    return life.Terms(
        attempts_max=limits.redispatch_max,
        migrations_max=limits.migrations_max,
        # A seeded draw depends on how many were drawn before it, which only its worker knows.
        can_resume=sampling.temperature == 0 or sampling.seed is None,
        is_stream=incoming.output.is_stream,
        can_wait=can_wait,
    )


def tokens_of(incoming: Incoming, output: Sequence[int]) -> TokenIds:
    """The prompt, and the output so far behind it."""
    prompt = incoming.tokens
    if not output:
        return prompt
    return TokenIds(
        prompt.data + TokenIds.from_ints(output, prompt.width_bytes).data, prompt.width_bytes
    )


def hashes_of(incoming: Incoming, tokens: TokenIds) -> tuple[BlockHash, ...]:
    """Block hashes of all tokens but the last."""
    if tokens is incoming.tokens:
        return incoming.hashes
    covered = tokens.head(len(tokens) - 1)
    return block_hashes(covered, block_tokens=incoming.block_tokens, scope=incoming.scope)


def prefill_job(
    incoming: Incoming,
    job_id: str,
    tokens: TokenIds,
    *,
    prefill: WorkerView,
    decode: WorkerView,
    remaining_s: float,
    prefix: KvLocation | None = None,
) -> PrefillJob:
    """The header of a prefill job."""
    return PrefillJob(
        request_id=job_id,
        incarnation=prefill.incarnation,
        fingerprint=prefill.fingerprint,
        scope=incoming.scope,
        token_width_bytes=tokens.width_bytes,
        destination=decode.datacenter,
        deadline_s=remaining_s,
        prefix=prefix,
    )


def decode_job(
    incoming: Incoming,
    job_id: str,
    tokens: TokenIds,
    *,
    resumed_tokens: int,
    decode: WorkerView,
    location: KvLocation,
    remaining_s: float,
) -> DecodeJob:
    """The header of a decode job; the last `resumed_tokens` of `tokens` are output already."""
    return DecodeJob(
        request_id=job_id,
        resumed_tokens=resumed_tokens,
        wants_tokens=True,
        incarnation=decode.incarnation,
        scope=incoming.scope,
        token_width_bytes=tokens.width_bytes,
        location=location,
        sampling=incoming.sampling,
        output=incoming.output,
        deadline_s=remaining_s,
    )


def answer_headers(incoming: Incoming, placement: Placement | None) -> dict[str, str]:
    """Headers that say who served a request, as far as it got."""
    headers = {
        "x-request-id": incoming.request_id,
        "x-prfaas-decision": incoming.decision_id,
    }
    if placement is not None:
        headers["x-prfaas-prefill"] = placement.prefill_worker
        headers["x-prfaas-decode"] = placement.decode_worker
    if incoming.client_request_id is not None:
        headers["x-client-request-id"] = incoming.client_request_id
    return headers


def record_of(
    incoming: Incoming,
    *,
    router: str,
    outcome: str,
    code: str,
    detail: str,
    attempts: tuple[Attempt, ...],
    timeline: Timeline,
    report: DecodeReport | None,
    story: tuple[str, ...],
) -> DecisionRecord:
    """The record of a request that is over; fields are those of `DecisionRecord`."""
    return DecisionRecord(
        decision_id=incoming.decision_id,
        request_id=incoming.request_id,
        client_request_id=incoming.client_request_id,
        router=router,
        at=incoming.at,
        kind=incoming.output.kind,
        model=incoming.output.model,
        is_stream=incoming.output.is_stream,
        outcome=outcome,
        code=code,
        detail=detail,
        attempts=attempts,
        timeline=timeline,
        report=report,
        story=story,
    )


def final_error(code: str, *, attempts: int, detail: str) -> PrfaasError:
    """What the client is told at the end of a request that failed."""
    said = _SAID.get(code, "the request failed")
    tried = f" after {attempts} attempts" if attempts > 1 else ""
    because = f": {detail}" if detail else ""
    retry_after_s = None if code in _NOT_AGAIN else _RETRY_AFTER_S
    return error_for(code, f"{said}{tried}{because}", retry_after_s=retry_after_s)
