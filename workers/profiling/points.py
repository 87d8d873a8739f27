"""At which lengths and batches a server is measured, and what follows from it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Final

from controlplane.domain.throughput.profile import KvSize

_SHORTEST: Final = 256
_LONGEST: Final = 1 << 17


def prompt_lengths(context_tokens_max: int) -> list[int]:
    """Powers of two that leave room for a token of output."""
    lengths = [1 << power for power in range(_SHORTEST.bit_length() - 1, _LONGEST.bit_length())]
    return [length for length in lengths if length < context_tokens_max]


def batches() -> Iterator[int]:
    """Powers of two, without end: the server says when it is full."""
    return accumulate((2 for _ in range(62)), int.__mul__, initial=1)


def batch_within(steps_s: Mapping[int, float], tpot_s: float) -> int:
    """
    The largest batch whose steps keep the objective, between those that were measured on a line.

    Args:
        steps_s: Seconds of a step by batch, one at least.
        tpot_s: The objective.

    Returns:
        The smallest one measured where even that is too slow.
    """
    points = sorted(steps_s.items())
    kept = points[0][0]
    for (batch, step_s), (larger, larger_s) in pairwise(points):
        if step_s > tpot_s:
            break
        kept = batch
        if larger_s > tpot_s:
            return batch + int((larger - batch) * (tpot_s - step_s) / (larger_s - step_s))
    return points[-1][0] if points[-1][1] <= tpot_s else kept


def rising(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """
    The same with no value below the one before: what a longer prompt took less was noise.

    Neighbours that fall are put at their mean, so that no noise is taken for the truth.
    """
    pools: list[tuple[float, int]] = []
    for _, value in points:
        pools.append((value, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (one, count), (other, others) = pools[-2:]
            whole = count + others
            pools[-2:] = [((one * count + other * others) / whole, whole)]
    values = [value for value, count in pools for _ in range(count)]
    return [(tokens, value) for (tokens, _), value in zip(points, values, strict=True)]


def kv_size_through(points: Sequence[tuple[int, int]]) -> KvSize:
    """
    The line through bytes by tokens, least squares relative to the bytes; no part below zero.

    Args:
        points: Pairs of tokens and bytes, two different lengths at least, all > 0.

    Raises:
        ValueError: Only one length.
    """
    if len({tokens for tokens, _ in points}) < 2:  # noqa: PLR2004 - a line has two ends
        raise ValueError("sizes at one length do not tell the state from the tokens")
    weights = [1 / size**2 for _, size in points]
    total = sum(weights)
    mean_tokens = sum(w * t for w, (t, _) in zip(weights, points, strict=True)) / total
    mean_bytes = sum(w * s for w, (_, s) in zip(weights, points, strict=True)) / total
    spread = sum(w * (t - mean_tokens) ** 2 for w, (t, _) in zip(weights, points, strict=True))
    together = sum(
        w * (t - mean_tokens) * (s - mean_bytes) for w, (t, s) in zip(weights, points, strict=True)
    )
    per_token = max(0.0, together / spread)
    return KvSize(
        state_bytes=max(0.0, mean_bytes - per_token * mean_tokens), bytes_per_token=per_token
    )
