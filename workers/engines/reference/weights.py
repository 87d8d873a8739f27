"""Seeded random weights: the same bits for the same seed on every machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, is_dataclass
from hashlib import sha256
from typing import Any, Final

import numpy as np

from controlplane.domain.byte_tokenizer import END_OF_TURN
from workers.engines.reference.dims import LAYOUT_VERSION, Dims, Floats

#: What a sublayer adds to the residual stream, relative to the embedding. Large enough that the
#: next token depends on the whole prompt and not on the last token alone.
_BRANCH_SCALE: Final = 1.0
#: Spread of the logits. A wide one makes greedy choices robust against rounding.
_LOGIT_SCALE: Final = 4.0
#: Spread of the attention scores; with normalised queries and keys they stay below 12.
_SCORE_SCALE: Final = 2.0
#: Forgetting rates of the linear-attention heads: one keeps a few tokens, one hundreds.
_DECAY_RATES: Final = (0.5, 0.1, 0.02, 0.004)
#: Added to the logits of what may be put out, so that it looks like words; all else is -inf.
_SPACE_BIAS: Final = 4.0
_LOWERCASE_BIAS: Final = 1.0
_COMMON_LETTERS: Final = b"etaoinshrdlu"
_COMMON_BIAS: Final = 2.5
_OTHER_BIAS: Final = -5.0
#: Answers end now and then: after some hundred tokens, seldom before a dozen.
_END_BIAS: Final = -3.0
#: How much a token speaks against itself in the next place: without it, some prompts end in one
#: letter for ever.
_REPEAT_AVERSION: Final = 0.15


@dataclass(frozen=True, slots=True, kw_only=True)
class Mlp:
    """SwiGLU."""

    #: (width,)
    norm: Floats
    #: (width, 2 * mlp_width): gate, then up.
    inward: Floats
    #: (mlp_width, width)
    outward: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearAttention:
    """A gated delta rule layer."""

    #: (width,)
    norm: Floats
    #: (width, 4 * linear_width + 2 * heads): queries, keys, values, output gate, beta, decay.
    inward: Floats
    #: (taps, 3 * linear_width)
    conv: Floats
    #: (heads,), negative: log decay per unit of softplus.
    decay_rate: Floats
    #: (linear_head_width,)
    out_norm: Floats
    #: (linear_width, width)
    outward: Floats
    mlp: Mlp


@dataclass(frozen=True, slots=True, kw_only=True)
class FullAttention:
    """A grouped-query attention layer."""

    #: (width,)
    norm: Floats
    #: (width, (query_heads + 2 * kv_heads) * head_width): queries, keys, values.
    inward: Floats
    #: (head_width,), with the scale of the scores in it.
    query_norm: Floats
    #: (head_width,)
    key_norm: Floats
    #: (query_heads * head_width, width)
    outward: Floats
    mlp: Mlp


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """All of the model."""

    #: (vocabulary, width)
    embedding: Floats
    layers: tuple[LinearAttention | FullAttention, ...]
    #: (width,)
    norm: Floats
    #: (width, vocabulary)
    head: Floats
    #: (vocabulary,): -inf for what may not be put out.
    head_bias: Floats


def make_weights(dims: Dims, seed: int) -> Weights:
    """Draw a model."""
    return _Painter(dims, seed).model()


def fingerprint_of(dims: Dims, weights: Weights, *, name: str, seed: int) -> str:
    """
    Digest of everything that KV depends on.

    The weights themselves are in it and not only their seed: a NumPy that drew other numbers
    would make another model, and must not exchange KV with this one.
    """
    digest = sha256()
    digest.update(repr((name, seed, LAYOUT_VERSION, "<f4", sorted(asdict(dims).items()))).encode())
    for array in _arrays(weights):
        digest.update(np.ascontiguousarray(array, dtype="<f4").data)
    return digest.hexdigest()[:32]


class _Painter:
    """
    Draws weights in one fixed order.

    Uniform numbers need integer and exact float operations only; normal ones would call the
    machine's logarithm, whose last bit differs between machines.
    """

    def __init__(self, dims: Dims, seed: int) -> None:
        self._dims = dims
        self._rng = np.random.Generator(np.random.PCG64(seed))

    def model(self) -> Weights:
        dims = self._dims
        embedding = self._uniform(dims.vocabulary, dims.width, spread=1.0)
        layers = tuple(
            self._full() if dims.is_full(layer) else self._linear() for layer in range(dims.layers)
        )
        return Weights(
            embedding=embedding,
            layers=layers,
            norm=self._gain(dims.width),
            head=self._matrix(dims.width, dims.vocabulary, scale=_LOGIT_SCALE)
            - embedding.T * np.float32(_REPEAT_AVERSION),
            head_bias=_head_bias(dims.vocabulary),
        )

    def _linear(self) -> LinearAttention:
        dims = self._dims
        rates = np.resize(np.array(_DECAY_RATES, dtype=np.float32), dims.linear_heads)
        columns = 4 * dims.linear_width + 2 * dims.linear_heads
        return LinearAttention(
            norm=self._gain(dims.width),
            inward=self._matrix(dims.width, columns),
            conv=self._uniform(dims.conv_taps, dims.conv_channels, spread=0.7),
            decay_rate=-rates,
            out_norm=self._gain(dims.linear_head_width),
            outward=self._matrix(dims.linear_width, dims.width, scale=_BRANCH_SCALE * 2),
            mlp=self._mlp(),
        )

    def _full(self) -> FullAttention:
        dims = self._dims
        columns = (dims.query_heads + 2 * dims.kv_heads) * dims.head_width
        score_gain = np.float32(_SCORE_SCALE) / np.sqrt(np.float32(dims.head_width))
        return FullAttention(
            norm=self._gain(dims.width),
            inward=self._matrix(dims.width, columns),
            query_norm=self._gain(dims.head_width) * score_gain,
            key_norm=self._gain(dims.head_width),
            outward=self._matrix(
                dims.query_heads * dims.head_width, dims.width, scale=_BRANCH_SCALE
            ),
            mlp=self._mlp(),
        )

    def _mlp(self) -> Mlp:
        dims = self._dims
        return Mlp(
            norm=self._gain(dims.width),
            inward=self._matrix(dims.width, 2 * dims.mlp_width),
            outward=self._matrix(dims.mlp_width, dims.width, scale=_BRANCH_SCALE * 2),
        )

    def _matrix(self, rows: int, columns: int, *, scale: float = 1.0) -> Floats:
        """Rows of spread 1 come out with spread `scale`."""
        factor = np.float32(scale) / np.sqrt(np.float32(rows))
        matrix: Floats = self._uniform(rows, columns, spread=1.0) * factor
        return matrix

    def _gain(self, width: int) -> Floats:
        return self._uniform(width, spread=0.1) + np.float32(1)

    def _uniform(self, *shape: int, spread: float) -> Floats:
        """Mean 0 and standard deviation `spread`."""
        drawn = self._rng.random(shape, dtype=np.float32)
        centred: Floats = drawn - np.float32(0.5)
        factor: np.float32 = np.float32(spread) * np.sqrt(np.float32(12))
        return centred * factor


def _head_bias(vocabulary: int) -> Floats:
    """Only printable ASCII, newline and END_OF_TURN: whatever comes out can be read."""
    bias = np.full(vocabulary, -np.inf, dtype=np.float32)
    bias[0x20:0x7F] = _OTHER_BIAS
    bias[ord("a") : ord("z") + 1] = _LOWERCASE_BIAS
    bias[list(_COMMON_LETTERS)] = _COMMON_BIAS
    bias[ord(" ")] = _SPACE_BIAS
    bias[ord("\n")] = _OTHER_BIAS
    bias[END_OF_TURN] = _END_BIAS
    return bias


def _arrays(value: Any) -> Iterator[Floats]:  # noqa: ANN401 - a tree of dataclasses and tuples
    """All arrays below a value, in the order of their fields."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _arrays(item)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _arrays(getattr(value, field.name))
