from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from controlplane.domain.decision import Candidate, Decision, Placement, Prediction, Told


def a_decision(*candidates: str, copy_from: str | None = None, **overrides: Any) -> Decision:
    placement = Placement(
        prefill_worker="west/p1",
        prefill_datacenter="west",
        decode_worker="west/d1",
        decode_datacenter="west",
        copy_from_worker=copy_from,
    )
    values: dict[str, Any] = {
        "placement": placement,
        "reason": "local_only",
        "explanation": "",
        "prediction": None,
        "candidates": tuple(
            Candidate(worker_id=name, datacenter="west", role="prefill") for name in candidates
        ),
    }
    return Decision(**(values | overrides))


@pytest.mark.parametrize(
    ("decision", "named"),
    [
        pytest.param(a_decision("west/p1"), ("west/p1",), id="candidates"),
        pytest.param(
            a_decision("west/p1", copy_from="east/p1"),
            ("west/p1", "east/p1"),
            id="the source of a copy that is no candidate",
        ),
        pytest.param(
            a_decision("west/p1", "east/p1", copy_from="east/p1"),
            ("west/p1", "east/p1"),
            id="one that is",
        ),
        pytest.param(a_decision("west/p1", placement=None), ("west/p1",), id="no placement"),
    ],
)
def test_a_decision_names_candidates_and_the_source_of_a_copy(
    decision: Decision, named: tuple[str, ...]
) -> None:
    """Those are kept of a large view, for its record and for the copy itself."""
    assert decision.named_workers == named


def test_candidates_of_a_decision_are_made_when_they_are_first_read_and_once() -> None:
    whole = a_decision("west/p1", omitted={"full": 3}, margin_s=0.5)
    made: list[str] = []

    def explain() -> Told:
        made.append("made")
        return whole.candidates, whole.omitted, whole.margin_s

    assert whole.placement is not None
    prediction = Prediction(
        uncached_tokens=1,
        transfer_bytes=2,
        queue_s=0.0,
        prefill_s=0.1,
        transfer_s=0.0,
        state_tail_s=0.0,
        rtt_s=0.0,
        ttft_s=0.1,
    )
    decision = Decision.explained_later(
        whole.placement, whole.reason, whole.explanation, prediction, explain
    )

    assert (decision.placement, decision.reason) == (whole.placement, "local_only")
    assert made == [], "nobody has asked"
    assert decision == replace(whole, prediction=prediction)
    assert decision.margin_s == 0.5
    assert made == ["made"]
