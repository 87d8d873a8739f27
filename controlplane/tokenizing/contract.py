"""What the rest of the house needs of a model's tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from controlplane.domain.tokens import TokenIds, WidthBytes


class TemplateRefused(ValueError):
    """A chat template does not take these messages; the text is the template's own."""


class Detokenizer(Protocol):
    """Text of one output, token by token. What it says is a function of the tokens alone."""

    def push(self, token: int) -> str:
        """Text that this token makes certain; may be empty."""
        ...

    def finish(self) -> str:
        """What was held back, when no more tokens come."""
        ...


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
            TemplateRefused: The template does not take these messages.
        """
        ...

    def encode_text(self, text: str) -> TokenIds:
        """
        A bare text, with what the model's tokenizer puts before or behind every text.

        Raises:
            UnicodeEncodeError: The text holds a lone surrogate.
        """
        ...

    def detokenizer(self) -> Detokenizer:
        """For one output."""
        ...
