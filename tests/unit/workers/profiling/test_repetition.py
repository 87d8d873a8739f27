from __future__ import annotations

from random import Random
from statistics import median

import pytest

from workers.profiling.repetition import is_settled, uncertainty


def test_a_few_values_say_nothing() -> None:
    assert uncertainty([1.0] * 5) is None


def test_equal_values_are_sure() -> None:
    assert uncertainty([2.0] * 6) == 0


def test_it_falls_with_the_root_of_the_count() -> None:
    few, many = [1.0, 1.1, 1.2, 1.3] * 4, [1.0, 1.1, 1.2, 1.3] * 16

    assert (uncertainty(many) or 0) / (uncertainty(few) or 1) == pytest.approx(0.5, rel=0.05)


def test_one_outlier_does_not_count() -> None:
    assert (uncertainty([1.0] * 8 + [50.0]) or 0) == 0


def test_two_settled_series_of_one_thing_agree_within_a_tenth() -> None:
    random = Random(7)

    def settled() -> float:
        values: list[float] = []
        while not is_settled(values, tolerance=0.05, runs_max=1000):
            values.append(random.lognormvariate(0, 0.1))
        return median(values)

    pairs = [(settled(), settled()) for _ in range(300)]

    agreed = sum(abs(one / other - 1) <= 0.1 for one, other in pairs)
    assert agreed >= 0.9 * len(pairs)


def test_what_never_settles_ends_at_its_bound() -> None:
    assert is_settled([1.0, 9.0] * 3, tolerance=0.05, runs_max=6)
    assert not is_settled([1.0, 9.0] * 3, tolerance=0.05, runs_max=7)
