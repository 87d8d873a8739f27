"""
The mathematics of the reference model, as pure functions of arrays.

Every product of matrices here has a shape that depends on the position in the prompt alone, never
on who else is computed: BLAS may round differently for another shape, and equality between
processes rests on it doing the same thing twice.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.lib.stride_tricks import as_strided

from workers.engines.reference.dims import Floats

#: Keys that a block of queries attends to at once; scores of one tile stay in the L2 cache.
KEY_TILE_TOKENS: Final = 256
_EPSILON: Final = 1e-6


def rms_norm(x: Floats, gain: Floats) -> Floats:
    """Rows of `x` (..., width) scaled to a root mean square of 1, times `gain` (width,)."""
    mean = np.square(x).sum(axis=-1, keepdims=True) / x.shape[-1]
    scaled: Floats = x * (gain / np.sqrt(mean + _EPSILON))
    return scaled


def unit_rows(x: Floats) -> Floats:
    """Rows of `x` (..., width) scaled to length 1; a zero row stays zero."""
    scaled: Floats = x / np.sqrt(np.square(x).sum(axis=-1, keepdims=True) + _EPSILON)
    return scaled


def sigmoid(x: Floats) -> Floats:
    """Logistic function; by tanh, which cannot overflow."""
    result: Floats = np.tanh(x * 0.5) * 0.5 + 0.5
    return result


def silu(x: Floats) -> Floats:
    """`x * sigmoid(x)`."""
    return x * sigmoid(x)


def gated(x: Floats, gate: Floats) -> Floats:
    """`x` where the gate is open, as `silu(gate)` says."""
    out: Floats = x * silu(gate)
    return out


def softplus(x: Floats) -> Floats:
    """`log(1 + exp(x))` without overflow."""
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def causal_conv(x: Floats, kernel: Floats) -> Floats:
    """
    Depthwise causal convolution.

    Args:
        x: (..., tokens + taps - 1, channels), the tail of earlier tokens first.
        kernel: (taps, channels); the last tap is the token's own.

    Returns:
        (..., tokens, channels).
    """
    taps = len(kernel)
    tokens = x.shape[-2] - taps + 1
    out: Floats = x[..., :tokens, :] * kernel[0]
    for tap in range(1, taps):
        out += x[..., tap : tap + tokens, :] * kernel[tap]
    return out


# --- Linear attention: the gated delta rule ---------------------------------------------------


def delta_step(
    q: Floats, k: Floats, v: Floats, beta: Floats, log_decay: Floats, state: Floats
) -> Floats:
    """
    One token of the gated delta rule: forget, correct what the key recalls, read.

    With `a = exp(log_decay)`, `S <- a S`, then `S <- S + beta k (v - S^T k)^T`, then `S^T q`.

    Args:
        q: (..., key), scaled by the caller.
        k: (..., key), of length 1.
        v: (..., value).
        beta: (...), writing strength in (0, 1).
        log_decay: (...), <= 0.
        state: (..., key, value); changed in place.

    Returns:
        (..., value).

    Source:
        Yang et al., Gated Delta Networks (arXiv 2412.06464), Eq. 10.
    """
    state *= np.exp(log_decay)[..., None, None]
    recalled = (k[..., None, :] @ state)[..., 0, :]
    correction = (v - recalled) * beta[..., None]
    state += k[..., :, None] * correction[..., None, :]
    return (q[..., None, :] @ state)[..., 0, :]


def delta_block(
    q: Floats, k: Floats, v: Floats, beta: Floats, log_decay: Floats, state: Floats
) -> Floats:
    """
    A block of tokens of the gated delta rule, in matrix products (WY form).

    Within the block the corrections of all tokens solve one unit lower triangular system; the
    result equals `delta_step` token by token up to rounding.

    Args:
        q: (heads, tokens, key), scaled by the caller; `tokens` is a power of two.
        k: (heads, tokens, key), of length 1.
        v: (heads, tokens, value).
        beta: (heads, tokens); 0 makes a token write nothing.
        log_decay: (heads, tokens), <= 0; 0 makes a token forget nothing.
        state: (heads, key, value); changed in place.

    Returns:
        (heads, tokens, value).

    Source:
        Yang et al., Gated Delta Networks (arXiv 2412.06464), section 3.3.
    """
    tokens = k.shape[1]
    decayed = np.cumsum(log_decay, axis=1)
    later = np.triu(np.full((tokens, tokens), -np.inf, dtype=np.float32), 1)
    # Decay from token j to token i; masked before exp, which would overflow above the diagonal.
    between = np.exp((decayed[:, :, None] - decayed[:, None, :]) + later)
    k_columns = k.transpose(0, 2, 1)
    k_beta = k * beta[:, :, None]
    since_start = np.exp(decayed)[:, :, None]

    inverse = unit_lower_inverse((k_beta @ k_columns) * between)
    corrections = inverse @ (v * beta[:, :, None] - (k_beta * since_start) @ state)
    out: Floats = (q * since_start) @ state + ((q @ k_columns) * between) @ corrections

    total = decayed[:, -1:]
    until_end = np.exp(total - decayed)[:, :, None]
    state *= np.exp(total)[:, :, None]
    state += (k * until_end).transpose(0, 2, 1) @ corrections
    return out


def unit_lower_inverse(lower: Floats) -> Floats:
    """
    Inverse of `1 + L`, where `L` is what `lower` has below the diagonal.

    Blocks of 1, 2, 4 ... rows are joined: the inverse of ((A, 0), (C, D)) has
    `-D^-1 C A^-1` in its lower corner. The series `1 - L + L^2 ...` would be fewer calls, but its
    terms grow beyond float32 when a prompt repeats one token.

    Args:
        lower: (batch, n, n), C-contiguous, n a power of two. Diagonal and above are not read.

    Returns:
        (batch, n, n).
    """
    batch, rows, _ = lower.shape
    inverse = np.zeros_like(lower)
    inverse[:, np.arange(rows), np.arange(rows)] = 1
    across, down, right = lower.strides
    size = 1
    while size < rows:
        pairs = (batch, rows // (2 * size))
        step = (across, 2 * size * (down + right), down, right)
        joined = as_strided(inverse, (*pairs, 2 * size, 2 * size), step)
        corner = as_strided(lower[:, size:, :], (*pairs, size, size), step)
        upper_left = joined[..., :size, :size]
        lower_right = joined[..., size:, size:]
        joined[..., size:, :size] = -(lower_right @ (corner @ upper_left))
        size *= 2
    return inverse


# --- Full attention ---------------------------------------------------------------------------


def rotary_tables(positions: int, width: int, base: float) -> tuple[Floats, Floats]:
    """Cosines and sines of the rotary angles, each (positions, width / 2)."""
    rates = float(base) ** (-np.arange(0, width, 2, dtype=np.float64) / width)
    angles = np.arange(positions, dtype=np.float64)[:, None] * rates
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate(x: Floats, cosines: Floats, sines: Floats) -> Floats:
    """Turn the pairs (i, i + width / 2) of the rows of `x` (..., width) by their angles."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    return np.concatenate(
        (first * cosines - second * sines, first * sines + second * cosines), axis=-1
    )


