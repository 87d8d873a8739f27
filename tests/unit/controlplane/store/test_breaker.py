"""The circuit breaker: pure, with a clock and dice of our own."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.config import StoreConfig
from controlplane.store.breaker import Breaker


@dataclass
class FakeClock:
    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def breaker(clock: FakeClock) -> Breaker:
    return Breaker(failures_max=3, probe_s=1.0, clock=clock, rng=Random(1))


def fail(breaker: Breaker, times: int) -> None:
    for _ in range(times):
        breaker.failed()


def test_closed_it_allows_everything(breaker: Breaker) -> None:
    assert all(breaker.allows() for _ in range(100))
    assert breaker.probe_in_s == 0


def test_it_opens_with_the_third_failure_in_a_row(breaker: Breaker) -> None:
    fail(breaker, 2)
    before = breaker.is_open
    fail(breaker, 1)

    assert (before, breaker.is_open) == (False, True)
    assert breaker.opened_total == 1


def test_a_success_between_failures_starts_the_count_again(breaker: Breaker) -> None:
    fail(breaker, 2)
    breaker.succeeded()
    fail(breaker, 2)

    assert not breaker.is_open


def test_open_it_refuses_until_the_first_probe_is_due(breaker: Breaker, clock: FakeClock) -> None:
    fail(breaker, 3)
    due_s = breaker.probe_in_s
    refused = breaker.allows()
    clock.now_s += due_s * 0.99
    refused_still = breaker.allows()
    clock.now_s += due_s * 0.02

    assert 0.8 <= due_s <= 1.2
    assert (refused, refused_still) == (False, False)
    assert breaker.allows()


def test_one_probe_is_let_through_at_a_time(breaker: Breaker, clock: FakeClock) -> None:
    fail(breaker, 3)
    clock.now_s += 2

    assert [breaker.allows() for _ in range(5)] == [True, False, False, False, False]


def test_a_probe_that_reports_nothing_delays_the_next_by_nothing(
    breaker: Breaker, clock: FakeClock
) -> None:
    fail(breaker, 3)
    clock.now_s += 2
    assert breaker.allows()

    clock.now_s += 1.2

    assert breaker.allows()


def test_a_probe_that_fails_leaves_it_open(breaker: Breaker, clock: FakeClock) -> None:
    fail(breaker, 3)
    clock.now_s += 2
    assert breaker.allows()
    breaker.failed()

    assert breaker.is_open
    assert not breaker.allows()
    assert breaker.opened_total == 1


def test_a_probe_that_succeeds_closes_it(breaker: Breaker, clock: FakeClock) -> None:
    fail(breaker, 3)
    clock.now_s += 2
    assert breaker.allows()
    breaker.succeeded()

    assert not breaker.is_open
    assert breaker.allows()


def test_it_opens_again_after_as_many_failures_as_before(breaker: Breaker) -> None:
    fail(breaker, 3)
    breaker.succeeded()
    fail(breaker, 2)
    before = breaker.is_open
    fail(breaker, 1)

    assert (before, breaker.is_open) == (False, True)
    assert breaker.opened_total == 2


@given(seed=st.integers(0, 2**32), gap_s=st.floats(0.001, 0.05))
def test_a_store_that_is_down_for_a_minute_is_asked_less_than_twice_a_second(
    seed: int, gap_s: float
) -> None:
    """Promise P13, with the defaults of the configuration."""
    config = StoreConfig()
    clock = FakeClock()
    breaker = Breaker(
        failures_max=config.breaker_failures,
        probe_s=config.breaker_probe_s,
        clock=clock,
        rng=Random(seed),
    )
    asked = 0
    while clock.now_s < 60:
        if breaker.allows():
            asked += 1
            breaker.failed()
        clock.now_s += gap_s

    assert 60 / 1.25 - 1 <= asked <= 60 / 0.8 + config.breaker_failures
