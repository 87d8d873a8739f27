"""
A decision record in words and in rows, for the API, the page and the command line. Pure.

Nothing is computed again: the sentence and the rows say what was recorded, so a record reads the
same years later, whatever the policies have become.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from controlplane.admin.text import count, seconds, size
from controlplane.domain.cluster import Role, link_id
from controlplane.domain.decision import Candidate, Decision, Placement
from controlplane.router.records import Attempt, DecisionRecord
from controlplane.wire import DecodeReport

#: How a candidate fared: `verdict` says it in words.
Fate: TypeAlias = Literal["chosen", "rejected", "lost"]

#: What each event that ends an attempt says of the worker that failed.
_FAILED: Final = {
    "ReservationRefused": "the reservation at {worker} was refused",
    "PrefillRefused": "{worker} refused the prefill",
    "PrefillWorkerLost": "{worker} was lost before it accepted the prefill",
    "PrefillTimedOut": "{worker} did not accept the prefill in time",
    "LinkDown": "the connection to the KV of {worker} broke",
    "LinkStalled": "the KV of {worker} came to a halt",
    "KvChunkCorrupt": "the KV of {worker} arrived corrupt",
    "LeaseExpired": "{worker} no longer had the KV",
    "SegmentFailed": "the prefill at {worker} failed",
    "DecodeRefused": "{worker} refused to decode",
    "DecodeWorkerLost": "{worker} was lost while it decoded",
    "DecodeTimedOut": "{worker} fell silent while it decoded",
    "EngineStalled": "the engine of {worker} hung",
    "DecodeLeft": "{worker} left and handed its output over",
    "NoPlacement": "nobody else could take it then",
}

_BY_DECODE: Final = frozenset(
    {"DecodeRefused", "DecodeWorkerLost", "DecodeTimedOut", "EngineStalled", "DecodeLeft"}
)

#: A count of four figures or more that is not part of a name or a decimal.
_LONG_COUNT: Final = re.compile(r"(?<![\w./:>-])\d{4,15}(?![\w/:>-]|\.\d)")


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateRow:
    """One worker that was looked at, and why it was or was not taken."""

    #: Which attempt looked at it, from 1.
    attempt: int
    worker_id: str
    datacenter: str
    role: Role
    fate: Fate
    #: `chosen`, `rejected by full`, `lost by 120 ms`, ...
    verdict: str
    #: The numbers behind a rejection; empty otherwise.
    detail: str
    #: Requests it had, and leading tokens of the prompt it held.
    pending_requests: int
    held_tokens: int
    #: Predicted terms; None for decode workers and for rejected ones.
    uncached_tokens: int | None = None
    transfer_bytes: int | None = None
    queue_s: float | None = None
    prefill_s: float | None = None
    transfer_s: float | None = None
    state_tail_s: float | None = None
    rtt_s: float | None = None
    ttft_s: float | None = None


def sentence(record: DecisionRecord) -> str:
    """What was decided, why, and what came of it."""
    return " ".join(_clauses(record))


def candidate_rows(record: DecisionRecord) -> tuple[CandidateRow, ...]:
    """The candidates of all attempts, in their order: taken ones first, rejected ones last."""
    rows: list[CandidateRow] = []
    for number, attempt in enumerate(record.attempts, start=1):
        decision = attempt.decision
        found = [_row(number, candidate, decision) for candidate in decision.candidates]
        rows.extend(sorted(found, key=_rank))
    return tuple(rows)


def omitted_words(attempt: Attempt) -> str:
    """`12 more were left out of the record: 9 full, 3 feasible`; empty when none was."""
    omitted = attempt.decision.omitted
    if not omitted:
        return ""
    by_reason = ", ".join(f"{count(number)} {by}" for by, number in sorted(omitted.items()))
    return f"{count(sum(omitted.values()))} more were left out of the record: {by_reason}"


# --- The sentence -----------------------------------------------------------------------------


def _clauses(record: DecisionRecord) -> Iterator[str]:
    if not record.attempts:
        yield "It ended before anything was decided."
    else:
        decision = record.attempts[-1].decision
        if decision.placement is not None:
            yield _placed(record, decision, decision.placement)
    failures = list(_failures(record))
    if record.outcome == "done":
        if failures:
            yield f"It needed {len(record.attempts)} attempts: {', then '.join(failures)}."
        yield _delivered(record)
    else:
        yield _ended(record)
        if failures:
            yield f"Before that, {', then '.join(failures)}."


def _placed(record: DecisionRecord, decision: Decision, placement: Placement) -> str:
    why = _why(decision.explanation, placement)
    done = record.outcome == "done"
    prefilled, decoded = ("Prefilled", "decoded") if done else ("Placed for prefill", "for decode")
    if placement.is_offloaded:
        return (
            f"{prefilled} in {placement.prefill_datacenter} by {placement.prefill_worker} and "
            f"{decoded} in {placement.decode_datacenter} by {placement.decode_worker}: {why}."
        )
    return (
        f"{prefilled} by {placement.prefill_worker} and {decoded} by {placement.decode_worker}, "
        f"both in {placement.decode_datacenter}: {why}."
    )


def _why(explanation: str, placement: Placement) -> str:
    """The policy's reason, without the conclusion that the sentence has drawn already."""
    why = explanation.rstrip(". ")
    for conclusion in (": offloaded", f": kept in {placement.decode_datacenter}"):
        why = why.removesuffix(conclusion)
    return _LONG_COUNT.sub(lambda found: count(int(found[0])), why)


