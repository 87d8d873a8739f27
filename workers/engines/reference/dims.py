"""Sizes of the reference model, and what follows from them for the bytes of its KV."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from controlplane.domain.byte_tokenizer import VOCABULARY_SIZE

Floats: TypeAlias = npt.NDArray[np.float32]
Ints: TypeAlias = npt.NDArray[np.int64]

#: Bumped whenever the bytes of a piece mean something else; part of the fingerprint.
LAYOUT_VERSION: Final = 1
#: Every fourth layer has full attention, the three before it have linear attention.
_PERIOD: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Dims:
    """Sizes of one model. Only `layers` is a user's choice; the rest is what the weights are."""

    #: A multiple of four.
    layers: int = 8
    #: Width of the residual stream.
    width: int = 128
    vocabulary: int = VOCABULARY_SIZE
    #: Rows of every prefill step, and the unit of prefix hashes.
    block_tokens: int = 64
    linear_heads: int = 4
    #: Key and value width of a linear-attention head: its state is a square of this side.
    linear_head_width: int = 32
    #: Taps of the causal convolution; one less than this is carried from token to token.
    conv_taps: int = 4
    query_heads: int = 4
    kv_heads: int = 2
    #: Width of a full-attention head; even, because rotary positions turn pairs.
    head_width: int = 32
    mlp_width: int = 256
    #: Base of the rotary angles.
    rotary_base: int = 100_000

    @property
    def full_layers(self) -> int:
        """Layers with full attention."""
        return self.layers // _PERIOD

    @property
    def linear_layers(self) -> int:
        """Layers with linear attention."""
        return self.layers - self.full_layers

    @property
    def linear_width(self) -> int:
        """Columns of the queries, of the keys and of the values of a linear-attention layer."""
        return self.linear_heads * self.linear_head_width

    @property
    def conv_channels(self) -> int:
        """Columns that go through the convolution: queries, keys, values."""
        return 3 * self.linear_width

    def is_full(self, layer: int) -> bool:
        """Whether a layer has full attention."""
        return layer % _PERIOD == _PERIOD - 1

    @property
    def recurrent_shape(self) -> tuple[int, int, int, int]:
        """Recurrent states of one sequence: (linear layer, head, key, value)."""
        side = self.linear_head_width
        return (self.linear_layers, self.linear_heads, side, side)

    @property
    def conv_shape(self) -> tuple[int, int, int]:
        """Convolution tails of one sequence: (linear layer, token, channel), oldest token first."""
        return (self.linear_layers, self.conv_taps - 1, self.conv_channels)

    @property
    def attention_bytes_per_token(self) -> int:
        """Bytes of keys and values of one token in all full-attention layers."""
        return self.full_layers * 2 * self.kv_heads * self.head_width * 4

    @property
    def state_bytes(self) -> int:
        """Bytes of all recurrent states and convolution tails of one sequence."""
        layers, heads, keys, values = self.recurrent_shape
        _, taps, channels = self.conv_shape
        return layers * (heads * keys * values + taps * channels) * 4
