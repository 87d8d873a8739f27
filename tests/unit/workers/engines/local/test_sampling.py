from __future__ import annotations

import numpy as np
import pytest

from controlplane.wire import Sampling
from workers.engines.local.sampling import Sampler
from workers.engines.reference.dims import Floats


def a_sampler(temperature: float = 1, top_p: float = 1, seed: int | None = 1) -> Sampler:
    return Sampler(Sampling(temperature=temperature, top_p=top_p, seed=seed, output_tokens_max=1))


def logits(*values: float) -> Floats:
    return np.array(values, dtype=np.float32)


def draws(sampler: Sampler, of: Floats, count: int = 4000) -> list[int]:
    return [sampler.draw(of, position) for position in range(count)]


def test_greedy_takes_the_best() -> None:
    assert a_sampler(temperature=0).draw(logits(0, 3, 2), 0) == 1


def test_greedy_takes_the_lowest_id_of_equal_ones() -> None:
    assert a_sampler(temperature=0).draw(logits(0, 3, 3), 0) == 1


@pytest.mark.parametrize("seed", [0, -5, 2**200 + 1])
def test_one_seed_draws_the_same_at_one_position(seed: int) -> None:
    even = np.zeros(200, dtype=np.float32)

    assert draws(a_sampler(seed=seed), even, 50) == draws(a_sampler(seed=seed), even, 50)


def test_what_was_drawn_before_does_not_matter() -> None:
    even = np.zeros(200, dtype=np.float32)
    sampler = a_sampler()
    expected = draws(sampler, even, 20)

    assert [a_sampler().draw(even, position) for position in (7, 3)] == [expected[7], expected[3]]


def test_without_a_seed_each_sequence_draws_its_own() -> None:
    even = np.zeros(200, dtype=np.float32)

    assert draws(a_sampler(seed=None), even, 50) != draws(a_sampler(seed=None), even, 50)


def test_frequencies_follow_the_probabilities() -> None:
    drawn = draws(a_sampler(), logits(np.log(0.5), np.log(0.3), np.log(0.2)))

    shares = np.bincount(drawn, minlength=3) / len(drawn)
    np.testing.assert_allclose(shares, [0.5, 0.3, 0.2], atol=0.03)


def test_temperature_flattens_the_probabilities() -> None:
    drawn = draws(a_sampler(temperature=2), logits(np.log(0.8), np.log(0.2)))

    assert np.mean(drawn) == pytest.approx(1 / 3, abs=0.03)


def test_top_p_leaves_the_smallest_set_that_has_it() -> None:
    drawn = draws(a_sampler(top_p=0.75), logits(np.log(0.2), np.log(0.5), np.log(0.3)))

    assert set(drawn) == {1, 2}


def test_a_tiny_top_p_is_greedy() -> None:
    assert set(draws(a_sampler(top_p=1e-9), logits(1, 2, 1.5), 50)) == {1}


def test_a_temperature_near_zero_is_greedy() -> None:
    assert set(draws(a_sampler(temperature=1e-300), logits(1, 2, 1.5), 50)) == {1}


def test_what_is_masked_is_never_drawn() -> None:
    masked = logits(-np.inf, 0, -np.inf, 0, -np.inf)

    assert set(draws(a_sampler(), masked)) == {1, 3}
