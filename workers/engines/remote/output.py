"""Output tokens out of the events of an engine's stream. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol

from controlplane.errors import WorkerLost
from workers.engine import TokenOut

#: How streams end well; anything else (an abort, an error, a repetition that was cut) is a failure.
_ENDS: Final = ("stop", "length")


class OutputReader(Protocol):
    """Reads the events of one stream, in order."""

    def read(self, event: Mapping[str, Any]) -> list[TokenOut]:
        """
        The tokens that an event brings.

        Raises:
            WorkerLost: The engine ended the request otherwise than it was asked to.
            ValueError: The event is not as the engine's API has it.
        """


class VllmReader:
    """Of `/v1/completions` with `return_token_ids`."""

    def read(self, event: Mapping[str, Any]) -> list[TokenOut]:
        """See the contract."""
        choices = event.get("choices")
        if not isinstance(choices, list):
            raise ValueError("an event of the engine has no choices")  # noqa: TRY004 - of its text
        if not choices:
            return []
        choice = choices[0]
        ids = choice.get("token_ids")
        if ids is None and choice.get("finish_reason") is None:
            raise ValueError("the engine sends text without token ids: it needs return_token_ids")
        return _tokens(ids or [], choice.get("finish_reason"))


class SglangReader:
    """Of `/generate`, whose events repeat what came before or not, as the server was started."""

    def __init__(self) -> None:
        self._seen = 0

    def read(self, event: Mapping[str, Any]) -> list[TokenOut]:
        """See the contract."""
        meta = event.get("meta_info")
        ids = event.get("output_ids")
        if not isinstance(meta, dict) or not isinstance(ids, list):
            raise ValueError("an event of the engine has no output_ids or meta_info")  # noqa: TRY004 - of its text
        new = int(meta.get("completion_tokens", len(ids))) - self._seen
        self._seen += new
        reason = meta.get("finish_reason")
        kind = reason.get("type") if isinstance(reason, dict) else reason
        return _tokens(ids[len(ids) - new :] if new > 0 else [], kind)


def _tokens(ids: list[Any], finish_reason: object) -> list[TokenOut]:
    if not all(isinstance(token, int) and token >= 0 for token in ids):
        raise ValueError("token ids of the engine are not integers >= 0")
    if finish_reason is None:
        return [TokenOut(token=token) for token in ids]
    if finish_reason not in _ENDS:
        raise WorkerLost(f"the engine ended the request with {finish_reason!s:.64}")
    # An end without a token of its own, as a stop that the engine does not show.
    last = ids[-1] if ids else 0
    end = TokenOut(token=last, finish_reason="stop" if finish_reason == "stop" else "length")
    return [*(TokenOut(token=token) for token in ids[:-1]), end]
