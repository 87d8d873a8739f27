"""
KV of a `DynamicCache` as bytes, and back.

A cache has layers of attention, which grow by a key and a value for each token, and layers of linear
attention, whose states have one size whatever the length. Layers may be both. An attention piece is
(layer, key or value, head, token, width); a state piece is the position it is valid at, then all
states in order of layers.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from controlplane.errors import ConfigError

#: Layers of a cache whose KV is all there is to know; others keep a window, or an index besides.
_LAYERS: Final = frozenset({
    "DynamicLayer", "LinearAttentionLayer", "LinearAttentionAndFullAttentionLayer",
})  # fmt: skip
#: Leads a state piece: the position, unsigned, little-endian.
_POSITION: Final = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class _Attention:
    """One tensor of an attention layer."""

    layer: int
    #: `keys` or `values`.
    name: str
    heads: int
    width: int
    dtype: torch.dtype

    @property
    def bytes_per_token(self) -> int:
        item_bytes: int = self.dtype.itemsize
        return self.heads * self.width * item_bytes


@dataclass(frozen=True, slots=True)
class _State:
    """One state of a layer of linear attention."""

    layer: int
    #: `conv` or `recurrent`.
    name: str
    number: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size_bytes(self) -> int:
        item_bytes: int = self.dtype.itemsize
        return math.prod(self.shape) * item_bytes


class KvCodec:
    """The layout of one model's KV, read from a cache that the model has filled."""

    def __init__(self, filled: Any) -> None:  # noqa: ANN401 - the library has no type for it
        """
        Args:
            filled: A cache of one sequence with a token or more.

        Raises:
            ConfigError: It has layers that this layout does not know, or none of attention.
        """
        kinds = {type(layer).__name__ for layer in filled.layers}
        if not kinds <= _LAYERS:
            raise ConfigError(
                f"KV in layers of the kind {', '.join(sorted(kinds - _LAYERS))} cannot be moved; "
                f"known: {', '.join(sorted(_LAYERS))}"
            )
        self._attention = tuple(_attention_of(filled))
        self._states = tuple(_states_of(filled))
        if not self._attention:
            raise ConfigError("a network without any layer of full attention cannot be served")
        self.attention_bytes_per_token = sum(part.bytes_per_token for part in self._attention)
        self.state_bytes = _POSITION.size + sum(part.size_bytes for part in self._states)

    def __repr__(self) -> str:
        return (
            f"<KvCodec {self.attention_bytes_per_token} bytes per token, "
            f"{self.state_bytes} bytes of state>"
        )

    def describe(self) -> str:
        """Everything that the bytes depend on, for a fingerprint."""
        return repr((self._attention, self._states))

    def initial_state(self) -> bytes:
        """The state before any token."""
        return bytes(self.state_bytes)

    def attention_piece(self, cache: Any, start: int, end: int) -> bytes:  # noqa: ANN401
        """Keys and values of tokens `start` to before `end`."""
        return b"".join(
            _bytes_of(getattr(cache.layers[part.layer], part.name)[:, :, start:end])
            for part in self._attention
        )

    def state_piece(self, cache: Any, position: int) -> bytes:  # noqa: ANN401
        """All states; `position` is what they are valid at."""
        states = (
            _bytes_of(getattr(cache.layers[part.layer], f"{part.name}_states")[part.number])
            for part in self._states
        )
        return b"".join((_POSITION.pack(position), *states))

    def fill(
        self,
        cache: Any,  # noqa: ANN401
        attention: Sequence[bytes],
        state: bytes,
        device: torch.device,
    ) -> int:
        """
        Write pieces into an empty cache.

        Args:
            cache: As the model makes it.
            attention: Pieces of all tokens, in order.
            state: A state piece.
            device: Of the model.

        Returns:
            Tokens it holds.

        Raises:
            ValueError: The state is of another position than the attention's end.
        """
        position: int = _POSITION.unpack_from(state)[0]
        tokens = sum(len(piece) for piece in attention) // self.attention_bytes_per_token
        if tokens != position:
            raise ValueError(f"the state is of position {position}, the attention of {tokens}")
        if position:
            self._fill_attention(cache, attention, device)
            self._fill_states(cache, memoryview(state)[_POSITION.size :], device)
        return position

    def _fill_attention(self, cache: Any, pieces: Sequence[bytes], device: torch.device) -> None:  # noqa: ANN401
        parts: list[list[torch.Tensor]] = [[] for _ in self._attention]
        for piece in pieces:
            count, at = len(piece) // self.attention_bytes_per_token, 0
            for number, part in enumerate(self._attention):
                size = count * part.bytes_per_token
                shape = (1, part.heads, count, part.width)
                parts[number].append(_tensor_of(piece[at : at + size], part.dtype, shape))
                at += size
        whole = [torch.cat(tensors, dim=2).to(device) for tensors in parts]
        by_layer: dict[int, dict[str, torch.Tensor]] = {}
        for part, tensor in zip(self._attention, whole, strict=True):
            by_layer.setdefault(part.layer, {})[part.name] = tensor
        for layer, tensors in by_layer.items():
            cache.layers[layer].update(tensors["keys"], tensors["values"])

    def _fill_states(self, cache: Any, data: memoryview, device: torch.device) -> None:  # noqa: ANN401
        at = 0
        for part in self._states:
            value = _tensor_of(data[at : at + part.size_bytes], part.dtype, part.shape).to(device)
            at += part.size_bytes
            layer = cache.layers[part.layer]
            name = f"{part.name}_states"
            layer.lazy_initialization(**{name: value, "state_idx": part.number})
            getattr(layer, name)[part.number].copy_(value)
            layer.has_previous_state[part.number] = True


def _attention_of(cache: Any) -> Iterator[_Attention]:  # noqa: ANN401
    for number, layer in enumerate(cache.layers):
        keys = getattr(layer, "keys", None)
        if keys is None or not keys.numel():
            continue
        for name in ("keys", "values"):
            tensor = getattr(layer, name)
            yield _Attention(number, name, tensor.shape[1], tensor.shape[3], tensor.dtype)


def _states_of(cache: Any) -> Iterator[_State]:  # noqa: ANN401
    for number, layer in enumerate(cache.layers):
        for name in ("conv", "recurrent"):
            is_there = getattr(layer, f"is_{name}_states_initialized", {})
            for index in sorted(index for index, has in is_there.items() if has):
                tensor = getattr(layer, f"{name}_states")[index]
                yield _State(number, name, index, tuple(tensor.shape), tensor.dtype)


def _bytes_of(tensor: torch.Tensor) -> bytes:
    raw: bytes = tensor.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes()
    return raw


def _tensor_of(
    data: bytes | memoryview, dtype: torch.dtype, shape: tuple[int, ...]
) -> torch.Tensor:
    # Copied: what torch works on has to be its own, and writable.
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)
