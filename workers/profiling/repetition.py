"""How often to measure: until another run would say the same. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median, quantiles
from typing import Final

#: Half of the 95 % interval of a median is this times the interquartile range over the root of the count
#: (McGill, Tukey and Larsen, 1978).
_NOTCH: Final = 1.57
#: Fewer may lie close together by chance: two profiles would differ by more than their interval.
_RUNS_MIN: Final = 6
_QUARTERS: Final = 4


def uncertainty(values: Sequence[float]) -> float | None:
    """
    How sure the median of measurements is: half of its 95 % interval, as a part of it.

    Args:
        values: All > 0.

    Returns:
        None of fewer than six.
    """
    if len(values) < _RUNS_MIN:
        return None
    low, _, high = quantiles(values, n=_QUARTERS, method="inclusive")
    return float(_NOTCH * (high - low) / len(values) ** 0.5 / median(values))


def is_settled(values: Sequence[float], *, tolerance: float, runs_max: int) -> bool:
    """
    Whether enough was measured of one thing.

    Args:
        values: Measured so far, all > 0.
        tolerance: Uncertainty that is good enough; two profiles of one server then differ by no more
            than 1.4 times that.
        runs_max: At which it ends in any case.
    """
    sure = uncertainty(values)
    return len(values) >= runs_max or (sure is not None and sure <= tolerance)
