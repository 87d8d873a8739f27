"""Prompts that are lengths and block ids: what the router carries is made only if somebody reads it."""

from __future__ import annotations

from collections.abc import Sequence

from controlplane.domain.prefix import BLOCK_HASH_BYTES, BlockHash
from controlplane.domain.tokens import TokenIds

_WIDTH_BYTES = 4


class CountedTokens(TokenIds):
    """A prompt of so many tokens. Its bytes, all zero, exist only where a stream is resumed."""

    __slots__ = ("_count",)

    def __init__(self, count: int) -> None:
        """
        Args:
            count: >= 1.
        """
        object.__setattr__(self, "_count", count)
        object.__setattr__(self, "width_bytes", _WIDTH_BYTES)

    def __len__(self) -> int:
        return self._count  # type: ignore[attr-defined,no-any-return]

    @property
    def data(self) -> bytes:
        """Made anew each time."""
        return bytes(len(self) * _WIDTH_BYTES)


def block_names(blocks: Sequence[int], *, tokens: int, block_tokens: int) -> tuple[BlockHash, ...]:
    """
    Hashes of the whole blocks of a prompt but its last token, from the ids of a trace.

    Equal ids of a trace mean equal prefixes, so an id is as good as a hash of its prefix.
    """
    whole = min(len(blocks), (tokens - 1) // block_tokens)
    return tuple([block.to_bytes(BLOCK_HASH_BYTES, "big") for block in blocks[:whole]])
