"""The reference model's tokenizer: UTF-8 bytes and control tokens."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass

from controlplane.domain import byte_tokenizer
from controlplane.domain.tokens import TokenIds, WidthBytes
from controlplane.tokenizing.contract import Detokenizer


@dataclass(frozen=True, slots=True)
class ByteTokenizer:
    """A `Tokenizer` without any files."""

    @property
    def width_bytes(self) -> WidthBytes:
        """Bytes of one packed token."""
        return byte_tokenizer.WIDTH_BYTES

    @property
    def vocabulary_size(self) -> int:
        """Ids are >= 0 and < this."""
        return byte_tokenizer.VOCABULARY_SIZE

    def encode_chat(self, messages: Sequence[tuple[str, str]]) -> TokenIds:
        """See `byte_tokenizer.encode_chat`."""
        return byte_tokenizer.encode_chat(messages)

    def encode_text(self, text: str) -> TokenIds:
        """See `byte_tokenizer.encode_text`."""
        return byte_tokenizer.encode_text(text)

    def detokenizer(self) -> Detokenizer:
        """For one output."""
        return ByteDetokenizer()


class ByteDetokenizer:
    """Holds back an incomplete character; control tokens say nothing."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """Text that this token makes certain; may be empty."""
        return self._decoder.decode(byte_tokenizer.decode_bytes((token,)))

    def finish(self) -> str:
        """What was held back."""
        return self._decoder.decode(b"", final=True)
