"""Prompt tokens as packed integers: what the edge makes once and every hop only copies."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

WidthBytes: TypeAlias = Literal[2, 4]

#: `array` type codes of unsigned integers by width; both are exact on every CPython platform.
_TYPECODE: dict[int, str] = {2: "H", 4: "I"}

#: Vocabularies up to this size travel as two bytes a token.
_NARROW_VOCABULARY_MAX = 1 << 16


def width_for(vocabulary_size: int) -> WidthBytes:
    """
    Bytes that one token of a vocabulary needs on the wire and in block hashes.

    The width belongs to the model, so that the same prompt always has the same hash.
    """
    return 2 if vocabulary_size <= _NARROW_VOCABULARY_MAX else 4


@dataclass(frozen=True, slots=True)
class TokenIds:
    """
    A prompt: token ids packed as little-endian unsigned integers.

    A list of 131,072 Python integers costs a megabyte and 20 ms to convert at each hop; packed
    bytes are hashed, sliced and sent as they are.
    """

    #: Exactly `len(self) * width_bytes` bytes, little-endian.
    data: bytes
    #: 2 or 4, the same for every prompt of one model.
    width_bytes: WidthBytes

    def __post_init__(self) -> None:
        if len(self.data) % self.width_bytes:
            raise ValueError(
                f"{len(self.data)} bytes are not a whole number of {self.width_bytes}-byte tokens"
            )

    def __len__(self) -> int:
        return len(self.data) // self.width_bytes

    def head(self, count: int) -> TokenIds:
        """
        The first `count` tokens; all of them when there are fewer.

        Raises:
            ValueError: `count` is negative.
        """
        if count < 0:
            raise ValueError(f"cannot take the first {count} tokens")
        return TokenIds(self.data[: count * self.width_bytes], self.width_bytes)

    def tail(self, count: int) -> TokenIds:
        """
        The last `count` tokens; all of them when there are fewer.

        Raises:
            ValueError: `count` is negative.
        """
        if count < 0:
            raise ValueError(f"cannot take the last {count} tokens")
        start = max(0, len(self) - count) * self.width_bytes
        return TokenIds(self.data[start:], self.width_bytes)

    def to_list(self) -> list[int]:
        """The ids as Python integers."""
        values = array(_TYPECODE[self.width_bytes], self.data)
        if sys.byteorder == "big":
            values.byteswap()
        return values.tolist()

    @classmethod
    def from_ints(cls, ids: Iterable[int], width_bytes: WidthBytes) -> TokenIds:
        """
        Pack ids.

        Raises:
            OverflowError: An id is negative or does not fit the width.
            TypeError: An id is not an integer.
        """
        # `array` would take bytes for packed values; an iterator of them is integers.
        values = array(_TYPECODE[width_bytes], iter(ids))
        if sys.byteorder == "big":
            values.byteswap()
        return cls(values.tobytes(), width_bytes)
