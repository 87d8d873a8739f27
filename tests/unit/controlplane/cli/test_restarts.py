from __future__ import annotations

import pytest

from controlplane.cli.restarts import Deaths


def waits(lives_s: list[float]) -> list[float | None]:
    """The wait after each of these lives, one after another."""
    deaths, now_s, found = Deaths(), 0.0, []
    for lived_s in lives_s:
        now_s += lived_s
        deaths = deaths.and_one(now_s, lived_s=lived_s)
        found.append(deaths.wait_s)
        now_s += deaths.wait_s or 0
    return found


def test_each_wait_is_twice_the_last_up_to_a_bound() -> None:
    assert waits([20] * 8) == [1, 2, 4, 8, 16, 30, 30, 30]


def test_what_dies_five_times_within_a_minute_is_given_up() -> None:
    assert waits([0.5] * 5) == [1, 2, 4, 8, None]


def test_deaths_that_are_a_minute_apart_are_accidents() -> None:
    assert waits([60.0] * 10) == [1] * 10


def test_a_long_life_is_forgiven_what_came_before() -> None:
    assert waits([0.5, 0.5, 0.5, 3600, 0.5]) == [1, 2, 4, 1, 2]


@pytest.mark.parametrize("lived_s", [59.9, 30.0])
def test_a_life_that_was_too_short_is_not(lived_s: float) -> None:
    assert waits([0.5, lived_s]) == [1, 2]
