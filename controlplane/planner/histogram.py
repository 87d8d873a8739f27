"""
Histograms of lengths in tokens: bins in equal ratios, weights that fade, sums over routers. Pure.

A bin spans a twelfth more than its beginning, so a threshold read off it is right within 5 %; within a
bin the mean is exact, because each keeps the sum of its tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

#: Bins between a length and its double.
BINS_PER_OCTAVE: Final = 8
#: Longer prompts count as this long: 4 Mi tokens, beyond any context.
TOKENS_MAX: Final = 1 << 22
#: Bins there are: lengths below 1, and 22 octaves.
BINS_MAX: Final = 1 + 22 * BINS_PER_OCTAVE + 1


def bin_of(tokens: float) -> int:
    """Number of the bin that a length falls into; 0 for nothing at all."""
    if tokens < 1:
        return 0
    return 1 + int(BINS_PER_OCTAVE * math.log2(min(tokens, TOKENS_MAX)))


@dataclass(frozen=True, slots=True)
class Bin:
    """Lengths of nearly one size."""

    #: Requests, older ones with less than 1 each.
    weight: float
    #: Their tokens together, weighed alike.
    tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """Lengths by bin; bins without weight are left out."""

    bins: Mapping[int, Bin] = field(default_factory=dict)

    @property
    def weight(self) -> float:
        """Requests in it, as far as they still count."""
        return sum(each.weight for each in self.bins.values())

    @property
    def mean(self) -> float:
        """Mean length, tokens; 0 when it is empty."""
        weight = self.weight
        return sum(each.tokens for each in self.bins.values()) / weight if weight > 0 else 0.0

    def points(self) -> tuple[tuple[float, float], ...]:
        """Mean length of each bin and the part of all requests in it, shortest first."""
        weight = self.weight
        if weight <= 0:
            return ()
        return tuple(
            (each.tokens / each.weight, each.weight / weight)
            for _, each in sorted(self.bins.items())
            if each.weight > 0
        )

    def quantile(self, part: float) -> float:
        """
        Length that this part of all requests does not exceed, tokens; 0 when it is empty.

        Args:
            part: 0 to 1.
        """
        left = part
        length = 0.0
        for length, share in self.points():
            left -= share
            if left <= 0:
                return length
        return length


def summed(histograms: Iterable[Histogram]) -> Histogram:
    """All of them together."""
    weights: dict[int, list[float]] = {}
    for histogram in histograms:
        for number, each in histogram.bins.items():
            sums = weights.setdefault(number, [0.0, 0.0])
            sums[0] += each.weight
            sums[1] += each.tokens
    return Histogram(bins={number: Bin(*sums) for number, sums in weights.items()})


def of_lengths(lengths: Iterable[float]) -> Histogram:
    """A histogram of these lengths, each with weight 1."""
    return summed(Histogram(bins={bin_of(tokens): Bin(1.0, tokens)}) for tokens in lengths)
