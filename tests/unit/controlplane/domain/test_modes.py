"""The steps of the degraded ladder, and what a prefix hit is worth on them."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.domain.modes import MODES, Mode, ModeRules, is_wary, mode_of, prefix_trust

RULES = ModeRules()


def mode(**overrides: Any) -> Mode:
    """Ten workers that answer a router whose store is there."""
    values: dict[str, Any] = {
        "view_age_s": 0.1,
        "is_store_away": False,
        "known": 10,
        "answering": 10,
    }
    return mode_of(**(values | overrides), rules=RULES)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, "normal"),
        ({"view_age_s": 2.0}, "normal"),
        ({"view_age_s": 2.1}, "stale_view"),
        ({"view_age_s": 31.0}, "stale_view"),
        ({"is_store_away": True}, "normal"),
        ({"is_store_away": True, "view_age_s": 1.0}, "normal"),
        ({"is_store_away": True, "view_age_s": 1.1}, "store_down"),
        ({"is_store_away": True, "view_age_s": 31.0}, "store_down"),
        ({"is_store_away": True, "view_age_s": 31.0, "answering": 5}, "store_down"),
        ({"is_store_away": True, "view_age_s": 30.0, "answering": 0}, "store_down"),
        ({"is_store_away": True, "view_age_s": 31.0, "answering": 4}, "local_only"),
        ({"is_store_away": True, "view_age_s": 31.0, "answering": 0}, "shed"),
        ({"is_store_away": True, "view_age_s": 31.0, "answering": 0, "known": 0}, "shed"),
    ],
)
def test_the_step_follows_from_what_is_heard(facts: dict[str, Any], expected: Mode) -> None:
    assert mode(**facts) == expected


def test_a_slow_call_to_a_store_that_is_heard_changes_nothing() -> None:
    """Or each call over its time would send long prompts another way for a moment."""
    assert mode(is_store_away=True, view_age_s=0.6) == "normal"


def test_an_hour_without_the_store_is_no_reason_to_stop_while_workers_answer() -> None:
    assert mode(is_store_away=True, view_age_s=3600.0) == "store_down"


@pytest.mark.parametrize(
    ("age_s", "trust"),
    [(0.0, 1.0), (2.0, 1.0), (2.1, 0.5), (3.0, 0.5), (3.1, 0.25), (12.0, 1 / 1024), (12.1, 0.0)],
)
def test_a_prefix_hit_is_halved_with_each_second(age_s: float, trust: float) -> None:
    assert prefix_trust(age_s, RULES) == trust


def test_a_view_of_years_is_trusted_for_nothing() -> None:
    assert prefix_trust(1e9, RULES) == 0.0


def test_everything_but_the_top_is_wary() -> None:
    assert [is_wary(one) for one in MODES] == [False, True, True, True, True]
