"""The judge sees each thing that may be wrong, in histories made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chaos.hand_made import a_run, an_attempt
from chaos.judge import judge
from chaos.report import write_report


@pytest.mark.parametrize("check", ["lost", "wrong", "repeated", "broken", "leaks", "crashes"])
def test_a_right_answer_breaks_no_promise(tmp_path: Path, check: str) -> None:
    verdict = a_run(tmp_path, [an_attempt()], check)

    assert verdict.is_kept
    assert verdict.n


@pytest.mark.parametrize(
    ("check", "changes"),
    [
        ("lost", {"end": "timeout"}),
        ("lost", {"end": "silent"}),
        ("lost", {"end": "refused"}),
        ("wrong", {"text": "upon a tide"}),
        ("wrong", {"output_tokens": 5}),
        ("wrong", {"finish_reason": "stop"}),
        ("wrong", {"text": "up a", "end": "error"}),
        ("wrong", {"text": "", "pieces": []}),
        ("repeated", {"text": "upon a a time"}),
        ("repeated", {"text": "upon time"}),
        ("broken", {"end": "broken", "text": "upon"}),
    ],
)
def test_each_failure_is_seen(tmp_path: Path, check: str, changes: dict[str, Any]) -> None:
    verdict = a_run(tmp_path, [an_attempt(), an_attempt(**changes)], check)

    assert not verdict.is_kept
    assert verdict.value == 1


def test_the_beginning_of_a_right_answer_is_not_wrong(tmp_path: Path) -> None:
    assert a_run(tmp_path, [an_attempt("upon a", end="error")], "wrong").is_kept


@pytest.mark.parametrize(("router", "is_kept"), [("router-0", True), ("router-1", False)])
def test_only_the_death_of_its_own_router_may_break_a_stream(
    tmp_path: Path, router: str, *, is_kept: bool
) -> None:
    events = [{"at_s": 10.9, "wall_s": 0, "event": "kill", "target": router}]

    verdict = a_run(tmp_path, [an_attempt(end="broken")], "broken", events=events)

    assert verdict.is_kept is is_kept


def test_a_death_at_another_time_does_not_excuse(tmp_path: Path) -> None:
    events = [{"at_s": 99.0, "wall_s": 0, "event": "kill", "target": "router-0"}]

    assert not a_run(tmp_path, [an_attempt(end="broken")], "broken", events=events).is_kept


def test_explicit_errors_count_against_success_alone(tmp_path: Path) -> None:
    attempts = [an_attempt()] * 9 + [an_attempt("", pieces=[], end="error", code="worker_lost")]

    verdict = a_run(tmp_path, attempts, "success", bound=0.95)

    assert not verdict.is_kept
    assert verdict.value == pytest.approx(0.9)
    assert "worker_lost" in verdict.what
    assert a_run(tmp_path, attempts, "lost").is_kept


@pytest.mark.parametrize(
    "end",
    [
        {"redis": {"reserved": 1}},
        {"workers": {"w": {"prfaas_leases_active": 2.0}}},
        {"routers": {"r": {"prfaas_requests_in_flight": 1.0}}},
    ],
)
def test_whatever_is_held_at_the_end_is_a_leak(tmp_path: Path, end: dict[str, Any]) -> None:
    assert not a_run(tmp_path, [an_attempt()], "leaks", end=end).is_kept


def test_a_process_that_ends_unasked_has_crashed(tmp_path: Path) -> None:
    ended = {"at_s": 5.0, "wall_s": 0, "event": "ended", "target": "router-0", "status": 1}
    killed = {"at_s": 4.9, "wall_s": 0, "event": "kill", "target": "router-0", "hit": True}

    assert a_run(tmp_path, [an_attempt()], "crashes", events=[killed, ended]).is_kept
    assert not a_run(tmp_path, [an_attempt()], "crashes", events=[killed, ended, ended]).is_kept


def test_a_check_that_saw_nothing_is_not_kept(tmp_path: Path) -> None:
    verdict = a_run(tmp_path, [an_attempt()], "rebuilt", bound=2.0)

    assert verdict.n == 0
    assert not verdict.is_kept


def test_a_zero_is_said_with_what_it_bounds(tmp_path: Path) -> None:
    verdict = a_run(tmp_path, [an_attempt()] * 300, "lost")

    assert "below 1.0e-02 with 95 %" in str(verdict)


def test_silence_in_a_stream_beside_a_death_is_measured(tmp_path: Path) -> None:
    slow = an_attempt(pieces=[(10.0, "upon"), (14.0, " a"), (14.1, " time")], ended_s=14.2)
    events = [{"at_s": 11.0, "wall_s": 0, "event": "kill", "target": "west/decode-0"}]

    verdict = a_run(tmp_path, [slow], "stall", bound=5.0, events=events, role="decode")

    assert verdict.value == pytest.approx(4.0)


def test_judging_again_says_the_same(tmp_path: Path) -> None:
    first = a_run(tmp_path, [an_attempt()], "lost")

    assert judge(tmp_path) == [first]
    assert json.loads((tmp_path / "verdict.json").read_text())[0]["is_kept"] is True


def test_the_table_of_promises_says_what_was_measured_and_what_was_not_kept(
    tmp_path: Path,
) -> None:
    a_run(tmp_path, [an_attempt()] * 3 + [an_attempt(end="timeout")], "lost")

    write_report(tmp_path / "promises.md", [tmp_path / "verdict.json"])

    text = (tmp_path / "promises.md").read_text()
    assert "| P00 | none | requests lost | 1 | ≤ 0 | 4 | **broken** |" in text
    assert "0 of 1 kept." in text
    assert "| hand | 4 | 12.0 | 20.0 |" in text
