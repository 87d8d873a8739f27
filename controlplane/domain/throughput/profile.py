"""
How long phases take and how large KV is, by hardware: what a throughput model is solved for. Pure.

Prefill and decode have profiles of their own, and so has each kind of hardware: one `T_prefill` for
all would hide what prefill elsewhere is worth.

Source:
    PrfaaS (arXiv 2604.15039) Table 4 for the symbols, Table 5 for a measured profile.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """`c0 + c1 * l + c2 * l**2` from one length on, up to where the next piece begins."""

    from_tokens: float
    c0: float
    c1: float
    c2: float = 0.0

    def at(self, tokens: float) -> float:
        """The value at a length."""
        return self.c0 + tokens * (self.c1 + tokens * self.c2)

    def slope(self, tokens: float) -> float:
        """The derivative at a length, per token."""
        return self.c1 + 2 * self.c2 * tokens


class PrefillProfile(Protocol):
    """How long one instance of a kind of hardware prefills."""

    def prefill_s(self, uncached_tokens: float, cached_tokens: float = 0.0) -> float:
        """Seconds to prefill so many tokens behind a cached prefix, on one instance."""
        ...

    def pieces(self) -> tuple[Piece, ...]:
        """The same without a prefix as polynomials; the first one begins at 0 tokens."""
        ...

    def behind_prefix(self, cached_per_uncached: float) -> PrefillProfile:
        """The profile of prompts that have so many cached tokens for each uncached one."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class QuadraticPrefill:
    """
    `T_prefill(l) = fixed_s + s_per_token * l + s_per_token_squared * l**2`, seconds.

    With a cached prefix of `c` tokens, `u` further ones attend to it: their quadratic part is
    `(c + u)**2 - c**2`.
    """

    fixed_s: float
    s_per_token: float
    s_per_token_squared: float = 0.0

    def prefill_s(self, uncached_tokens: float, cached_tokens: float = 0.0) -> float:
        """
        Time to prefill so many tokens behind a cached prefix, on one instance.

        Args:
            uncached_tokens: >= 0.
            cached_tokens: >= 0.

        Returns:
            Seconds, >= 0.
        """
        pairs = uncached_tokens * (uncached_tokens + 2 * cached_tokens)
        return self.fixed_s + self.s_per_token * uncached_tokens + self.s_per_token_squared * pairs

    def pieces(self) -> tuple[Piece, ...]:
        """The one polynomial."""
        return (
            Piece(
                from_tokens=0.0,
                c0=self.fixed_s,
                c1=self.s_per_token,
                c2=self.s_per_token_squared,
            ),
        )

    def behind_prefix(self, cached_per_uncached: float) -> QuadraticPrefill:
        """`T(u, k*u)` as a function of `u`: only the quadratic part grows."""
        return QuadraticPrefill(
            fixed_s=self.fixed_s,
            s_per_token=self.s_per_token,
            s_per_token_squared=self.s_per_token_squared * (1 + 2 * cached_per_uncached),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TablePrefill:
    """`T_prefill(l)` through measured points, with straight lines between and beyond them."""

    #: Pairs of tokens and seconds, two at least; tokens grow, seconds do not fall.
    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        rising = all(a[0] < b[0] and a[1] <= b[1] for a, b in pairwise(self.points))
        if len(self.points) < 2 or not rising:  # noqa: PLR2004 - a line has two ends
            raise ValueError("a prefill table needs two points at least, in growing order")

    def prefill_s(self, uncached_tokens: float, cached_tokens: float = 0.0) -> float:
        """
        Time to prefill so many tokens behind a cached prefix, on one instance.

        Behind a prefix it is what the longer prompt takes more than the prefix, and the fixed part.

        Args:
            uncached_tokens: >= 0.
            cached_tokens: >= 0.

        Returns:
            Seconds, >= 0.
        """
        if not cached_tokens:
            return self._at(uncached_tokens)
        return self._at(cached_tokens + uncached_tokens) - self._at(cached_tokens) + self._at(0.0)

    def pieces(self) -> tuple[Piece, ...]:
        """A straight line for each pair of neighbours; the first one holds from 0 on."""
        return tuple(self._lines())

    def behind_prefix(self, cached_per_uncached: float) -> TablePrefill:
        """`T(u, k*u)` as a function of `u`: lines again, with their ends where either side bends."""
        if not cached_per_uncached:
            return self
        ends = {tokens / (1 + cached_per_uncached) for tokens, _ in self.points}
        ends |= {tokens / cached_per_uncached for tokens, _ in self.points}
        # Straight lines go on beyond the ends as long as both sides are beyond theirs.
        ends |= {0.0, 2 * max(ends)}
        return TablePrefill(
            points=tuple(
                (tokens, self.prefill_s(tokens, cached_per_uncached * tokens))
                for tokens in sorted(ends)
            )
        )

    def _at(self, tokens: float) -> float:
        position = bisect_right(self.points, tokens, key=lambda point: point[0])
        position = min(max(position, 1), len(self.points) - 1)
        (l0, t0), (l1, t1) = self.points[position - 1 : position + 1]
        # A steep first line must not go below zero where nothing was measured.
        return max(0.0, t0 + (t1 - t0) * (tokens - l0) / (l1 - l0))

    def _lines(self) -> Iterator[Piece]:
        for position, ((l0, t0), (l1, t1)) in enumerate(pairwise(self.points)):
            slope = (t1 - t0) / (l1 - l0)
            start = t0 - slope * l0
            if position == 0 and start < 0:
                # The line reaches zero at a length above zero, and stays there below it.
                yield Piece(from_tokens=0.0, c0=0.0, c1=0.0)
                yield Piece(from_tokens=-start / slope, c0=start, c1=slope)
            else:
                yield Piece(from_tokens=l0 if position else 0.0, c0=start, c1=slope)


@dataclass(frozen=True, slots=True, kw_only=True)
class KvSize:
    """`S_kv(l) = state_bytes + bytes_per_token * l`: the fixed state crosses the link every time."""

    state_bytes: float
    bytes_per_token: float

    def segment_bytes(self, tokens: float) -> float:
        """Bytes of KV of a sequence of so many tokens, >= 0."""
        return self.state_bytes + self.bytes_per_token * tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeProfile:
    """`BS_max` and `T_decode`: what one instance decodes within the objective of its token rate."""

    #: Largest batch.
    slots: float
    #: Seconds of one step at that batch.
    step_s: float

    def requests_per_s(self, output_tokens: float) -> float:
        """Requests one instance completes a second (Eq. 5 with one instance)."""
        return self.slots / (self.step_s * output_tokens)
