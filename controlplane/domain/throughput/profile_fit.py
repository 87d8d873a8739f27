"""
How long prefill takes at a site, from prefills that were seen: least squares with a prior. Pure.

`T(u, c) = fixed + a * u + b * u * (u + 2 * c)` for `u` tokens computed behind `c` cached ones. What
routers keep of each prefill is its part in the normal equations, so that sums travel and not requests.
Residuals count relative to what was expected: a second more is much for a short prompt only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

from controlplane.domain.throughput.profile import QuadraticPrefill

#: Tokens are counted in units of this, so that all terms are of one size.
_UNIT_TOKENS: Final = 1024.0
#: A prefill that took so many times as long as expected, or as little, counts as that: it waited for
#: something else, or its clock is wrong.
OUTLIER_RATIO: Final = 4.0
#: Lengths at which the prior speaks.
_PRIOR_TOKENS: Final = (256.0, 1024.0, 4096.0, 16_384.0, 131_072.0)
#: A prefill takes longer than this.
_COMPUTE_S_MIN: Final = 1e-6
#: A pivot below this, of 1 at most, is rounding.
_SINGULAR: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Normals:
    """
    Sums over prefills of a 3x3 normal equation, weighed: `count`, six of the matrix, three of the right.

    All are finite and `count` >= 0.
    """

    #: Prefills, as far as they still count.
    count: float = 0.0
    matrix: tuple[float, ...] = (0.0,) * 6
    right: tuple[float, ...] = (0.0,) * 3
    #: Weighed squares of the times, to tell which of two fits is better.
    square: float = 0.0

    def numbers(self) -> tuple[float, ...]:
        """All eleven in a row."""
        return (self.count, *self.matrix, *self.right, self.square)

    @classmethod
    def of_numbers(cls, numbers: Sequence[float]) -> Normals:
        """
        From `numbers()`.

        Raises:
            ValueError: Not eleven.
        """
        if len(numbers) != 11:  # noqa: PLR2004 - counted above
            raise ValueError(f"normal equations have 11 numbers, not {len(numbers)}")
        return cls(numbers[0], tuple(numbers[1:7]), tuple(numbers[7:10]), numbers[10])


def seen(
    computed_tokens: float, cached_tokens: float, compute_s: float, *, expected_s: float = 0.0
) -> Normals:
    """
    What one prefill says.

    Args:
        computed_tokens: >= 0.
        cached_tokens: That it attended to, >= 0.
        compute_s: Seconds it took, without waiting.
        expected_s: What its worker's own profile had said, seconds; 0 if it said nothing.
    """
    took_s = max(_COMPUTE_S_MIN, compute_s)
    if expected_s > 0:
        took_s = min(max(took_s, expected_s / OUTLIER_RATIO), expected_s * OUTLIER_RATIO)
    scale_s = expected_s if expected_s > 0 else took_s
    return _equation(computed_tokens, cached_tokens, took_s, weight=1.0 / scale_s**2, count=1.0)


def summed(parts: Iterable[Normals]) -> Normals:
    """All of them together."""
    numbers = [each.numbers() for each in parts]
    return Normals.of_numbers([sum(column) for column in zip(*numbers, strict=True)] or [0.0] * 11)


def fit(
    normals: Normals,
    prior: QuadraticPrefill | None,
    *,
    prior_requests: float,
    requests_min: float,
    factor_max: float,
) -> QuadraticPrefill | None:
    """
    The profile that explains the prefills best, none of its parts below zero.

    Args:
        normals: What was seen.
        prior: What configuration or heartbeats say; None when they say nothing.
        prior_requests: The prior counts like so many prefills, >= 0.
        requests_min: Without a prior, fewer prefills than this are not believed.
        factor_max: How far the result may be from the prior, as a factor >= 1 at any usual length.

    Returns:
        None when nothing can be said.
    """
    if prior is None:
        return _best(normals) if normals.count >= max(1.0, requests_min) else None
    if normals.count <= 0:
        return prior
    believed = [
        _equation(
            tokens,
            0.0,
            prior.prefill_s(tokens),
            weight=prior_requests / len(_PRIOR_TOKENS) / prior.prefill_s(tokens) ** 2,
            count=0.0,
        )
        for tokens in _PRIOR_TOKENS
        if prior.prefill_s(tokens) > 0
    ]
    found = _best(summed((normals, *believed)))
    return None if found is None else _within(found, prior, factor_max)


def _equation(
    computed: float, cached: float, took_s: float, *, weight: float, count: float
) -> Normals:
    linear = computed / _UNIT_TOKENS
    terms = (1.0, linear, linear * (computed + 2 * cached) / _UNIT_TOKENS)
    matrix = tuple(
        weight * terms[row] * terms[column] for row in range(3) for column in range(row, 3)
    )
    return Normals(
        count=count,
        matrix=matrix,
        right=tuple(weight * term * took_s for term in terms),
        square=weight * took_s**2,
    )


def _best(normals: Normals) -> QuadraticPrefill | None:
    """The best of all fits that leave some parts out and have no negative one."""
    best: tuple[float, list[float]] | None = None
    for size in (3, 2, 1):
        for kept in combinations(range(3), size):
            values = _solved(normals, kept)
            if values is None or min(values) < 0:
                continue
            error = normals.square - sum(
                value * normals.right[part] for value, part in zip(values, kept, strict=True)
            )
            if best is None or error < best[0]:
                whole = [0.0, 0.0, 0.0]
                for value, part in zip(values, kept, strict=True):
                    whole[part] = value
                best = (error, whole)
    if best is None or sum(best[1]) <= 0:
        return None
    fixed_s, linear, squared = best[1]
    return QuadraticPrefill(
        fixed_s=fixed_s,
        s_per_token=linear / _UNIT_TOKENS,
        s_per_token_squared=squared / _UNIT_TOKENS**2,
    )


#: Where row and column of a symmetric 3x3 matrix stand among its six numbers.
_PLACES: Final = ((0, 1, 2), (1, 3, 4), (2, 4, 5))


def _solved(normals: Normals, kept: tuple[int, ...]) -> list[float] | None:
    """The normal equations with some unknowns only, by elimination; None when they are singular."""
    diagonal = [normals.matrix[_PLACES[part][part]] for part in kept]
    if min(diagonal) <= 0:
        return None
    # Each unknown in a unit of its own, so that what is nearly singular shows.
    units = [each**-0.5 for each in diagonal]
    rows = [
        [
            normals.matrix[_PLACES[row][column]] * unit * other
            for column, other in zip(kept, units, strict=True)
        ]
        + [normals.right[row] * unit]
        for row, unit in zip(kept, units, strict=True)
    ]
    for place in range(len(kept)):
        pivot = max(range(place, len(kept)), key=lambda row: abs(rows[row][place]))
        rows[place], rows[pivot] = rows[pivot], rows[place]
        head = rows[place][place]
        # Of one length alone, slope and offset cannot be told apart.
        if abs(head) <= _SINGULAR:
            return None
        rows[place] = [each / head for each in rows[place]]
        for other in range(len(kept)):
            if other != place:
                factor = rows[other][place]
                rows[other] = [
                    each - factor * one for each, one in zip(rows[other], rows[place], strict=True)
                ]
    return [row[-1] * unit for row, unit in zip(rows, units, strict=True)]


def _within(
    found: QuadraticPrefill, prior: QuadraticPrefill, factor_max: float
) -> QuadraticPrefill:
    """From the prior towards what was found, as far as no length leaves a factor of the prior."""
    part = 1.0
    for tokens in _PRIOR_TOKENS:
        expected_s, found_s = prior.prefill_s(tokens), found.prefill_s(tokens)
        bound_s = min(max(found_s, expected_s / factor_max), expected_s * factor_max)
        if bound_s != found_s:
            part = min(part, (bound_s - expected_s) / (found_s - expected_s))
    return QuadraticPrefill(
        fixed_s=_between(prior.fixed_s, found.fixed_s, part),
        s_per_token=_between(prior.s_per_token, found.s_per_token, part),
        s_per_token_squared=_between(prior.s_per_token_squared, found.s_per_token_squared, part),
    )


def _between(start: float, end: float, part: float) -> float:
    return end if part >= 1 else start + part * (end - start)
