"""What a decision compared, copied and was watched by, as lines for people. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from controlplane.admin.text import count, seconds, size, words
from controlplane.domain.decision import Candidate, CostTerm, Decision
from controlplane.router.records import Attempt, DecisionRecord
from controlplane.router.shadows import ShadowDecision

Topic: TypeAlias = Literal["compared", "copied", "guessed", "shadow"]

#: What each topic is called.
TITLES: Final[dict[Topic, str]] = {
    "compared": "What was compared",
    "copied": "Copied before",
    "guessed": "Guessed",
    "shadow": "In the shadow",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """One line about one attempt."""

    attempt: int
    topic: Topic
    text: str


def notes(record: DecisionRecord) -> tuple[Note, ...]:
    """Notes on all attempts; none where a policy compares nothing but predicted TTFT."""
    return tuple(
        Note(attempt=number, topic=topic, text=text)
        for number, attempt in enumerate(record.attempts, start=1)
        for topic, text in _of(attempt)
    )


def _of(attempt: Attempt) -> Iterator[tuple[Topic, str]]:
    decision = attempt.decision
    costed = [one for one in decision.candidates if one.prediction and one.prediction.costs]
    for candidate in sorted(costed, key=_cost_s):
        yield "compared", _cost(candidate, decision)
    placement, prediction = decision.placement, decision.prediction
    if placement is not None and prediction is not None and placement.copy_from_worker is not None:
        said = f"{count(placement.copy_tokens)} cached tokens from {placement.copy_from_worker}"
        yield (
            "copied",
            f"{said}, {size(prediction.copy_bytes)} in {seconds(prediction.copy_s)} as predicted",
        )
    for candidate in decision.candidates:
        if candidate.is_held_guessed:
            said = f"{count(candidate.held_tokens)} cached tokens at {candidate.worker_id}"
            yield (
                "guessed",
                f"{said}, by what was sent there: its engine does not tell of its cache",
            )
    for shadow in attempt.shadows:
        yield "shadow", _shadow(shadow)


def _terms(candidate: Candidate) -> tuple[CostTerm, ...]:
    return candidate.prediction.costs if candidate.prediction else ()


def _cost_s(candidate: Candidate) -> float:
    return sum(term.weighed_s for term in _terms(candidate))


def _cost(candidate: Candidate, decision: Decision) -> str:
    """`east/p1 2.41 s = queue 0.10 s + prefill 2.00 s + egress 0.31 s for 0.03; chosen`."""
    parts = []
    for term in _terms(candidate):
        money = f" for {term.amount:.3g}" if term.unit == "currency" else ""
        parts.append(f"{term.name} {seconds(term.weighed_s)}{money}")
    said = f"{candidate.worker_id} {seconds(_cost_s(candidate))} = {' + '.join(parts)}"
    placement = decision.placement
    is_chosen = placement is not None and placement.prefill_worker == candidate.worker_id
    return f"{said}; chosen" if is_chosen else said


def _shadow(shadow: ShadowDecision) -> str:
    if shadow.fault is not None:
        return f"{shadow.policy} gave no answer: {shadow.fault}"
    if shadow.placement is None:
        return f"{shadow.policy} would have placed it nowhere: {shadow.explanation}"
    if shadow.is_same:
        return f"{shadow.policy} would have done the same, for {words(shadow.reason)}"
    placement = shadow.placement
    return (
        f"{shadow.policy} would have prefilled at {placement.prefill_worker} and decoded at "
        f"{placement.decode_worker}: {shadow.explanation}"
    )
