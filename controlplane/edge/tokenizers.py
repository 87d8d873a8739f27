"""Text to tokens, by the engine that the fleet's model runs on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from controlplane.domain import byte_tokenizer
from controlplane.domain.tokens import TokenIds, WidthBytes
from controlplane.errors import ConfigError


class Tokenizer(Protocol):
    """What the edge needs of a model's tokenizer. Pure, and safe to call from any thread."""

    @property
    def width_bytes(self) -> WidthBytes:
        """Bytes of one packed token."""
        ...

    @property
    def vocabulary_size(self) -> int:
        """Ids are >= 0 and < this."""
        ...

    def encode_chat(self, messages: Sequence[tuple[str, str]]) -> TokenIds:
        """
        A conversation in the model's chat template, up to where the answer begins.

        Raises:
            UnicodeEncodeError: A text holds a lone surrogate.
        """
        ...

    def encode_text(self, text: str) -> TokenIds:
        """
        A bare text, nothing added.

        Raises:
            UnicodeEncodeError: The text holds a lone surrogate.
        """
        ...


@dataclass(frozen=True, slots=True)
class ByteTokenizer:
    """The reference model's: UTF-8 bytes and control tokens."""

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


_BY_ENGINE: Final[dict[str, type[Tokenizer]]] = {
    "reference": ByteTokenizer,
    # Of drawn weights, whose vocabulary is as small.
    "transformers": ByteTokenizer,
    "vllm": ByteTokenizer,
}


def tokenizer_for(engine_name: str) -> Tokenizer:
    """
    The tokenizer of an engine, by its name in the fleet file.

    Raises:
        ConfigError: No such engine.
    """
    kind = _BY_ENGINE.get(engine_name)
    if kind is None:
        raise ConfigError(
            f"no tokenizer for engine {engine_name!r}; known: {', '.join(_BY_ENGINE)}"
        )
    return kind()
