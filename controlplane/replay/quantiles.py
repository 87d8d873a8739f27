"""Quantiles of a stream in bounded memory: bins whose edges grow by half a percent."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

_GROWTH: Final = 1.005
_LOG_GROWTH: Final = math.log(_GROWTH)
#: Everything below is one bin; half a microsecond, in seconds.
_LEAST: Final = 5e-7


class Quantiles:
    """Counts by size; a quantile is right within 0.25 %, whatever the number of values."""

    __slots__ = ("_bins", "count", "largest", "total")

    def __init__(self) -> None:
        self._bins: dict[int, int] = {}
        self.count = 0
        self.total = 0.0
        self.largest = 0.0

    def __repr__(self) -> str:
        return f"<Quantiles of {self.count} values>"

    def add(self, value: float) -> None:
        """Take a value, >= 0."""
        place = int(math.log(value / _LEAST) / _LOG_GROWTH) + 1 if value > _LEAST else 0
        self._bins[place] = self._bins.get(place, 0) + 1
        self.count += 1
        self.total += value
        self.largest = max(self.largest, value)

    @property
    def mean(self) -> float:
        """Of all values; 0 of none."""
        return self.total / self.count if self.count else 0.0

    def at(self, part: float) -> float:
        """
        The value that so large a part of all is not above; 0 of none.

        Args:
            part: 0 < part <= 1.
        """
        wanted = math.ceil(part * self.count)
        seen = 0
        for place in sorted(self._bins):
            seen += self._bins[place]
            if seen >= wanted:
                return min(self.largest, _middle(place))
        return 0.0

    def curve(self) -> Iterator[tuple[float, float]]:
        """Value and part of all values up to it, for a chart."""
        seen = 0
        for place in sorted(self._bins):
            seen += self._bins[place]
            yield min(self.largest, _middle(place)), seen / self.count


def _middle(place: int) -> float:
    return _LEAST * _GROWTH ** (place - 0.5) if place else 0.0
