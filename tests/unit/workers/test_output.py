"""The bytes of answers: each shape as the OpenAI API writes it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from builders import an_output

from workers.output import AnswerWriter, FinishReason


def a_writer(**shape: Any) -> AnswerWriter:
    """Of an answer to a prompt of ten tokens."""
    return AnswerWriter(an_output(**shape), prompt_tokens=10)


def events(raw: bytes) -> list[Any]:
    """Server-sent events, parsed; the last word of a stream stays as it is."""
    assert raw.endswith(b"\n\n")
    found = []
    for event in raw.removesuffix(b"\n\n").split(b"\n\n"):
        data = event.removeprefix(b"data: ")
        assert data != event
        assert b"\n" not in data
        found.append("[DONE]" if data == b"[DONE]" else json.loads(data))
    return found


def written(writer: AnswerWriter, *texts: str, finish_reason: FinishReason = "stop") -> bytes:
    """All bytes of an answer."""
    parts = [writer.delta(text) for text in texts]
    return b"".join([*parts, writer.end(finish_reason, output_tokens=3, cached_tokens=4)])


USAGE = {
    "prompt_tokens": 10,
    "completion_tokens": 3,
    "total_tokens": 13,
    "prompt_tokens_details": {"cached_tokens": 4},
}


def test_a_streamed_completion() -> None:
    """A chunk for each text, one with the reason, the end."""
    *chunks, end = events(written(a_writer(), "one ", "two", finish_reason="length"))

    assert end == "[DONE]"
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["one ", "two", ""]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "length"]
    assert chunks[0] == {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 1_700_000_000,
        "model": "m",
        "choices": [{"index": 0, "text": "one ", "logprobs": None, "finish_reason": None}],
    }


def test_a_streamed_chat_answer() -> None:
    """The role comes once, with the first text."""
    *chunks, end = events(written(a_writer(kind="chat"), "one ", "two"))

    assert end == "[DONE]"
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": "one "},
        {"content": "two"},
        {},
    ]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_a_chat_answer_without_text_has_its_role_all_the_same() -> None:
    """An end token may be the first one."""
    chunk, end = events(written(a_writer(kind="chat")))

    assert chunk["choices"][0]["delta"] == {"role": "assistant"}
    assert chunk["choices"][0]["finish_reason"] == "stop"
    assert end == "[DONE]"


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_usage_is_an_event_of_its_own_if_asked_for(kind: str) -> None:
    """Without choices, before the end; every other chunk says null."""
    *chunks, usage, end = events(written(a_writer(kind=kind, include_usage=True), "one"))

    assert end == "[DONE]"
    assert [chunk["usage"] for chunk in chunks] == [None, None]
    assert (usage["choices"], usage["usage"]) == ([], USAGE)
    assert usage["object"] == chunks[0]["object"]


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_usage_that_is_not_asked_for_is_not_there(kind: str) -> None:
    """Older clients take every event for one with choices."""
    chunks = events(written(a_writer(kind=kind), "one"))[:-1]

    assert all("usage" not in chunk and chunk["choices"] for chunk in chunks)


def test_a_whole_completion() -> None:
    """Nothing until the end, then all of it."""
    writer = a_writer(is_stream=False)

    parts = [writer.delta("one "), writer.delta("two")]
    answer = json.loads(writer.end("stop", output_tokens=3, cached_tokens=4))

    assert parts == [b"", b""]
    assert answer == {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 1_700_000_000,
        "model": "m",
        "choices": [{"index": 0, "text": "one two", "logprobs": None, "finish_reason": "stop"}],
        "usage": USAGE,
    }


def test_a_whole_chat_answer() -> None:
    """One message; it refuses nothing."""
    answer = json.loads(written(a_writer(kind="chat", is_stream=False), "one ", "two"))

    (choice,) = answer["choices"]
    assert answer["object"] == "chat.completion"
    assert choice["message"] == {"role": "assistant", "content": "one two", "refusal": None}
    assert choice["finish_reason"] == "stop"
    assert answer["usage"] == USAGE


@pytest.mark.parametrize("is_stream", [False, True])
def test_no_text_can_break_an_event(is_stream: bool) -> None:  # noqa: FBT001 - a parameter
    """Line ends, separators and quotes of the answer are escaped."""
    text = 'a\n\ndata: [DONE]\n\n"\u2028\u00e9\x00\\'
    raw = written(a_writer(is_stream=is_stream), text)

    found = events(raw)[0] if is_stream else json.loads(raw)

    assert raw.isascii()
    assert found["choices"][0]["text"] == text
