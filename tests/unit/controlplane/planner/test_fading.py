"""Sums that forget."""

from __future__ import annotations

import math

import pytest

from controlplane.planner.fading import Fading, FadingHistogram


def test_an_event_counts_in_full_at_first_and_fades_by_a_window() -> None:
    fading = Fading(10.0, 0.0)
    fading.add(1, 0.0, 1.0, 500.0)

    assert fading.read(0.0) == {1: (1.0, 500.0)}
    weight, tokens = fading.read(10.0)[1]
    assert (weight, tokens) == pytest.approx((1 / math.e, 500 / math.e))


def test_events_of_a_steady_rate_add_up_to_what_the_window_has_seen() -> None:
    fading = Fading(10.0, 0.0)
    for step in range(500):
        fading.add(0, step * 0.1, 0.1)

    for now_s in (50.0,):
        assert fading.read(now_s)[0][0] == pytest.approx(fading.seen_s(now_s), rel=0.01)


def test_what_was_seen_grows_with_time_and_not_beyond_the_window() -> None:
    fading = Fading(10.0, 100.0)

    assert fading.seen_s(101.0) == pytest.approx(1.0, rel=0.06)
    assert fading.seen_s(1e6) == pytest.approx(10.0)


def test_an_hour_of_events_neither_overflows_nor_drifts() -> None:
    fading = Fading(1.0, 0.0)
    for second in range(3600):
        fading.add(0, float(second), 1.0)

    assert fading.read(3599.0)[0][0] == pytest.approx(1 / (1 - 1 / math.e))


def test_a_pause_of_a_year_is_survived() -> None:
    fading = Fading(1.0, 0.0)
    fading.add(0, 0.0, 1.0)

    fading.add(1, 3e7, 1.0)

    assert fading.read(3e7) == {1: (1.0,)}


def test_bins_that_nobody_fills_are_forgotten() -> None:
    histogram = FadingHistogram(1.0, 0.0)
    for tokens in range(1, 1000):
        histogram.add(tokens, 0.0)

    histogram.add(5, 1000.0)

    assert histogram.read(1000.0).points() == ((5.0, 1.0),)
