"""The byte-level tokenizer of the reference model: UTF-8 bytes and a few control tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from controlplane.domain.tokens import TokenIds, WidthBytes, width_for

BEGIN: Final = 256
END_OF_TURN: Final = 257
SYSTEM: Final = 258
USER: Final = 259
ASSISTANT: Final = 260
VOCABULARY_SIZE: Final = 272  # bytes, five control tokens, padding to a multiple of sixteen
WIDTH_BYTES: Final[WidthBytes] = width_for(VOCABULARY_SIZE)

_ROLE_TOKEN: Final = {
    "system": SYSTEM,
    "developer": SYSTEM,
    "user": USER,
    "assistant": ASSISTANT,
}
ROLES: Final = tuple(_ROLE_TOKEN)


def encode_text(text: str) -> TokenIds:
    """
    One token for each UTF-8 byte, nothing added.

    Raises:
        UnicodeEncodeError: The text holds a lone surrogate.
    """
    return TokenIds(_widen(text.encode("utf-8")), WIDTH_BYTES)


def encode_chat(messages: Sequence[tuple[str, str]]) -> TokenIds:
    """
    The chat template: `BEGIN (ROLE text END_OF_TURN)* ASSISTANT`.

    Control tokens have ids above all bytes, so no message text can forge one.

    Args:
        messages: Pairs of role (one of `ROLES`) and text.

    Raises:
        KeyError: A role is unknown.
        UnicodeEncodeError: A text holds a lone surrogate.
    """
    parts = [_pack(BEGIN)]
    for role, text in messages:
        parts += (_pack(_ROLE_TOKEN[role]), _widen(text.encode("utf-8")), _pack(END_OF_TURN))
    parts.append(_pack(ASSISTANT))
    return TokenIds(b"".join(parts), WIDTH_BYTES)


def decode_bytes(ids: Iterable[int]) -> bytes:
    """The bytes of the ids that are bytes; control tokens say nothing."""
    return bytes(token for token in ids if token < BEGIN)


def _pack(token: int) -> bytes:
    return token.to_bytes(WIDTH_BYTES, "little")


def _widen(raw: bytes) -> bytes:
    """Two little-endian bytes for each byte, by one strided copy instead of a loop."""
    wide = bytearray(len(raw) * WIDTH_BYTES)
    wide[::WIDTH_BYTES] = raw
    return bytes(wide)
