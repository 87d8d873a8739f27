"""
Distributions of uncached input length, with exact partial moments. Pure.

Everything the throughput model needs of a distribution is `E[L**k ; a < L <= b]` for k = 0, 1, 2:
profiles are polynomials of degree two, piece by piece, so that expectations of theirs are sums.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol

#: `E[L**k ; a < L <= b]` for k = 0, 1, 2.
Moments = tuple[float, float, float]

#: Nodes and weights of Gauss and Legendre on [-1, 1]; those below zero are the mirror image.
_NODES = (0.1488743389816312, 0.4333953941292472, 0.6794095682990244, 0.8650633666889845,
          0.9739065285171717)  # fmt: skip
_WEIGHTS = (0.2955242247147529, 0.2692667193099964, 0.2190863625159820, 0.1494513491505806,
            0.0666713443086881)  # fmt: skip

#: Pieces that a range is cut into for quadrature; with ten nodes each, polynomials times a
#: log-normal density are exact to eleven digits.
_PANELS = 24

#: Halvings of a search; a double has 52 bits.
_HALVINGS = 60


class LengthDistribution(Protocol):
    """How long the uncached part of prompts is, in tokens."""

    @property
    def shortest(self) -> float:
        """No prompt is shorter; tokens, >= 0."""
        ...

    @property
    def longest(self) -> float:
        """No prompt is longer; tokens, finite."""
        ...

    def moments(self, above: float, up_to: float) -> Moments:
        """`E[L**k ; above < L <= up_to]` for k = 0, 1, 2: probability, tokens, tokens squared."""
        ...

    def expect(self, function: Callable[[float], float], above: float, up_to: float) -> float:
        """`E[f(L) ; above < L <= up_to]` of any function."""
        ...

    def quantile(self, share: float) -> float:
        """The shortest length that so large a share of prompts does not exceed; 0 <= share <= 1."""
        ...


def tail(lengths: LengthDistribution, threshold: float) -> float:
    """`p = P(L > t)`, 0 to 1 (PrfaaS, arXiv 2604.15039, Table 4)."""
    # Sums of many observations may round beyond 1.
    return min(1.0, lengths.moments(threshold, lengths.longest)[0])


def mean_above(lengths: LengthDistribution, threshold: float) -> float:
    """`l_long = E[L | L > t]`, tokens; the longest length when nothing is above (Table 4)."""
    share, tokens, _ = lengths.moments(threshold, lengths.longest)
    return tokens / share if share > 0 else lengths.longest


def mean_up_to(lengths: LengthDistribution, threshold: float) -> float:
    """`l_short = E[L | L <= t]`, tokens; the shortest length when nothing is below (Table 4)."""
    share, tokens, _ = lengths.moments(-math.inf, threshold)
    return tokens / share if share > 0 else lengths.shortest


def mean(lengths: LengthDistribution) -> float:
    """`E[L]`, tokens."""
    return lengths.moments(-math.inf, lengths.longest)[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class TruncatedLogNormal:
    """
    A log-normal length cut off at both ends, in closed form.

    Raises:
        ValueError: sigma is not above 0, the ends are not 0 < shortest < longest, or the range
            holds next to nothing of the distribution.

    Source:
        PrfaaS section 4.1: mu 9.90, sigma 1.00, 128 to 128K tokens.
    """

    #: Mean and standard deviation of the logarithm of the length before truncation.
    mu: float
    sigma: float
    shortest: float
    longest: float
    _base: tuple[Moments, float] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise ValueError(f"sigma = {self.sigma:g} must be above 0")
        if not 0 < self.shortest < self.longest < math.inf:
            raise ValueError(
                f"lengths from {self.shortest:g} to {self.longest:g} are no range above 0"
            )
        low = self._raw(self.shortest)
        inside = self._raw(self.longest)[0] - low[0]
        if inside < _MASS_MIN:
            raise ValueError(
                f"mu = {self.mu:g} and sigma = {self.sigma:g} put next to no length between "
                f"{self.shortest:g} and {self.longest:g} tokens"
            )
        object.__setattr__(self, "_base", (low, inside))

    def moments(self, above: float, up_to: float) -> Moments:
        """`E[L**k ; above < L <= up_to]` for k = 0, 1, 2."""
        low = max(above, self.shortest)
        high = min(up_to, self.longest)
        if high <= low:
            return (0.0, 0.0, 0.0)
        inside = self._base[1]
        lower = self._base[0] if low == self.shortest else self._raw(low)
        upper = self._raw(high)
        return (
            (upper[0] - lower[0]) / inside,
            (upper[1] - lower[1]) / inside,
            (upper[2] - lower[2]) / inside,
        )

    def expect(self, function: Callable[[float], float], above: float, up_to: float) -> float:
        """`E[f(L) ; above < L <= up_to]`, by quadrature over the logarithm of the length."""
        low = math.log(max(above, self.shortest))
        high = math.log(max(min(up_to, self.longest), self.shortest))
        half = (high - low) / (2 * _PANELS)
        if half <= 0:
            return 0.0
        total = 0.0
        for panel in range(_PANELS):
            middle = low + (2 * panel + 1) * half
            for node, weight in zip(_NODES, _WEIGHTS, strict=True):
                for point in (middle - half * node, middle + half * node):
                    z = (point - self.mu) / self.sigma
                    total += weight * math.exp(-z * z / 2) * function(math.exp(point))
        return total * half / (self.sigma * math.sqrt(2 * math.pi) * self._base[1])

    def quantile(self, share: float) -> float:
        """The length that so large a share of prompts does not exceed, by bisection."""
        low, high = math.log(self.shortest), math.log(self.longest)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            if self.moments(0.0, math.exp(middle))[0] < share:
                low = middle
            else:
                high = middle
        return math.exp(high)

    def _raw(self, tokens: float) -> Moments:
        """`E[L**k ; L <= tokens]` for k = 0, 1, 2 before truncation."""
        z = (math.log(tokens) - self.mu) / self.sigma
        variance = self.sigma * self.sigma
        return (
            _phi(z),
            math.exp(self.mu + variance / 2) * _phi(z - self.sigma),
            math.exp(2 * self.mu + 2 * variance) * _phi(z - 2 * self.sigma),
        )


#: Less probability than this inside the range cannot be divided by.
_MASS_MIN = 1e-9


def _phi(z: float) -> float:
    """The cumulative normal distribution."""
    return math.erfc(-z / math.sqrt(2)) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Empirical:
    """
    Observed lengths, each with a weight; `empirical(...)` makes one of a trace or a histogram.

    Sums over the sorted lengths make every partial moment two look-ups.
    """

    #: Sorted, without repetition, >= 0.
    values: tuple[float, ...]
    #: Of each value and those before it: probability, tokens, tokens squared.
    sums: tuple[Moments, ...]

    @property
    def shortest(self) -> float:
        """The shortest observed length."""
        return self.values[0]

    @property
    def longest(self) -> float:
        """The longest observed length."""
        return self.values[-1]

    def moments(self, above: float, up_to: float) -> Moments:
        """`E[L**k ; above < L <= up_to]` for k = 0, 1, 2."""
        if up_to <= above:
            return (0.0, 0.0, 0.0)
        high, low = self._up_to(up_to), self._up_to(above)
        return (high[0] - low[0], high[1] - low[1], high[2] - low[2])

    def expect(self, function: Callable[[float], float], above: float, up_to: float) -> float:
        """`E[f(L) ; above < L <= up_to]`, as the sum it is."""
        first, last = bisect_right(self.values, above), bisect_right(self.values, up_to)
        before = self.sums[first - 1][0] if first else 0.0
        total = 0.0
        for position in range(first, last):
            now = self.sums[position][0]
            total += (now - before) * function(self.values[position])
            before = now
        return total

    def quantile(self, share: float) -> float:
        """The shortest observed length that so large a share does not exceed."""
        position = bisect_right(self.sums, share - _ROUNDING, key=lambda sums: sums[0])
        return self.values[min(position, len(self.values) - 1)]

    def _up_to(self, tokens: float) -> Moments:
        position = bisect_right(self.values, tokens)
        return self.sums[position - 1] if position else (0.0, 0.0, 0.0)


#: Sums of weights are compared with this tolerance.
_ROUNDING = 1e-12


def empirical(lengths: Iterable[float], weights: Sequence[float] | None = None) -> Empirical:
    """
    The distribution of observed lengths.

    Args:
        lengths: Tokens, >= 0, in any order: of a trace's requests, or of a histogram's buckets.
        weights: Of each, >= 0, for instance counts; all the same without.

    Raises:
        ValueError: There is none, one is negative or not finite, or all weigh nothing.
    """
    observed = [*lengths]
    weighed = [1.0] * len(observed) if weights is None else [*weights]
    if len(weighed) != len(observed):
        raise ValueError(f"{len(observed)} lengths cannot have {len(weighed)} weights")
    if not all(0 <= value < math.inf for value in (*observed, *weighed)):
        raise ValueError("lengths and weights must be finite and not negative")
    total = math.fsum(weighed)
    if not total > 0:
        raise ValueError("no length was observed")
    shares: dict[float, float] = {}
    for tokens, weight in zip(observed, weighed, strict=True):
        if weight:
            shares[tokens] = shares.get(tokens, 0.0) + weight / total
    values = tuple(sorted(shares))
    sums = accumulate(
        (
            (shares[tokens], shares[tokens] * tokens, shares[tokens] * tokens**2)
            for tokens in values
        ),
        lambda a, b: (a[0] + b[0], a[1] + b[1], a[2] + b[2]),
    )
    return Empirical(values=values, sums=tuple(sums))
