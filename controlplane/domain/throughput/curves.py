"""
Which of several costs is the least at each length: lower envelopes of piecewise polynomials. Pure.

Two thresholds are all that the paper's case needs; with many datacenters the length axis of each
serving one is cut into bands, and the cuts are where two cost curves cross.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from controlplane.domain.throughput.lengths import LengthDistribution
from controlplane.domain.throughput.profile import Piece

#: A cost by length: pieces in growing order, the first one from 0.
Curve = tuple[Piece, ...]

#: Crossings closer together than this part of a length are one.
_CLOSE = 1e-12


@dataclass(frozen=True, slots=True)
class Stretch:
    """Lengths above one and up to another that one option takes."""

    option: int
    above: float
    up_to: float


def weighed(parts: Iterable[tuple[float, Curve]]) -> Curve:
    """A sum of curves, each with a factor."""
    terms = [(factor, curve) for factor, curve in parts if factor]
    if not terms:
        return (Piece(from_tokens=0.0, c0=0.0, c1=0.0),)
    starts = sorted({piece.from_tokens for _, curve in terms for piece in curve})
    return tuple(
        Piece(
            from_tokens=start,
            c0=sum(factor * piece_at(curve, start).c0 for factor, curve in terms),
            c1=sum(factor * piece_at(curve, start).c1 for factor, curve in terms),
            c2=sum(factor * piece_at(curve, start).c2 for factor, curve in terms),
        )
        for start in starts
    )


def piece_at(curve: Curve, tokens: float) -> Piece:
    """The piece of a curve that begins at or before a length."""
    found = curve[0]
    for piece in curve[1:]:
        if piece.from_tokens > tokens:
            break
        found = piece
    return found


def expected(curve: Curve, lengths: LengthDistribution, above: float, up_to: float) -> float:
    """`E[c(L) ; above < L <= up_to]` of a curve."""
    if len(curve) == 1:
        share, tokens, squares = lengths.moments(above, up_to)
        return curve[0].c0 * share + curve[0].c1 * tokens + curve[0].c2 * squares
    total = 0.0
    for position, piece in enumerate(curve):
        start = piece.from_tokens if position else -math.inf
        end = curve[position + 1].from_tokens if position + 1 < len(curve) else math.inf
        low, high = max(above, start), min(up_to, end)
        if high > low:
            share, tokens, squares = lengths.moments(low, high)
            total += piece.c0 * share + piece.c1 * tokens + piece.c2 * squares
    return total


def lower_envelope(curves: Sequence[Curve], above: float, up_to: float) -> list[Stretch]:
    """
    The cheapest option for each length of a range.

    Args:
        curves: Cost of each option by length, one at least.
        above: Begin of the range, tokens.
        up_to: Its end.

    Returns:
        Stretches in growing order without gaps; neighbours have different options.
    """
    starts = {p.from_tokens for curve in curves for p in curve if above < p.from_tokens < up_to}
    ends = [above, *sorted(starts), up_to]
    found: list[Stretch] = []
    for low, high in pairwise(ends):
        pieces = [piece_at(curve, low) for curve in curves]
        for stretch in _within(pieces, low, high):
            if found and found[-1].option == stretch.option:
                found[-1] = Stretch(stretch.option, found[-1].above, stretch.up_to)
            else:
                found.append(stretch)
    return found


def _within(pieces: Sequence[Piece], low: float, high: float) -> list[Stretch]:
    """The envelope where each curve is one polynomial."""
    options = range(len(pieces))
    now = min(options, key=lambda k: (pieces[k].at(low), pieces[k].slope(low), pieces[k].c2))
    at, found = low, list[Stretch]()
    # Two parabolas cross twice at most, so an envelope of n has 2n - 1 stretches at most.
    for _ in range(2 * len(pieces)):
        step, follower = high, now
        for option in options:
            if option == now:
                continue
            crossing = _falls_below(pieces[option], pieces[now], at)
            if crossing < step:
                step, follower = crossing, option
        if follower == now:
            break
        found.append(Stretch(now, at, step))
        now, at = follower, step
    found.append(Stretch(now, at, high))
    return [stretch for stretch in found if stretch.up_to > stretch.above]


def _falls_below(one: Piece, other: Piece, after: float) -> float:
    """The first length beyond `after` from which one costs less than another; `inf` for none."""
    a, b, c = one.c2 - other.c2, one.c1 - other.c1, one.c0 - other.c0
    if a == 0:
        crossing = -c / b if b < 0 else math.inf
    else:
        inside = b * b - 4 * a * c
        if inside <= 0:
            return math.inf
        # Of two roots the one where the slope is -root, in the form that does not lose digits.
        root = math.sqrt(inside)
        crossing = -(b + root) / (2 * a) if b > 0 else 2 * c / (root - b)
    return crossing if crossing > after * (1 + _CLOSE) + _CLOSE else math.inf