def _delivered(record: DecisionRecord) -> str:
    attempt = record.attempts[-1] if record.attempts else None
    decision = attempt.decision if attempt else None
    said = "It took"
    if decision is not None and decision.prediction is not None:
        said = f"Predicted first token in {seconds(decision.prediction.ttft_s)}, it took"
    first_token_s = record.timeline.first_token_s
    said = f"{said} {seconds(first_token_s)}" if first_token_s is not None else "No token came"
    if record.report is None or decision is None or decision.placement is None:
        return f"{said}."
    moved, placement = record.report.transfer.bytes, decision.placement
    if not placement.is_offloaded:
        return f"{said}; {size(moved)} moved inside {placement.decode_datacenter}."
    link = link_id(placement.prefill_datacenter, placement.decode_datacenter)
    return f"{said}; {size(moved)} crossed {link}{_proof(record.report)}."


def _proof(report: DecodeReport) -> str:
    """What an engine that moves its KV itself says of it."""
    if report.transfer.is_mismatch:
        computed = count(report.prompt_tokens_computed)
        return f", but the decode engine computed {computed} prompt tokens itself"
    return (
        ", as the decode engine's own count says" if report.transfer.evidence == "counted" else ""
    )


def _ended(record: DecisionRecord) -> str:
    """How a request that was not answered came to its end."""
    first_token_s = record.timeline.first_token_s
    when = (
        "before its first token"
        if first_token_s is None
        else f"after its first token, which took {seconds(first_token_s)}"
    )
    if record.outcome == "cancelled":
        return f"The client left after {seconds(record.timeline.finished_s)}, {when}."
    detail = record.detail.rstrip(". ")
    because = f": {_LONG_COUNT.sub(lambda found: count(int(found[0])), detail)}" if detail else ""
    if record.outcome == "rejected":
        return f"Rejected with {record.code}{because}."
    attempts = len(record.attempts)
    tried = f" and {attempts} attempts" if attempts > 1 else ""
    after = f"after {seconds(record.timeline.finished_s)}{tried}, {when}"
    return f"It failed with {record.code} {after}{because}."


def _failures(record: DecisionRecord) -> Iterator[str]:
    """Each attempt that was followed by another: which worker failed, and how."""
    for attempt, following in zip(record.attempts, record.attempts[1:], strict=False):
        known = len(attempt.features.excluded)
        failed = following.features.excluded[known:] or _blamed(attempt)
        said = _FAILED.get(attempt.ended_by, f"{{worker}} ended it with {attempt.ended_by}")
        resumed_tokens = following.features.resumed_tokens
        along = f", and {count(resumed_tokens)} tokens of output were taken along"
        yield said.replace("{worker}", _listed(failed)) + (along if resumed_tokens else "")


def _blamed(attempt: Attempt) -> tuple[str, ...]:
    placement = attempt.decision.placement
    if placement is None:
        return ()
    is_decode = attempt.ended_by in _BY_DECODE
    return (placement.decode_worker if is_decode else placement.prefill_worker,)


def _listed(names: Iterable[str]) -> str:
    return " and ".join(names) or "a worker"


# --- The rows ---------------------------------------------------------------------------------

_RANKS: Final[dict[Fate, int]] = {"chosen": 0, "lost": 1, "rejected": 2}


def _rank(row: CandidateRow) -> tuple[bool, int, float, str]:
    return (row.role == "decode", _RANKS[row.fate], row.ttft_s or 0.0, row.worker_id)


def _row(number: int, candidate: Candidate, decision: Decision) -> CandidateRow:
    fate, verdict = _verdict(candidate, decision)
    prediction = candidate.prediction
    return CandidateRow(
        attempt=number,
        worker_id=candidate.worker_id,
        datacenter=candidate.datacenter,
        role=candidate.role,
        fate=fate,
        verdict=verdict,
        detail=candidate.detail,
        pending_requests=candidate.pending_requests,
        held_tokens=candidate.held_tokens,
        uncached_tokens=prediction.uncached_tokens if prediction else None,
        transfer_bytes=prediction.transfer_bytes if prediction else None,
        queue_s=prediction.queue_s if prediction else None,
        prefill_s=prediction.prefill_s if prediction else None,
        transfer_s=prediction.transfer_s if prediction else None,
        state_tail_s=prediction.state_tail_s if prediction else None,
        rtt_s=prediction.rtt_s if prediction else None,
        ttft_s=prediction.ttft_s if prediction else None,
    )


def _verdict(candidate: Candidate, decision: Decision) -> tuple[Fate, str]:
    if candidate.rejected_by is not None:
        return "rejected", f"rejected by {candidate.rejected_by}"
    placement, best = decision.placement, decision.prediction
    if placement is None:
        return "lost", "not chosen"
    if candidate.worker_id in (placement.prefill_worker, placement.decode_worker):
        return "chosen", "chosen"
    if candidate.prediction is None or best is None:
        return "lost", "not chosen"
    behind_s = candidate.prediction.ttft_s - best.ttft_s
    if behind_s < 0:
        return "lost", f"passed over, {seconds(-behind_s)} faster"
    return "lost", f"lost by {seconds(behind_s)}"
