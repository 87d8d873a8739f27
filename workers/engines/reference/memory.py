"""What one sequence remembers, as arrays and as the bytes of KV pieces."""

from __future__ import annotations

from typing import Final

import numpy as np

from workers.engines.reference.dims import Dims, Floats

#: All KV crosses processes as little-endian float32, whatever the machine.
_WIRE_DTYPE: Final = np.dtype("<f4")


class AttentionMemory:
    """
    Keys and values of one sequence in all full-attention layers.

    Compute wants the tokens of one head together, pieces want the heads of one token together;
    `import_piece` and `export_piece` turn one into the other.
    """

    __slots__ = ("_dims", "arrays")

    def __init__(self, dims: Dims, tokens: int) -> None:
        self._dims = dims
        blocks = -(-tokens // dims.block_tokens)
        #: (full layer, key or value, kv head, token, head width); `capacity` is whole blocks.
        #: Zeroed pages are not backed by memory until they are written.
        self.arrays: Floats = np.zeros(
            (dims.full_layers, 2, dims.kv_heads, blocks * dims.block_tokens, dims.head_width),
            dtype=np.float32,
        )

    def import_piece(self, data: bytes, token_start: int) -> None:
        """Take the bytes of an attention piece."""
        dims = self._dims
        shape = (dims.full_layers, 2, -1, dims.kv_heads, dims.head_width)
        piece = np.frombuffer(data, dtype=_WIRE_DTYPE).reshape(shape)
        span = slice(token_start, token_start + piece.shape[2])
        self.arrays[:, :, :, span] = piece.transpose(0, 1, 3, 2, 4)

    def export_piece(self, token_start: int, token_end: int) -> bytes:
        """The bytes of an attention piece: (full layer, key or value, token, kv head, width)."""
        piece = self.arrays[:, :, :, token_start:token_end].transpose(0, 1, 3, 2, 4)
        return piece.astype(_WIRE_DTYPE, order="C", copy=False).tobytes()


class StateMemory:
    """Recurrent states and convolution tails of one sequence in all linear-attention layers."""

    __slots__ = ("conv", "recurrent")

    def __init__(self, dims: Dims) -> None:
        #: `Dims.recurrent_shape`
        self.recurrent: Floats = np.zeros(dims.recurrent_shape, dtype=np.float32)
        #: `Dims.conv_shape`
        self.conv: Floats = np.zeros(dims.conv_shape, dtype=np.float32)

    def import_piece(self, data: bytes) -> None:
        """Take the bytes of a state piece."""
        values = np.frombuffer(data, dtype=_WIRE_DTYPE)
        split = self.recurrent.size
        self.recurrent[...] = values[:split].reshape(self.recurrent.shape)
        self.conv[...] = values[split:].reshape(self.conv.shape)

    def export_piece(self) -> bytes:
        """The bytes of a state piece: all recurrent states, then all convolution tails."""
        parts = (self.recurrent, self.conv)
        return b"".join(part.astype(_WIRE_DTYPE, copy=False).tobytes() for part in parts)
