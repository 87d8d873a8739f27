from __future__ import annotations

import json
from typing import Any

import pytest

from controlplane.edge.requests import ModelFacts, ParsedRequest, RequestKind, parse_request
from controlplane.errors import ContextTooLong
from controlplane.tokenizing import ByteTokenizer


def parsed(kind: RequestKind, context_tokens_max: int, **fields: Any) -> ParsedRequest:
    model = ModelFacts(
        name="m",
        tokenizer=ByteTokenizer(),
        block_tokens=4,
        context_tokens_max=context_tokens_max,
        scope="s",
    )
    return parse_request(kind, json.dumps({"model": "m", **fields}).encode(), {"m": model})


def chat(text: str = "hi", *, context_tokens_max: int = 4096, **fields: Any) -> ParsedRequest:
    messages = [{"role": "user", "content": text}]
    return parsed("chat", context_tokens_max, messages=messages, **fields)


def completion(
    prompt: object = "hi", *, context_tokens_max: int = 4096, **fields: Any
) -> ParsedRequest:
    return parsed("completion", context_tokens_max, prompt=prompt, **fields)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 1024),
        ({"max_tokens": 7}, 7),
        ({"max_completion_tokens": 8}, 8),
        ({"max_tokens": 9, "max_completion_tokens": 9}, 9),
        ({"max_tokens": 4090}, 4090),
    ],
    ids=repr,
)
def test_a_chat_may_have_so_many_output_tokens(fields: dict[str, Any], expected: int) -> None:
    assert chat(**fields).sampling.output_tokens_max == expected


@pytest.mark.parametrize(("fields", "expected"), [({}, 16), ({"max_tokens": 7}, 7)], ids=repr)
def test_a_completion_may_have_so_many_output_tokens(fields: dict[str, Any], expected: int) -> None:
    assert completion(**fields).sampling.output_tokens_max == expected


def test_default_outputs_shrink_to_what_fits() -> None:
    assert completion("x" * 7, context_tokens_max=10).sampling.output_tokens_max == 3
    assert chat(text="xx", context_tokens_max=10).sampling.output_tokens_max == 10 - len("xx") - 4


@pytest.mark.parametrize("prompt", ["x" * 9, [1] * 9], ids=["text", "ids"])
def test_the_longest_prompt_leaves_room_for_one_token(prompt: object) -> None:
    request = completion(prompt, context_tokens_max=10)

    assert request.sampling.output_tokens_max == 1


@pytest.mark.parametrize("prompt", ["x" * 10, [1] * 10], ids=["text", "ids"])
def test_a_prompt_that_fills_the_context_is_refused_with_the_numbers(prompt: object) -> None:
    with pytest.raises(ContextTooLong) as caught:
        completion(prompt, context_tokens_max=10)

    assert caught.value.param == "prompt"
    assert "has 10 tokens, and m takes at most 9" in caught.value.message


def test_a_chat_that_fills_the_context_is_refused_with_the_numbers() -> None:
    with pytest.raises(ContextTooLong) as caught:
        chat(text="x" * 6, context_tokens_max=10)

    assert caught.value.param == "messages"
    assert "has 10 tokens" in caught.value.message


@pytest.mark.parametrize("param", ["max_tokens", "max_completion_tokens"])
def test_an_output_that_does_not_fit_is_refused_with_what_would(param: str) -> None:
    wish: dict[str, Any] = {param: 5}

    with pytest.raises(ContextTooLong) as caught:
        chat(context_tokens_max=10, **wish)

    assert caught.value.param == param
    assert "5 tokens do not fit" in caught.value.message
    assert "has room for 4" in caught.value.message
