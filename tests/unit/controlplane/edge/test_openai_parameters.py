from __future__ import annotations

from typing import Any

import pytest

from controlplane.edge.openai_check import chat_request, completion_request
from controlplane.edge.openai_parameters import CHAT_NEUTRAL, COMPLETION_NEUTRAL, path_of
from controlplane.errors import UnsupportedParameter

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
COMPLETION: dict[str, Any] = {"model": "m", "prompt": "hi"}

#: What a client would send who means it.
WISHES: dict[str, Any] = {
    "audio": {"voice": "alloy", "format": "wav"},
    "best_of": 2,
    "echo": True,
    "frequency_penalty": 0.5,
    "function_call": {"name": "f"},
    "functions": [{"name": "f"}],
    "logit_bias": {"50256": -100},
    "logprobs": True,
    "metadata": {"a": "b"},
    "modalities": ["text", "audio"],
    "moderation": {"model": "m"},
    "parallel_tool_calls": False,
    "prediction": {"type": "content", "content": "x"},
    "presence_penalty": -0.5,
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "explicit"},
    "prompt_cache_retention": "24h",
    "reasoning_effort": "low",
    "response_format": {"type": "json_object"},
    "safety_identifier": "u",
    "service_tier": "flex",
    "store": True,
    "suffix": "end",
    "tool_choice": "auto",
    "tools": [{"type": "function"}],
    "top_logprobs": 3,
    "verbosity": "high",
    "web_search_options": {},
}


def chat_refusal(**fields: Any) -> UnsupportedParameter:
    with pytest.raises(UnsupportedParameter) as caught:
        chat_request({**CHAT, **fields})
    return caught.value


@pytest.mark.parametrize("name", CHAT_NEUTRAL)
def test_a_chat_parameter_that_we_do_not_have_is_refused_by_name(name: str) -> None:
    error = chat_refusal(**{name: WISHES[name]})

    assert error.param == name
    assert error.message.startswith(f"{name}: not supported by this service; leave it out")


@pytest.mark.parametrize("name", COMPLETION_NEUTRAL)
def test_a_completion_parameter_that_we_do_not_have_is_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        completion_request({**COMPLETION, name: WISHES[name]})

    assert caught.value.param == name


@pytest.mark.parametrize("name", CHAT_NEUTRAL)
def test_null_and_neutral_values_of_chat_parameters_change_nothing(name: str) -> None:
    plain = chat_request(CHAT)

    for value in (None, *CHAT_NEUTRAL[name]):
        assert chat_request({**CHAT, name: value}) == plain


@pytest.mark.parametrize("name", COMPLETION_NEUTRAL)
def test_null_and_neutral_values_of_completion_parameters_change_nothing(name: str) -> None:
    plain = completion_request(COMPLETION)

    for value in (None, *COMPLETION_NEUTRAL[name]):
        assert completion_request({**COMPLETION, name: value}) == plain


def test_a_refusal_tells_the_value_that_would_be_taken() -> None:
    assert chat_refusal(tools=[1]).message.endswith("leave it out or send []")


def test_a_boolean_is_not_a_neutral_number() -> None:
    assert chat_refusal(presence_penalty=False).param == "presence_penalty"


def test_a_number_is_not_a_neutral_boolean() -> None:
    assert chat_refusal(store=0).param == "store"


def test_zero_as_a_decimal_number_is_neutral() -> None:
    assert chat_request({**CHAT, "frequency_penalty": 0.0}) == chat_request(CHAT)


def test_a_deep_value_of_a_refused_parameter_is_not_descended_into() -> None:
    deep: Any = "x"
    for _ in range(100_000):
        deep = {"type": deep}

    assert chat_refusal(response_format=deep).param == "response_format"


@pytest.mark.parametrize("value", [None, 1, []])
def test_an_unknown_parameter_is_refused_whatever_its_value(value: object) -> None:
    error = chat_refusal(temprature=value)

    assert error.param == "temprature"
    assert "unknown parameter" in error.message
    assert "temperature" in error.message


def test_parameters_of_the_other_endpoint_are_unknown() -> None:
    assert "unknown parameter" in chat_refusal(prompt="hi").message
    with pytest.raises(UnsupportedParameter, match="unknown parameter"):
        completion_request({**COMPLETION, "max_completion_tokens": 3})


def test_an_unknown_name_cannot_smuggle_text_into_the_answer() -> None:
    param = chat_refusal(**{"\ud800" + "x" * 1000: 1}).param

    assert param is not None
    assert param.isascii()
    assert len(param) < 80


@pytest.mark.parametrize("name", ["name", "tool_calls", "tool_call_id", "function_call", "foo"])
def test_a_field_of_a_message_is_refused_with_its_path(name: str) -> None:
    message = {"role": "user", "content": "hi", name: "x"}

    assert chat_refusal(messages=[*CHAT["messages"], message]).param == f"messages[1].{name}"


def test_an_answer_of_an_sdk_can_be_sent_back() -> None:
    answer: dict[str, Any] = {
        "role": "assistant",
        "content": "hi",
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": None,
    }

    request = chat_request({**CHAT, "messages": [*CHAT["messages"], answer]})

    assert request.messages[1].text == "hi"


def test_a_part_of_another_kind_is_refused_with_its_path() -> None:
    part = {"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}}

    error = chat_refusal(messages=[{"role": "user", "content": [part]}])

    assert error.param == "messages[0].content[0].image_url"


def test_a_stream_option_that_we_do_not_have_is_refused_with_its_path() -> None:
    error = chat_refusal(stream=True, stream_options={"include_obfuscation": True})

    assert error.param == "stream_options.include_obfuscation"


def test_a_neutral_stream_option_changes_nothing() -> None:
    options = {"include_usage": True, "include_obfuscation": False}

    assert chat_request({**CHAT, "stream": True, "stream_options": options}).includes_usage


def test_the_fields_of_the_caller_are_left_as_they_were() -> None:
    fields = {**CHAT, "tools": None, "seed": None}
    before = dict(fields)

    chat_request(fields)

    assert fields == before


def test_a_path_is_written_as_clients_would() -> None:
    assert path_of(("messages", 2, "content", 0, "text")) == "messages[2].content[0].text"
