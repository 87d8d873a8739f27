"""A tokenizer out of a model's own files, as its engine reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import tokenizers

from controlplane.domain.tokens import TokenIds, WidthBytes, width_for
from controlplane.errors import ConfigError
from controlplane.tokenizing.chat_template import ChatTemplate
from controlplane.tokenizing.contract import Detokenizer

#: Tokens without certain text are held back up to here; a character has at most four bytes.
_HELD_TOKENS_MAX: Final = 8
#: What an incomplete or impossible character decodes to.
_INCOMPLETE: Final = "\N{REPLACEMENT CHARACTER}"


def load_tokenizer(directory: Path) -> FileTokenizer:
    """
    Read `tokenizer.json`, and the chat template if there is one.

    Args:
        directory: Of the model: as saved by `save_pretrained`, or as downloaded.

    Raises:
        ConfigError: No such directory, no tokenizer.json, or one that cannot be used.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise ConfigError(
            f"model.tokenizer: there is no {path}; name the directory with the tokenizer files of the "
            "served model (tokenizer.json, tokenizer_config.json)"
        )
    try:
        found = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exceptions
        raise ConfigError(f"model.tokenizer: {path} cannot be read: {error}") from error
    # Of a training run: an engine never cuts or fills a prompt.
    found.no_truncation()
    found.no_padding()
    settings = _read(directory / "tokenizer_config.json")
    template = _template(directory, settings)
    special = _special_tokens(settings)
    end = special.get("eos_token")
    return FileTokenizer(
        found,
        ChatTemplate(template, special) if template else None,
        end_token=found.token_to_id(end) if end else None,
    )


class FileTokenizer:
    """A `Tokenizer`; safe in any thread, because nothing of it changes."""

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        template: ChatTemplate | None,
        *,
        end_token: int | None = None,
    ) -> None:
        """
        Args:
            inner: The library's.
            template: Of chats; None where the model has none.
            end_token: Ends an answer; None where the files do not say.
        """
        #: Ends an answer; None where the files do not say.
        self.end_token = end_token
        self._inner = inner
        self._template = template
        self._vocabulary_size = inner.get_vocab_size(with_added_tokens=True)
        self._width_bytes = width_for(self._vocabulary_size)

    def __repr__(self) -> str:
        return f"<FileTokenizer of {self._vocabulary_size} tokens>"

    @property
    def width_bytes(self) -> WidthBytes:
        """Bytes of one packed token."""
        return self._width_bytes

    @property
    def vocabulary_size(self) -> int:
        """Ids are >= 0 and < this."""
        return self._vocabulary_size

    def encode_chat(self, messages: Sequence[tuple[str, str]]) -> TokenIds:
        """
        A conversation in the model's chat template, up to where the answer begins.

        The template writes the special tokens itself, so none are added.

        Raises:
            UnicodeEncodeError: A text holds a lone surrogate.
            TemplateRefused: The template does not take these messages, or the model has none.
        """
        for _, text in messages:
            text.encode()
        template = self._template or ChatTemplate.missing()
        return self._encode(template.render(messages), add_special_tokens=False)

    def encode_text(self, text: str) -> TokenIds:
        """
        A bare text, with what the model's tokenizer puts before or behind every text.

        Raises:
            UnicodeEncodeError: The text holds a lone surrogate.
        """
        text.encode()
        return self._encode(text, add_special_tokens=True)

    def detokenizer(self) -> Detokenizer:
        """For one output."""
        return FileDetokenizer(self._inner)

    def _encode(self, text: str, *, add_special_tokens: bool) -> TokenIds:
        ids = self._inner.encode(text, add_special_tokens=add_special_tokens).ids
        return TokenIds.from_ints(ids, self._width_bytes)


class FileDetokenizer:
    """
    A `Detokenizer` for any decoder of the library.

    A token's text depends on those before it (a leading blank, a character in pieces), so a short
    window is decoded twice, with and without what is new, and the difference is the text.
    """

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        self._inner = inner
        #: The window: tokens whose text is out, as context, and then those that are held back.
        self._window: list[int] = []
        self._context = 0

    def push(self, token: int) -> str:
        """Text that this token makes certain; may be empty."""
        self._window.append(token)
        text = self._new_text()
        held = len(self._window) - self._context
        if held <= _HELD_TOKENS_MAX and (not text or text.endswith(_INCOMPLETE)):
            return ""
        self._window = self._window[self._context :]
        self._context = len(self._window)
        return text

    def finish(self) -> str:
        """What was held back."""
        text = self._new_text()
        self._window, self._context = [], 0
        return text

    def _new_text(self) -> str:
        known = self._inner.decode(self._window[: self._context], skip_special_tokens=True)
        whole = self._inner.decode(self._window, skip_special_tokens=True)
        return whole[len(known) :]


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.tokenizer: {path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"model.tokenizer: {path} holds no object")
    return found


def _template(directory: Path, settings: Mapping[str, Any]) -> str | None:
    """A file of its own goes before the settings, of which the default one counts."""
    path = directory / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    found = settings.get("chat_template")
    if isinstance(found, list):
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """Such as `bos_token`, which templates write."""
    found: dict[str, str] = {}
    for name, value in settings.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            found[name] = text
    return found
