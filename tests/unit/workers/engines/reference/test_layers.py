from __future__ import annotations

import numpy as np
import pytest

from workers.engines.reference import layers
from workers.engines.reference.dims import Floats

HEADS, TOKENS, WIDTH = 4, 64, 32


def some(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def delta_inputs(seed: int = 0) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Queries, keys, values, beta and log decay of one block."""
    q, k, v = some(3, HEADS, TOKENS, WIDTH, seed=seed)
    beta = layers.sigmoid(some(HEADS, TOKENS, seed=seed + 1))
    log_decay = -layers.softplus(some(HEADS, TOKENS, seed=seed + 2)) * np.float32(0.2)
    return layers.unit_rows(q), layers.unit_rows(k), v, beta, log_decay


def step_by_step(
    q: Floats, k: Floats, v: Floats, beta: Floats, log_decay: Floats, state: Floats
) -> Floats:
    """The recurrence as it is written in the paper, in double precision, one matrix a token."""
    out = np.zeros_like(v, dtype=np.float64)
    for head in range(len(q)):
        carried = state[head].astype(np.float64)
        for t in range(q.shape[1]):
            key = k[head, t].astype(np.float64)
            forget = np.eye(len(key)) - beta[head, t] * np.outer(key, key)
            carried = np.exp(np.float64(log_decay[head, t])) * forget @ carried
            carried += beta[head, t] * np.outer(key, v[head, t])
            out[head, t] = carried.T @ q[head, t]
        state[head] = carried
    return out.astype(np.float32)


def test_delta_block_equals_the_recurrence_of_the_paper() -> None:
    inputs = delta_inputs()
    state = some(HEADS, WIDTH, WIDTH, seed=9)
    expected_state = state.copy()

    out = layers.delta_block(*inputs, state)

    np.testing.assert_allclose(out, step_by_step(*inputs, expected_state), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(state, expected_state, rtol=1e-4, atol=1e-4)


def test_delta_step_equals_the_recurrence_of_the_paper() -> None:
    q, k, v, beta, log_decay = delta_inputs()
    state = some(HEADS, WIDTH, WIDTH, seed=9)
    expected_state = state.copy()
    one = slice(0, 1)

    out = layers.delta_step(q[:, 0], k[:, 0], v[:, 0], beta[:, 0], log_decay[:, 0], state)

    expected = step_by_step(
        q[:, one], k[:, one], v[:, one], beta[:, one], log_decay[:, one], expected_state
    )
    np.testing.assert_allclose(out, expected[:, 0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(state, expected_state, rtol=1e-5, atol=1e-5)


def test_delta_block_stays_accurate_when_one_key_is_repeated() -> None:
    q, k, v, beta, log_decay = delta_inputs()
    k[:] = k[:, :1]
    beta[:] = 0.999
    log_decay[:] = 0
    state = np.zeros((HEADS, WIDTH, WIDTH), dtype=np.float32)
    expected_state = state.copy()

    out = layers.delta_block(q, k, v, beta, log_decay, state)

    expected = step_by_step(q, k, v, beta, log_decay, expected_state)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)


def test_delta_block_survives_decays_that_leave_nothing() -> None:
    q, k, v, beta, log_decay = delta_inputs()
    log_decay[:] = -30

    out = layers.delta_block(q, k, v, beta, log_decay, some(HEADS, WIDTH, WIDTH))

    assert np.isfinite(out).all()


def test_padding_rows_leave_no_trace_in_the_delta_state() -> None:
    q, k, v, beta, log_decay = delta_inputs()
    beta[:, 40:] = 0
    log_decay[:, 40:] = 0
    start = some(HEADS, WIDTH, WIDTH, seed=9)
    first, second = start.copy(), start.copy()

    layers.delta_block(q, k, v, beta, log_decay, first)
    q[:, 40:], v[:, 40:] = 5, -3
    k[:, 40:] = layers.unit_rows(some(HEADS, TOKENS - 40, WIDTH, seed=5))
    layers.delta_block(q, k, v, beta, log_decay, second)

    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("size", [1, 2, 8, 64])
def test_unit_lower_inverse_is_the_inverse(size: int) -> None:
    lower = np.tril(some(3, size, size) * np.float32(0.2), -1)

    inverse = layers.unit_lower_inverse(lower)

    product = inverse @ (lower + np.eye(size, dtype=np.float32))
    np.testing.assert_allclose(product, np.broadcast_to(np.eye(size), product.shape), atol=1e-5)


def test_unit_lower_inverse_reads_nothing_on_or_above_the_diagonal() -> None:
    matrix = some(2, 16, 16)

    inverse = layers.unit_lower_inverse(matrix)

    np.testing.assert_array_equal(inverse, layers.unit_lower_inverse(np.tril(matrix, -1)))


def test_causal_conv_weighs_the_tokens_before() -> None:
    x, kernel = some(7, 5), some(4, 5, seed=1)

    out = layers.causal_conv(x, kernel)

    expected = [sum(kernel[tap] * x[t + tap] for tap in range(4)) for t in range(4)]
    np.testing.assert_allclose(out, np.array(expected), rtol=1e-5, atol=1e-6)


def test_rotated_products_depend_on_the_distance_alone() -> None:
    cosines, sines = layers.rotary_tables(100, WIDTH, 10_000)
    q, k = some(2, WIDTH)

    near = layers.rotate(q, cosines[5], sines[5]) @ layers.rotate(k, cosines[2], sines[2])
    far = layers.rotate(q, cosines[95], sines[95]) @ layers.rotate(k, cosines[92], sines[92])

    assert near == pytest.approx(far, abs=1e-4)


def plain_attention(queries: Floats, keys: Floats, values: Floats, start: int) -> Floats:
    """Softmax attention as in a textbook, in double precision."""
    out = np.zeros(queries.shape)
    for head, group, t in np.ndindex(queries.shape[:3]):
        seen = start + t + 1
        scores = keys[head, :seen].astype(np.float64) @ queries[head, group, t]
        weights = np.exp(scores - scores.max())
        out[head, group, t] = weights @ values[head, :seen] / weights.sum()
    return out.astype(np.float32)


@pytest.mark.parametrize("start", [0, 64, 256, 320, 576])
def test_attend_block_equals_plain_attention(start: int) -> None:
    queries = some(2, 2, 64, WIDTH) * np.float32(0.3)
    keys, values = some(2, 2, 700, WIDTH, seed=1)

    out = layers.attend_block(queries, keys, values, start)

    np.testing.assert_allclose(
        out, plain_attention(queries, keys, values, start), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("position", [0, 63, 64, 500])
def test_attend_step_equals_plain_attention(position: int) -> None:
    query = some(2, 2, WIDTH) * np.float32(0.3)
    keys, values = some(2, 2, 704, WIDTH, seed=1)

    out = layers.attend_step(query, keys, values, position, 64)

    expected = plain_attention(query[:, :, None], keys, values, position)[:, :, 0]
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


def test_attend_block_adds_up_the_same_sums_whatever_lies_behind() -> None:
    queries = some(2, 2, 64, WIDTH) * np.float32(0.3)
    keys, values = some(2, 2, 704, WIDTH, seed=1)

    whole = layers.attend_block(queries, keys, values, 320)
    alone = layers.attend_block(queries, keys[:, :384].copy(), values[:, :384].copy(), 320)

    np.testing.assert_array_equal(whole, alone)


def test_extreme_inputs_do_not_overflow() -> None:
    x = np.array([-1e4, 0, 1e4], dtype=np.float32)

    np.testing.assert_array_equal(layers.sigmoid(x), [0, 0.5, 1])
    np.testing.assert_allclose(layers.softplus(x), [0, np.log(2), 1e4], rtol=1e-6)
    np.testing.assert_array_equal(layers.silu(x), [0, 0, 1e4])


def test_norms_of_zero_rows_are_zero() -> None:
    zero = np.zeros((2, 8), dtype=np.float32)

    np.testing.assert_array_equal(layers.rms_norm(zero, np.ones(8, dtype=np.float32)), zero)
    np.testing.assert_array_equal(layers.unit_rows(zero), zero)
