"""Writes answers in the shape of the OpenAI API: the bytes that routers copy to the client."""

from __future__ import annotations

import json
from typing import Any, Literal

from controlplane.wire import OutputShape

FinishReason = Literal["stop", "length"]


class AnswerWriter:
    """The bytes of one answer, streamed or whole."""

    def __init__(self, shape: OutputShape, *, prompt_tokens: int) -> None:
        self._shape = shape
        self._prompt_tokens = prompt_tokens
        self._is_chat = shape.kind == "chat"
        self._text: list[str] = []
        self._is_first = True

    def delta(self, text: str) -> bytes:
        """An event with more text; empty when the answer is not streamed."""
        if not self._shape.is_stream:
            self._text.append(text)
            return b""
        return self._event(self._choice(text, None))

    def end(self, finish_reason: FinishReason, *, output_tokens: int, cached_tokens: int) -> bytes:
        """The last events of a stream, or the whole answer."""
        usage = {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": output_tokens,
            "total_tokens": self._prompt_tokens + output_tokens,
            "prompt_tokens_details": {"cached_tokens": cached_tokens},
        }
        if not self._shape.is_stream:
            whole = self._envelope(self._whole_choice(finish_reason))
            return json.dumps({**whole, "usage": usage}).encode()
        parts = [self._event(self._choice("", finish_reason))]
        if self._shape.include_usage:
            parts.append(_sse({**self._envelope(None), "usage": usage}))
        parts.append(b"data: [DONE]\n\n")
        return b"".join(parts)

    def _event(self, choice: dict[str, Any]) -> bytes:
        chunk = self._envelope(choice)
        if self._shape.include_usage:
            chunk["usage"] = None
        return _sse(chunk)

    def _choice(self, text: str, finish_reason: FinishReason | None) -> dict[str, Any]:
        if not self._is_chat:
            return _choice(finish_reason, text=text)
        delta: dict[str, str] = {}
        if self._is_first:
            delta["role"] = "assistant"
            self._is_first = False
        if text or finish_reason is None:
            delta["content"] = text
        return _choice(finish_reason, delta=delta)

    def _whole_choice(self, finish_reason: FinishReason) -> dict[str, Any]:
        text = "".join(self._text)
        if not self._is_chat:
            return _choice(finish_reason, text=text)
        message = {"role": "assistant", "content": text, "refusal": None}
        return _choice(finish_reason, message=message)

    def _envelope(self, choice: dict[str, Any] | None) -> dict[str, Any]:
        kind = "chat.completion" if self._is_chat else "text_completion"
        if self._is_chat and self._shape.is_stream:
            kind = "chat.completion.chunk"
        return {
            "id": self._shape.response_id,
            "object": kind,
            "created": self._shape.created,
            "model": self._shape.model,
            "choices": [] if choice is None else [choice],
        }


def _choice(finish_reason: FinishReason | None, **content: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    return {"index": 0, **content, "logprobs": None, "finish_reason": finish_reason}


def _sse(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"
