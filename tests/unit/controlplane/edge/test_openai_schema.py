from __future__ import annotations

from typing import Any, get_args

import pytest

from controlplane.domain.byte_tokenizer import ROLES
from controlplane.edge.openai_check import chat_request, completion_request
from controlplane.edge.openai_schema import ChatCompletionRequest, ChatMessage
from controlplane.errors import MalformedRequest, UnsupportedParameter

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
COMPLETION: dict[str, Any] = {"model": "m", "prompt": "hi"}


def said(content: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


def chat(**fields: Any) -> ChatCompletionRequest:
    return chat_request({**CHAT, **fields})


def complaint(**fields: Any) -> MalformedRequest:
    with pytest.raises(MalformedRequest) as caught:
        chat(**fields)
    return caught.value


def test_a_minimal_request_gets_the_defaults_of_openai() -> None:
    request = chat()

    assert (request.temperature, request.top_p, request.n) == (1.0, 1.0, 1)
    assert (request.stream, request.seed, request.stops, request.user) == (False, None, (), None)


def test_null_means_that_a_parameter_is_left_out() -> None:
    names = ["stream", "max_tokens", "temperature", "top_p", "seed", "stop", "n", "user"]

    assert chat(**dict.fromkeys(names), stream_options=None) == chat()


def test_roles_are_those_of_the_chat_template() -> None:
    assert get_args(ChatMessage.model_fields["role"].annotation) == ROLES


@pytest.mark.parametrize(
    ("fields", "param", "problem"),
    [
        ({"model": 5}, "model", "expected a string, got an integer"),
        ({"model": ""}, "model", "at least 1 character"),
        ({"stream": 1}, "stream", "expected a boolean, got an integer"),
        ({"stream": "true"}, "stream", "expected a boolean, got a string"),
        ({"max_tokens": "1"}, "max_tokens", "expected an integer, got a string"),
        ({"max_tokens": True}, "max_tokens", "expected an integer, got a boolean"),
        ({"max_tokens": 1.0}, "max_tokens", "expected an integer, got a decimal number"),
        ({"max_tokens": 0}, "max_tokens", "must be greater than or equal to 1"),
        ({"max_tokens": 10**4000}, "max_tokens", "must be less than or equal to 2147483647"),
        ({"max_completion_tokens": -1}, "max_completion_tokens", "must be greater than"),
        ({"temperature": -0.1}, "temperature", "must be greater than or equal to 0"),
        ({"temperature": 2.1}, "temperature", "must be less than or equal to 2"),
        ({"temperature": "1"}, "temperature", "expected a number, got a string"),
        ({"temperature": True}, "temperature", "expected a number, got a boolean"),
        ({"temperature": float("inf")}, "temperature", "must be a finite number"),
        ({"temperature": 10**400}, "temperature", "within 64-bit floating point"),
        ({"top_p": 0}, "top_p", "must be greater than 0"),
        ({"top_p": 1.5}, "top_p", "must be less than or equal to 1"),
        ({"seed": 1 << 63}, "seed", "must be less than or equal to 9223372036854775807"),
        ({"seed": 0.5}, "seed", "expected an integer, got a decimal number"),
        ({"n": 0}, "n", "must be greater than or equal to 1"),
        ({"n": True}, "n", "expected an integer, got a boolean"),
        ({"user": 7}, "user", "expected a string, got an integer"),
        ({"user": "x" * 257}, "user", "must have at most 256 characters"),
        ({"user": "\0"}, "user", "U+0000"),
        ({"user": "\ud800"}, "user", "lone surrogate"),
        ({"stop": 1}, "stop", "expected a string or an array, got an integer"),
        ({"stop": ""}, "stop", "must have at least 1 character"),
        ({"stop": ["a", ""]}, "stop[1]", "must have at least 1 character"),
        ({"stop": ["a"] * 5}, "stop", "must have at most 4 items, not 5"),
        ({"stop": "x" * 257}, "stop", "must have at most 256 characters"),
        ({"stop": ["\0"]}, "stop[0]", "U+0000"),
        ({"stop": ["\ud800"]}, "stop[0]", "lone surrogate"),
        ({"stop": ["a", None]}, "stop[1]", "expected a string, got null"),
        ({"messages": "hi"}, "messages", "expected an array, got a string"),
        ({"messages": []}, "messages", "must have at least 1 item, not 0"),
        ({"messages": None}, "messages", "is required"),
        ({"messages": ["hi"]}, "messages[0]", "expected an object, got a string"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role", "is required"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "is required"),
        (
            {"messages": [{"role": "tool", "content": "hi"}]},
            "messages[0].role",
            "must be 'system', 'developer', 'user' or 'assistant'",
        ),
        (said(5), "messages[0].content", "expected a string or an array, got an integer"),
        (said("\0"), "messages[0].content", "U+0000"),
        (said([]), "messages[0].content", "must have at least 1 item"),
        (said(["hi"]), "messages[0].content[0]", "expected an object, got a string"),
        (said([{"type": "text"}]), "messages[0].content[0].text", "is required"),
        (said([{"text": "hi"}]), "messages[0].content[0].type", "is required"),
        (
            said([{"type": "text", "text": "a\0b"}]),
            "messages[0].content[0].text",
            "must not hold the character U+0000",
        ),
        (
            said([{"type": "image_url", "text": "hi"}]),
            "messages[0].content[0].type",
            "must be 'text'",
        ),
    ],
)
def test_a_wrong_field_is_named_with_what_was_expected(
    fields: dict[str, Any], param: str, problem: str
) -> None:
    error = complaint(**fields)

    assert error.param == param
    assert error.message.startswith(f"{param}: ")
    assert problem in error.message


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0},
        {"temperature": 2},
        {"top_p": 1},
        {"top_p": 5e-324},
        {"seed": -(1 << 63)},
        {"seed": (1 << 63) - 1},
        {"stop": "x" * 256},
        {"stop": []},
        {"stop": ["a", "b", "c", "d"]},
        {"user": ""},
        {"user": "x" * 256},
        {"n": 1},
        {"max_tokens": 1},
        {"max_tokens": 5, "max_completion_tokens": 5},
        said(""),
    ],
    ids=repr,
)
def test_values_at_the_edges_of_their_ranges_are_taken(fields: dict[str, Any]) -> None:
    chat(**fields)


