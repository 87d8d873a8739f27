from __future__ import annotations

import math
from random import Random

import pytest
from throughput_builders import H20, KV, LENGTHS

from controlplane.domain.throughput.equations import (
    exact_prefill_s,
    kv_bytes_in_range,
    prefill_s_in_range,
)
from controlplane.domain.throughput.lengths import (
    LengthDistribution,
    TruncatedLogNormal,
    empirical,
    mean,
    mean_above,
    mean_up_to,
    tail,
)
from controlplane.domain.throughput.profile import QuadraticPrefill, TablePrefill

SAMPLES = empirical([Random(3).lognormvariate(9, 1) for _ in range(500)])
TABLE = TablePrefill(points=((1000, 0.44), (8000, 0.72), (32_000, 1.84), (128_000, 7.40)))


@pytest.mark.parametrize("lengths", [LENGTHS, SAMPLES], ids=["lognormal", "empirical"])
@pytest.mark.parametrize("threshold", [500.0, 19_400.0, 90_000.0])
def test_the_parts_add_up_to_the_whole(lengths: LengthDistribution, threshold: float) -> None:
    above = tail(lengths, threshold)
    both = above * mean_above(lengths, threshold) + (1 - above) * mean_up_to(lengths, threshold)

    assert 0 <= above <= 1
    assert both == pytest.approx(mean(lengths))


@pytest.mark.parametrize("lengths", [LENGTHS, SAMPLES], ids=["lognormal", "empirical"])
def test_moments_agree_with_expectations_of_the_same_function(lengths: LengthDistribution) -> None:
    for above, up_to in ((0.0, math.inf), (3000.0, 20_000.0), (50_000.0, 60_000.0)):
        found = lengths.moments(above, up_to)
        for power in range(3):
            expected = lengths.expect(lambda tokens, power=power: tokens**power, above, up_to)
            assert found[power] == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_a_drawn_distribution_agrees_with_its_samples() -> None:
    rng, drawn = Random(1), []
    while len(drawn) < 40_000:
        if 128 <= (length := rng.lognormvariate(9.9, 1.0)) <= 128_000:
            drawn.append(length)
    samples = empirical(drawn)

    assert mean(samples) == pytest.approx(mean(LENGTHS), rel=0.02)
    assert tail(samples, 19_400) == pytest.approx(tail(LENGTHS, 19_400), abs=0.01)
    assert samples.quantile(0.9) == pytest.approx(LENGTHS.quantile(0.9), rel=0.03)


def test_a_range_without_lengths_weighs_nothing() -> None:
    for lengths in (LENGTHS, SAMPLES):
        assert lengths.moments(200_000, 300_000) == (0, 0, 0)
        assert lengths.moments(5000, 4000) == (0, 0, 0)
        assert lengths.expect(lambda _: 1.0, 200_000, 300_000) == 0


def test_a_threshold_belongs_to_the_lengths_below_it() -> None:
    """A prompt goes elsewhere when it is longer than the threshold."""
    lengths = empirical([1000, 2000, 2000, 4000])

    assert tail(lengths, 2000) == pytest.approx(0.25)
    assert tail(lengths, 1999) == pytest.approx(0.75)
    assert mean_above(lengths, 4000) == 4000
    assert mean_up_to(lengths, 10) == 1000


def test_weights_count_as_often_as_they_say() -> None:
    assert empirical([10, 20, 20]) == empirical([20, 10, 30], weights=[2, 1, 0])


@pytest.mark.parametrize(
    ("lengths", "weights"),
    [([], None), ([-1], None), ([math.nan], None), ([math.inf], None), ([1], [0]), ([1], [1, 2])],
)
def test_observations_that_mean_nothing_are_refused(
    lengths: list[float], weights: list[float] | None
) -> None:
    with pytest.raises(ValueError, match=r"length|weights"):
        empirical(lengths, weights)


@pytest.mark.parametrize(
    ("mu", "sigma", "shortest", "longest"),
    [(9.9, 0, 128, 1000), (9.9, 1, 0, 1000), (9.9, 1, 1000, 1000), (0.0, 0.1, 1e6, 1e7)],
)
def test_distributions_that_mean_nothing_are_refused(
    mu: float, sigma: float, shortest: float, longest: float
) -> None:
    with pytest.raises(ValueError, match=r"sigma|lengths from|next to no length"):
        TruncatedLogNormal(mu=mu, sigma=sigma, shortest=shortest, longest=longest)


@pytest.mark.parametrize("prefill", [H20, TABLE, TABLE.behind_prefix(1.5)], ids=str)
@pytest.mark.parametrize("lengths", [LENGTHS, SAMPLES], ids=["lognormal", "empirical"])
def test_prefill_time_is_expected_exactly(
    prefill: QuadraticPrefill | TablePrefill, lengths: LengthDistribution
) -> None:
    """Piece by piece it is what any function's expectation would be."""
    for above, up_to in ((0.0, math.inf), (2000.0, 31_000.0)):
        by_pieces = exact_prefill_s(prefill, lengths, above, up_to)
        assert by_pieces == pytest.approx(lengths.expect(prefill.prefill_s, above, up_to), rel=2e-4)


def test_a_convex_profile_takes_longer_than_its_mean_length() -> None:
    exact = prefill_s_in_range(H20, LENGTHS, 0, math.inf)
    by_mean = prefill_s_in_range(H20, LENGTHS, 0, math.inf, "mean_length")

    assert exact > 1.02 * by_mean


def test_bytes_are_those_of_the_mean_length() -> None:
    sent = kv_bytes_in_range(KV, LENGTHS, 19_400, math.inf)
    assert sent == pytest.approx(
        tail(LENGTHS, 19_400) * KV.segment_bytes(mean_above(LENGTHS, 19_400))
    )


# --- Profiles ---------------------------------------------------------------------------------


def test_a_table_goes_through_its_points_and_straight_on() -> None:
    for tokens, seconds in TABLE.points:
        assert TABLE.prefill_s(tokens) == pytest.approx(seconds)
    assert TABLE.prefill_s(20_000) == pytest.approx(1.28)
    assert TABLE.prefill_s(224_000) == pytest.approx(12.96)
    assert TABLE.prefill_s(0) == pytest.approx(0.4)


@pytest.mark.parametrize("tokens", [0.0, 700.0, 8000.0, 60_000.0, 500_000.0])
def test_pieces_are_the_profile(tokens: float) -> None:
    for profile in (H20, TABLE, TablePrefill(points=((100, 0.1), (200, 1.1)))):
        piece = [p for p in profile.pieces() if p.from_tokens <= tokens][-1]
        assert piece.at(tokens) == pytest.approx(profile.prefill_s(tokens))


@pytest.mark.parametrize("tokens", [100.0, 5000.0, 40_000.0, 300_000.0])
def test_a_profile_behind_a_prefix_is_the_time_behind_it(tokens: float) -> None:
    for profile in (H20, TABLE):
        behind = profile.behind_prefix(0.5)
        assert behind.prefill_s(tokens) == pytest.approx(profile.prefill_s(tokens, 0.5 * tokens))
        assert profile.behind_prefix(0.0).prefill_s(tokens) == profile.prefill_s(tokens)


@pytest.mark.parametrize("points", [((1000, 1.0),), ((2000, 1.0), (1000, 2.0)), ((1, 2), (2, 1))])
def test_a_table_that_does_not_grow_is_refused(points: tuple[tuple[float, float], ...]) -> None:
    with pytest.raises(ValueError, match="growing order"):
        TablePrefill(points=points)
