"""The reference model: one block of a prefill, or one step of a decode batch, in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from workers.engines.reference import layers
from workers.engines.reference.dims import Dims, Floats, Ints
from workers.engines.reference.memory import AttentionMemory, StateMemory
from workers.engines.reference.weights import FullAttention, LinearAttention, Mlp, Weights


class DecodeRow(Protocol):
    """What a decode step needs of one sequence besides its state."""

    @property
    def token(self) -> int:
        """Token to compute."""

    @property
    def position(self) -> int:
        """Its position."""

    @property
    def attention(self) -> AttentionMemory:
        """Keys and values of all tokens before it, and room for its own."""


class Model:
    """
    Weights and the two ways through them.

    A prefill step always has `block_tokens` rows at a multiple of `block_tokens`; a decode step
    multiplies each row by itself. So every result is a function of its own prompt, to the bit.
    """

    def __init__(self, dims: Dims, weights: Weights, *, context_tokens_max: int) -> None:
        self.dims = dims
        self._weights = weights
        self._cosines, self._sines = layers.rotary_tables(
            context_tokens_max + dims.block_tokens, dims.head_width, dims.rotary_base
        )

    # --- Prefill ------------------------------------------------------------------------------

    def prefill_block(
        self, tokens: Ints, start: int, attention: AttentionMemory, state: StateMemory
    ) -> None:
        """
        Compute one block.

        Args:
            tokens: (count,), 1 <= count <= block_tokens; fewer are padded to a whole block.
            start: Position of the first, a multiple of `block_tokens`.
            attention: Holds all tokens before `start`; the block's are written.
            state: Valid at `start`; becomes valid at `start + count`.
        """
        count = len(tokens)
        padded = np.zeros(self.dims.block_tokens, dtype=np.int64)
        padded[:count] = tokens
        x = self._weights.embedding[padded]
        linear = full = 0
        for layer in self._weights.layers:
            if isinstance(layer, LinearAttention):
                recurrent, conv = state.recurrent[linear], state.conv[linear]
                x += self._linear_block(layer, x, count, recurrent, conv)
                linear += 1
            else:
                x += self._full_block(layer, x, start, attention.arrays[full])
                full += 1
            x += _mlp(layer.mlp, x)

    def _linear_block(
        self, layer: LinearAttention, x: Floats, count: int, recurrent: Floats, conv: Floats
    ) -> Floats:
        dims = self.dims
        tokens, heads, width = len(x), dims.linear_heads, dims.linear_head_width
        mixed, gate, beta, log_decay = self._linear_inputs(layer, x)
        # Rows that only pad the block must leave no trace in the state.
        beta[count:] = 0
        log_decay[count:] = 0
        window = np.concatenate((conv, mixed))
        conv[...] = window[count : count + dims.conv_taps - 1]
        qkv = layers.silu(layers.causal_conv(window, layer.conv))
        q, k, v = qkv.reshape(tokens, 3, heads, width).transpose(1, 2, 0, 3)
        out = layers.delta_block(
            layers.unit_rows(q), layers.unit_rows(k), v, beta.T, log_decay.T, recurrent
        )
        return self._linear_output(layer, out.transpose(1, 0, 2), gate)

    def _full_block(self, layer: FullAttention, x: Floats, start: int, memory: Floats) -> Floats:
        dims = self.dims
        span = slice(start, start + len(x))
        q, k, v = self._full_inputs(layer, x, self._cosines[span], self._sines[span])
        keys, values = memory
        keys[:, span] = k.transpose(1, 0, 2)
        values[:, span] = v.transpose(1, 0, 2)
        group = dims.query_heads // dims.kv_heads
        queries = q.transpose(1, 0, 2).reshape(dims.kv_heads, group, len(x), dims.head_width)
        out = layers.attend_block(queries, keys, values, start)
        rows = out.transpose(2, 0, 1, 3).reshape(len(x), dims.query_heads * dims.head_width)
        return rows @ layer.outward

    # --- Decode -------------------------------------------------------------------------------

    def decode_step(self, rows: Sequence[DecodeRow], recurrent: Floats, conv: Floats) -> Floats:
        """
        Compute one token of each row.

        Args:
            rows: The sequences; the keys and values of their tokens are written.
            recurrent: (linear layer, row, head, key, value); changed in place.
            conv: (linear layer, row, taps - 1, channel); changed in place.

        Returns:
            Logits, (row, vocabulary); -inf for what the model never puts out.
        """
        # (row, 1, width): a stack of vectors, so that BLAS sees each row alone and a row's bits
        # cannot depend on the others.
        x = self._weights.embedding[[row.token for row in rows]][:, None, :]
        linear = full = 0
        for layer in self._weights.layers:
            if isinstance(layer, LinearAttention):
                x += self._linear_step(layer, x, recurrent[linear], conv[linear])
                linear += 1
            else:
                x += self._full_step(layer, x, rows, full)
                full += 1
            x += _mlp(layer.mlp, x)
        weights = self._weights
        logits: Floats = layers.rms_norm(x, weights.norm) @ weights.head + weights.head_bias
        return logits[:, 0, :]

    def _linear_step(
        self, layer: LinearAttention, x: Floats, recurrent: Floats, conv: Floats
    ) -> Floats:
        dims = self.dims
        mixed, gate, beta, log_decay = self._linear_inputs(layer, x)
        window = np.concatenate((conv, mixed), axis=1)
        conv[...] = window[:, 1:]
        qkv = layers.silu(layers.causal_conv(window, layer.conv))
        shape = (len(x), 3, dims.linear_heads, dims.linear_head_width)
        q, k, v = qkv.reshape(shape).transpose(1, 0, 2, 3)
        out = layers.delta_step(
            layers.unit_rows(q), layers.unit_rows(k), v, beta[:, 0], log_decay[:, 0], recurrent
        )
        return self._linear_output(layer, out[:, None], gate)

    def _full_step(
        self, layer: FullAttention, x: Floats, rows: Sequence[DecodeRow], full: int
    ) -> Floats:
        dims = self.dims
        positions = [row.position for row in rows]
        cosines, sines = self._cosines[positions][:, None], self._sines[positions][:, None]
        q, k, v = self._full_inputs(layer, x, cosines, sines)
        group = dims.query_heads // dims.kv_heads
        q = q.reshape(len(rows), dims.kv_heads, group, dims.head_width)
        out = np.empty_like(q)
        for index, row in enumerate(rows):
            keys, values = row.attention.arrays[full]
            keys[:, row.position] = k[index, 0]
            values[:, row.position] = v[index, 0]
            out[index] = layers.attend_step(q[index], keys, values, row.position, dims.block_tokens)
        return out.reshape(len(rows), 1, -1) @ layer.outward

    # --- Shared -------------------------------------------------------------------------------

    def _linear_inputs(
        self, layer: LinearAttention, x: Floats
    ) -> tuple[Floats, Floats, Floats, Floats]:
        """Columns before the convolution, output gate, beta and log decay of rows of `x`."""
        dims = self.dims
        projected = layers.rms_norm(x, layer.norm) @ layer.inward
        cuts = np.cumsum([dims.conv_channels, dims.linear_width, dims.linear_heads])
        mixed, gate, beta, decay = np.split(projected, cuts, axis=-1)
        return mixed, gate, layers.sigmoid(beta), layers.softplus(decay) * layer.decay_rate

    def _linear_output(self, layer: LinearAttention, out: Floats, gate: Floats) -> Floats:
        """Normalise each head of `out` (..., heads, head width), gate it, project it."""
        normed = layers.rms_norm(out, layer.out_norm).reshape(gate.shape)
        return layers.gated(normed, gate) @ layer.outward

    def _full_inputs(
        self, layer: FullAttention, x: Floats, cosines: Floats, sines: Floats
    ) -> tuple[Floats, Floats, Floats]:
        """Queries, keys (both normalised and rotated) and values, (..., heads, head width)."""
        dims = self.dims
        projected = layers.rms_norm(x, layer.norm) @ layer.inward
        heads = projected.reshape(*x.shape[:-1], -1, dims.head_width)
        q, k, v = np.split(heads, [dims.query_heads, dims.query_heads + dims.kv_heads], axis=-2)
        cosines, sines = cosines[..., None, :], sines[..., None, :]
        q = layers.rotate(layers.rms_norm(q, layer.query_norm), cosines, sines)
        k = layers.rotate(layers.rms_norm(k, layer.key_norm), cosines, sines)
        return q, k, v


def _mlp(mlp: Mlp, x: Floats) -> Floats:
    gate, up = np.split(layers.rms_norm(x, mlp.norm) @ mlp.inward, 2, axis=-1)
    return layers.gated(up, gate) @ mlp.outward
