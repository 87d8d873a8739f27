"""From the fields of a body to a checked request, or to one complaint that names the field."""

from __future__ import annotations

import re
from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from controlplane.edge.json_body import json_kind
from controlplane.edge.openai_parameters import (
    CHAT_NEUTRAL,
    COMPLETION_NEUTRAL,
    MESSAGE_NEUTRAL,
    PART_NEUTRAL,
    STREAM_OPTIONS_NEUTRAL,
    Level,
    Path,
    path_of,
)
from controlplane.edge.openai_schema import (
    LIST_TAG,
    LONE_SURROGATE,
    PROMPT_ERROR,
    SHAPE_ERROR,
    TEXT_TAG,
    ChatCompletionRequest,
    ChatMessage,
    CompletionRequest,
    StreamOptions,
    TextPart,
)
from controlplane.errors import MalformedRequest, UnsupportedParameter

_Model = TypeVar("_Model", bound=BaseModel)

CHAT_LEVEL: Final = Level(frozenset(ChatCompletionRequest.model_fields), CHAT_NEUTRAL)
COMPLETION_LEVEL: Final = Level(frozenset(CompletionRequest.model_fields), COMPLETION_NEUTRAL)
MESSAGE_LEVEL: Final = Level(frozenset(ChatMessage.model_fields), MESSAGE_NEUTRAL)
PART_LEVEL: Final = Level(frozenset(TextPart.model_fields), PART_NEUTRAL)
STREAM_OPTIONS_LEVEL: Final = Level(frozenset(StreamOptions.model_fields), STREAM_OPTIONS_NEUTRAL)

#: What a field of the wrong type should have been, by pydantic's type of error.
_EXPECTED: Final = {
    "bool_type": "a boolean",
    "float_type": "a number",
    "int_type": "an integer",
    "list_type": "an array",
    "model_type": "an object",
    "string_type": "a string",
    SHAPE_ERROR: "a string or an array",
    PROMPT_ERROR: "a string or an array of token ids",
}
#: What is wrong with a field, for errors that pydantic words for programmers.
_PROBLEMS: Final = {"missing": "is required", "string_unicode": LONE_SURROGATE}
#: "Input should be ..." and "List should have ..." are about the field that we name before.
_SUBJECT: Final = re.compile(r"^\w+ should ")


def chat_request(fields: dict[str, object]) -> ChatCompletionRequest:
    """
    A checked chat completion request. Pure.

    Raises:
        MalformedRequest: A field is missing, has the wrong type or is out of range.
        UnsupportedParameter: A field that this service does not have.
    """
    fields = _accepted(CHAT_LEVEL, fields)
    messages = fields.get("messages")
    if isinstance(messages, list):
        fields = {
            **fields,
            "messages": [
                _message(message, number) if isinstance(message, dict) else message
                for number, message in enumerate(messages)
            ],
        }
    request = _validated(ChatCompletionRequest, fields)
    old, new = request.max_tokens, request.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise MalformedRequest(
            f"max_completion_tokens: {new} contradicts max_tokens {old}; send one of them",
            param="max_completion_tokens",
        )
    return request


def completion_request(fields: dict[str, object]) -> CompletionRequest:
    """
    A checked completion request, its token ids (if it has ids) not yet looked at. Pure.

    Raises:
        MalformedRequest: A field is missing, has the wrong type or is out of range.
        UnsupportedParameter: A field that this service does not have.
    """
    return _validated(CompletionRequest, _accepted(COMPLETION_LEVEL, fields))


def _accepted(level: Level, fields: dict[str, object]) -> dict[str, object]:
    """Fields of both endpoints that mean something."""
    fields = level.accepted(fields)
    options = fields.get("stream_options")
    if options is None:
        return fields
    if fields.get("stream") is False or "stream" not in fields:
        raise MalformedRequest(
            "stream_options: only together with stream true", param="stream_options"
        )
    if isinstance(options, dict):
        accepted = STREAM_OPTIONS_LEVEL.accepted(options, ("stream_options",))
        return {**fields, "stream_options": accepted}
    return fields


def _message(fields: dict[str, object], number: int) -> dict[str, object]:
    fields = MESSAGE_LEVEL.accepted(fields, ("messages", number))
    content = fields.get("content")
    if not isinstance(content, list):
        return fields
    where: Path = ("messages", number, "content")
    parts = [
        PART_LEVEL.accepted(part, (*where, place)) if isinstance(part, dict) else part
        for place, part in enumerate(content)
    ]
    return {**fields, "content": parts}


def _validated(model: type[_Model], fields: dict[str, object]) -> _Model:
    try:
        request = model.model_validate(fields)
    except ValidationError as error:
        # Without a cause: pydantic's error holds the values of the request.
        raise _complaint(error.errors(include_url=False, include_context=False)[0]) from None
    _check_n(fields)
    return request


def _check_n(fields: dict[str, object]) -> None:
    if fields.get("n", 1) != 1:
        raise UnsupportedParameter(
            "n: more than one choice is not supported; leave it out or send 1", param="n"
        )


def _complaint(error: ErrorDetails) -> MalformedRequest:
    path = path_of(tuple(step for step in error["loc"] if step not in {TEXT_TAG, LIST_TAG}))
    return MalformedRequest(f"{path}: {_problem(error)}", param=path)


def _problem(error: ErrorDetails) -> str:
    kind, found = error["type"], error["input"]
    if kind == "float_type" and type(found) is int:
        return "must be a number within 64-bit floating point"
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}, got {json_kind(found)}"
    if kind in _PROBLEMS:
        return _PROBLEMS[kind]
    return _SUBJECT.sub("must ", error["msg"], count=1).replace(" after validation", "")
