"""Histograms of lengths."""

from __future__ import annotations

import pytest

from controlplane.planner.histogram import (
    BINS_MAX,
    TOKENS_MAX,
    Histogram,
    bin_of,
    of_lengths,
    summed,
)


def test_an_empty_histogram_says_nothing() -> None:
    empty = Histogram()

    assert (empty.weight, empty.mean, empty.quantile(0.5), empty.points()) == (0, 0, 0, ())


def test_the_mean_is_exact_although_lengths_share_bins() -> None:
    histogram = of_lengths([1000, 1001, 1002, 5])

    assert histogram.mean == pytest.approx(752)
    assert len(histogram.bins) == 2


@pytest.mark.parametrize("tokens", [1, 2, 100, 777, 19_400, 131_072])
def test_a_bin_is_narrow_enough_for_a_threshold(tokens: float) -> None:
    assert bin_of(tokens) == bin_of(tokens * 1.0001)
    assert bin_of(tokens * 1.1) > bin_of(tokens)


@pytest.mark.parametrize("tokens", [0, 0.5, TOKENS_MAX, TOKENS_MAX * 1000])
def test_bins_are_bounded_whatever_the_length(tokens: float) -> None:
    assert 0 <= bin_of(tokens) < BINS_MAX


def test_quantiles_are_right_within_a_bin() -> None:
    histogram = of_lengths(range(1, 1001))

    assert histogram.quantile(0.5) == pytest.approx(500, rel=0.06)
    assert histogram.quantile(0.9) == pytest.approx(900, rel=0.06)
    assert histogram.quantile(1.0) == pytest.approx(1000, rel=0.06)


def test_the_sum_of_histograms_is_the_histogram_of_all_lengths() -> None:
    both = summed([of_lengths([1, 50, 50]), of_lengths([50, 9000])])

    assert both == of_lengths([1, 50, 50, 50, 9000])


def test_points_come_shortest_first_with_their_shares() -> None:
    assert of_lengths([9000, 10, 10, 10]).points() == ((10, 0.75), (9000, 0.25))
