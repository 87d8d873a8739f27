"""A request that ends workers is refused for a while; one that was there by chance is not."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from controlplane.router import quarantine as quarantine_module
from controlplane.router.quarantine import Quarantine


@dataclass
class Clock:
    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def quarantine(clock: Clock) -> Quarantine:
    """Two deaths within 300 s, among eight workers."""
    return Quarantine(deaths_max=2, window_s=300.0, workers=lambda: 8, clock=clock)


def test_nobody_is_refused_at_first(quarantine: Quarantine) -> None:
    assert not quarantine.refuses("a")
    assert repr(quarantine) == "<Quarantine 0 refused, 0 deaths>"


def test_one_death_is_no_proof(quarantine: Quarantine) -> None:
    quarantine.blame("a", "i1")

    assert not quarantine.refuses("a")


def test_two_deaths_of_different_lives_are(quarantine: Quarantine) -> None:
    quarantine.blame("a", "i1")
    quarantine.blame("a", "i2")

    assert quarantine.refuses("a")
    assert not quarantine.refuses("b")
    assert repr(quarantine) == "<Quarantine 1 refused, 2 deaths>"


def test_one_death_told_twice_is_one(quarantine: Quarantine) -> None:
    """Each router that hears of it, and every retry of the message, tells the same."""
    for _ in range(5):
        quarantine.blame("a", "i1")

    assert not quarantine.refuses("a")


def test_deaths_of_different_requests_do_not_add_up(quarantine: Quarantine) -> None:
    quarantine.blame("a", "i1")
    quarantine.blame("b", "i2")

    assert not quarantine.refuses("a")
    assert not quarantine.refuses("b")


def test_who_meets_no_more_deaths_than_chance_explains_is_a_bystander(
    quarantine: Quarantine,
) -> None:
    """With three other deaths in 30 s, a request of one second meets two once in 6,400 times."""
    for number in range(3):
        quarantine.died(f"other-{number}")

    quarantine.blame("a", "i1", 1.0)
    quarantine.blame("a", "i2", 1.0)
    of_two = quarantine.refuses("a")
    quarantine.blame("a", "i3", 1.0)

    assert not of_two
    assert quarantine.refuses("a")


def test_who_was_there_for_a_moment_only_is_hardly_a_bystander(quarantine: Quarantine) -> None:
    for number in range(3):
        quarantine.died(f"other-{number}")

    quarantine.blame("a", "i1", 0.05)
    quarantine.blame("a", "i2", 0.05)

    assert quarantine.refuses("a")


def test_who_was_there_for_long_at_one_death_and_a_moment_at_the_other_is_a_bystander(
    quarantine: Quarantine,
) -> None:
    for number in range(3):
        quarantine.died(f"other-{number}")

    quarantine.blame("a", "i1", 5.0)
    quarantine.blame("a", "i2", 0.2)

    assert not quarantine.refuses("a")


def test_what_others_tell_of_a_death_leaves_what_was_seen_here(quarantine: Quarantine) -> None:
    """A router hears its own words again, without how long the request had been there."""
    for number in range(3):
        quarantine.died(f"other-{number}")

    for life in ("i1", "i2"):
        quarantine.blame("a", life, 0.05)
        quarantine.blame("a", life)

    assert quarantine.refuses("a")


def test_a_death_heard_of_first_is_weighed_as_it_is_seen_here_then(quarantine: Quarantine) -> None:
    for number in range(3):
        quarantine.died(f"other-{number}")

    for life in ("i1", "i2"):
        quarantine.blame("a", life)
        quarantine.blame("a", life, 0.05)

    assert quarantine.refuses("a")


def test_the_longer_ago_the_others_died_the_less_they_explain(
    quarantine: Quarantine, clock: Clock
) -> None:
    for number in range(3):
        quarantine.died(f"other-{number}")
    clock.now_s += 250

    quarantine.blame("a", "i1", 1.0)
    quarantine.blame("a", "i2", 1.0)

    assert quarantine.refuses("a")


def test_two_that_end_workers_at_the_same_time_do_not_excuse_each_other(
    quarantine: Quarantine,
) -> None:
    for number in (1, 2):
        quarantine.blame("a", f"a{number}", 1.5)
        quarantine.blame("b", f"b{number}", 1.5)

    assert quarantine.refuses("a")
    assert quarantine.refuses("b")


def test_when_workers_die_all_the_time_nobody_can_be_told_apart(quarantine: Quarantine) -> None:
    for number in range(300):
        quarantine.died(f"other-{number}")

    for number in range(10):
        quarantine.blame("a", f"i{number}", 1.0)

    assert not quarantine.refuses("a")


def test_a_death_told_of_in_both_ways_is_one(quarantine: Quarantine) -> None:
    quarantine.died("i1")
    quarantine.blame("a", "i1")
    quarantine.blame("a", "i2")

    assert repr(quarantine) == "<Quarantine 1 refused, 2 deaths>"


def test_a_quarantine_ends(quarantine: Quarantine, clock: Clock) -> None:
    quarantine.blame("a", "i1")
    quarantine.blame("a", "i2")
    clock.now_s += 299.9
    before = quarantine.refuses("a")
    clock.now_s += 0.2

    assert before
    assert not quarantine.refuses("a")


def test_after_a_quarantine_the_count_begins_anew(quarantine: Quarantine, clock: Clock) -> None:
    quarantine.blame("a", "i1")
    clock.now_s += 200
    quarantine.blame("a", "i2")
    clock.now_s += 301
    assert not quarantine.refuses("a")

    quarantine.blame("a", "i3")

    assert not quarantine.refuses("a")


def test_a_death_that_is_long_ago_counts_no_more(quarantine: Quarantine, clock: Clock) -> None:
    quarantine.blame("a", "i1")
    clock.now_s += 301
    quarantine.blame("a", "i2")

    assert not quarantine.refuses("a")
    assert repr(quarantine) == "<Quarantine 0 refused, 1 deaths>"


def test_a_further_death_makes_it_longer(quarantine: Quarantine, clock: Clock) -> None:
    for number in range(2):
        quarantine.blame("a", f"i{number}")
    clock.now_s += 200
    quarantine.blame("a", "i2")
    clock.now_s += 200

    assert quarantine.refuses("a")


def test_what_is_remembered_is_bounded(
    quarantine: Quarantine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deaths, requests and refusals alike; the oldest are forgotten."""
    monkeypatch.setattr(quarantine_module, "_REMEMBERED_MAX", 4)
    for number in range(10):
        for life in "xy":
            quarantine.blame(f"request-{number}", f"{number}-{life}", 0.01)

    assert len(quarantine._deaths) == 4
    assert len(quarantine._present) == 4
    assert len(quarantine._until_s) <= 4
    assert quarantine.refuses("request-9")
    assert not quarantine.refuses("request-0")


def test_one_death_is_enough_where_it_is_configured_so(clock: Clock) -> None:
    quarantine = Quarantine(deaths_max=1, window_s=300.0, workers=lambda: 8, clock=clock)

    quarantine.blame("a", "i1")

    assert quarantine.refuses("a")


def test_deaths_that_are_forgotten_are_not_kept_for_a_request(
    quarantine: Quarantine, clock: Clock
) -> None:
    """One that meets a death now and then, for months, costs no more than one."""
    for number in range(5):
        quarantine.blame("a", f"i{number}")
        clock.now_s += 301

    assert {digest: len(lives) for digest, lives in quarantine._present.items()} == {"a": 1}
    assert not quarantine.refuses("a")