def attend_block(queries: Floats, keys: Floats, values: Floats, start: int) -> Floats:
    """
    Causal attention of one block of queries over all tokens before it and itself.

    Tiles of keys lie at absolute positions, so a prefill that resumes adds up the same sums in
    the same order as one that did not. No running maximum is needed: queries and keys are
    normalised, which bounds the scores far below the overflow of float32.

    Args:
        queries: (kv_heads, group, tokens, width), normalised, rotated and scaled.
        keys: (kv_heads, capacity, width); the block's own from `start` on.
        values: (kv_heads, capacity, width).
        start: Position of the first query.

    Returns:
        (kv_heads, group, tokens, width).
    """
    kv_heads, group, tokens, width = queries.shape
    rows = queries.reshape(kv_heads, group * tokens, width)
    own = slice(start, start + tokens)
    weights = np.exp(rows @ keys[:, own].transpose(0, 2, 1))
    weights *= np.tile(np.tri(tokens, dtype=np.float32), (group, 1))
    total = weights.sum(axis=-1, keepdims=True)
    out: Floats = weights @ values[:, own]
    for tile in range(0, start, KEY_TILE_TOKENS):
        span = slice(tile, min(tile + KEY_TILE_TOKENS, start))
        weights = rows @ keys[:, span].transpose(0, 2, 1)
        np.exp(weights, out=weights)
        total += weights.sum(axis=-1, keepdims=True)
        out += weights @ values[:, span]
    out /= total
    return out.reshape(queries.shape)


def attend_step(
    query: Floats, keys: Floats, values: Floats, position: int, block_tokens: int
) -> Floats:
    """
    Attention of one query over all tokens up to its own.

    Args:
        query: (kv_heads, group, width), normalised, rotated and scaled.
        keys: (kv_heads, capacity, width), finite up to the end of the block of `position`.
        values: (kv_heads, capacity, width).
        position: The query's own.
        block_tokens: Lengths are rounded up to this, so that shapes change once in a block only.

    Returns:
        (kv_heads, group, width).
    """
    padded = (position // block_tokens + 1) * block_tokens
    weights = np.exp(query @ keys[:, :padded].transpose(0, 2, 1))
    weights[:, :, position + 1 :] = 0
    out: Floats = weights @ values[:, :padded] / weights.sum(axis=-1, keepdims=True)
    return out
