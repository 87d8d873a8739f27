"""Profiles from prefills that were seen."""

from __future__ import annotations

from random import Random

import pytest

from controlplane.domain.throughput.profile import QuadraticPrefill
from controlplane.domain.throughput.profile_fit import OUTLIER_RATIO, Normals, fit, seen, summed

TRUE = QuadraticPrefill(fixed_s=0.37, s_per_token=4.2e-5, s_per_token_squared=9e-11)
LENGTHS = (500, 1000, 4000, 10_000, 30_000, 60_000, 120_000)


def the_fit(
    normals: Normals, prior: QuadraticPrefill | None = None, **overrides: float
) -> QuadraticPrefill | None:
    options = {"prior_requests": 20.0, "requests_min": 30.0, "factor_max": 4.0} | overrides
    return fit(normals, prior, **options)


def prefills(
    profile: QuadraticPrefill, count: int, *, noise: float = 0.0, expected: bool = True
) -> Normals:
    rng = Random(1)
    parts = []
    for number in range(count):
        tokens = LENGTHS[number % len(LENGTHS)]
        exact_s = profile.prefill_s(tokens)
        took_s = exact_s * (1 + noise * rng.gauss(0, 1))
        parts.append(seen(tokens, 0, took_s, expected_s=exact_s if expected else 0.0))
    return summed(parts)


def test_without_anything_there_is_no_profile() -> None:
    assert the_fit(Normals()) is None


def test_without_prefills_the_prior_holds() -> None:
    assert the_fit(Normals(), TRUE) == TRUE


def test_without_a_prior_a_few_prefills_are_not_believed() -> None:
    assert the_fit(prefills(TRUE, 29)) is None
    assert the_fit(prefills(TRUE, 30)) is not None


def test_exact_prefills_give_the_exact_profile() -> None:
    found = the_fit(prefills(TRUE, 70, expected=False))

    assert found is not None
    for tokens in (100, 2000, 19_400, 100_000):
        assert found.prefill_s(tokens) == pytest.approx(TRUE.prefill_s(tokens), rel=1e-4)


def test_noise_of_ten_percent_averages_out() -> None:
    found = the_fit(prefills(TRUE, 500, noise=0.1), TRUE)

    assert found is not None
    for tokens in LENGTHS:
        assert found.prefill_s(tokens) == pytest.approx(TRUE.prefill_s(tokens), rel=0.04)


def test_many_prefills_outweigh_a_wrong_prior() -> None:
    wrong = QuadraticPrefill(fixed_s=0.7, s_per_token=8e-5)

    found = the_fit(prefills(TRUE, 700, expected=False), wrong)

    assert found is not None
    assert found.prefill_s(30_000) == pytest.approx(TRUE.prefill_s(30_000), rel=0.05)


def test_a_few_prefills_move_a_prior_a_little() -> None:
    slow = QuadraticPrefill(fixed_s=0.74, s_per_token=8.4e-5, s_per_token_squared=18e-11)

    found = the_fit(prefills(TRUE, 5, expected=False), slow)

    assert found is not None
    assert TRUE.prefill_s(10_000) < found.prefill_s(10_000) < slow.prefill_s(10_000)


def test_one_prefill_that_hung_for_an_hour_changes_next_to_nothing() -> None:
    hung = seen(4000, 0, 3600.0, expected_s=TRUE.prefill_s(4000))

    found = the_fit(summed([prefills(TRUE, 100), hung]), TRUE)

    assert found is not None
    assert found.prefill_s(4000) == pytest.approx(
        TRUE.prefill_s(4000), rel=(OUTLIER_RATIO - 1) / 50
    )


def test_prefills_of_one_length_alone_still_give_that_length() -> None:
    parts = summed(seen(1000, 0, 0.5) for _ in range(50))

    found = the_fit(parts)

    assert found is not None
    assert found.prefill_s(1000) == pytest.approx(0.5)


def test_tokens_that_were_cached_count_in_the_quadratic_part_only() -> None:
    profile = QuadraticPrefill(fixed_s=0.1, s_per_token=1e-5, s_per_token_squared=1e-9)
    parts = [
        seen(computed, cached, profile.prefill_s(computed, cached))
        for computed in (100, 3000, 9000)
        for cached in (0, 2000, 30_000)
    ]

    found = the_fit(summed(parts * 10))

    assert found is not None
    assert found.prefill_s(500, 10_000) == pytest.approx(profile.prefill_s(500, 10_000), rel=1e-4)


def test_no_part_of_a_profile_is_negative() -> None:
    """Times that grow slower than the length would make the quadratic part negative."""
    parts = [seen(tokens, 0, tokens**0.5 / 100) for tokens in LENGTHS]

    found = the_fit(summed(parts * 10))

    assert found is not None
    assert min(found.fixed_s, found.s_per_token, found.s_per_token_squared) >= 0


def test_what_was_seen_is_believed_up_to_a_factor() -> None:
    hundredfold = QuadraticPrefill(fixed_s=37.0, s_per_token=4.2e-3, s_per_token_squared=9e-9)

    found = the_fit(prefills(hundredfold, 7000, expected=False), TRUE)

    assert found is not None
    for tokens in LENGTHS:
        assert found.prefill_s(tokens) <= 4.5 * TRUE.prefill_s(tokens)


def test_normal_equations_add_up_over_routers_and_travel_as_numbers() -> None:
    one, other = prefills(TRUE, 20), prefills(TRUE, 50)

    both = summed([one, Normals.of_numbers(other.numbers())])

    assert both.count == 70
    assert the_fit(both) == the_fit(summed([other, one]))


def test_a_row_of_other_than_eleven_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match="11 numbers"):
        Normals.of_numbers([1.0] * 10)