def test_a_message_far_in_is_named_by_its_number() -> None:
    messages = [*CHAT["messages"] * 2, {"role": "user", "content": 5}]

    assert complaint(messages=messages).param == "messages[2].content"


def test_one_of_very_many_wrong_messages_is_reported() -> None:
    assert complaint(messages=[1] * 100_000).param == "messages[0]"


def test_a_missing_model_is_named() -> None:
    with pytest.raises(MalformedRequest, match=r"^model: is required$"):
        chat_request({"messages": CHAT["messages"]})


def test_parts_of_a_content_follow_each_other_with_nothing_between() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]

    assert chat(**said(parts)).messages[0].text == "ab"


def test_one_stop_string_is_a_list_of_one() -> None:
    assert chat(stop="x").stops == chat(stop=["x"]).stops == ("x",)


def test_more_than_one_choice_is_not_supported() -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        chat(n=2)

    assert caught.value.param == "n"


def test_two_limits_that_contradict_each_other_are_refused() -> None:
    error = complaint(max_tokens=5, max_completion_tokens=6)

    assert error.param == "max_completion_tokens"
    assert "contradicts max_tokens 5" in error.message


@pytest.mark.parametrize("stream", [{}, {"stream": False}, {"stream": None}], ids=repr)
def test_stream_options_need_a_stream(stream: dict[str, Any]) -> None:
    assert complaint(**stream, stream_options={"include_usage": True}).param == "stream_options"


@pytest.mark.parametrize(
    ("options", "param"),
    [(5, "stream_options"), ({"include_usage": 1}, "stream_options.include_usage")],
    ids=repr,
)
def test_stream_options_of_a_wrong_type_are_named(options: object, param: str) -> None:
    assert complaint(stream=True, stream_options=options).param == param


@pytest.mark.parametrize(
    ("options", "includes_usage"),
    [(None, False), ({}, False), ({"include_usage": None}, False), ({"include_usage": True}, True)],
    ids=repr,
)
def test_usage_is_included_when_asked(options: object, includes_usage: bool) -> None:  # noqa: FBT001
    assert chat(stream=True, stream_options=options).includes_usage is includes_usage


def test_a_repr_has_no_word_of_the_prompt() -> None:
    text = "swordfish"

    shown = repr(chat(**said([{"type": "text", "text": text}]), user=text)) + repr(
        completion_request({**COMPLETION, "prompt": text})
    )

    assert text not in shown
    assert text not in repr(chat(**said(text)))
