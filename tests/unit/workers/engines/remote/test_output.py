"""Tokens out of engines' events."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.errors import WorkerLost
from workers.engine import TokenOut
from workers.engines.remote.output import SglangReader, VllmReader


def vllm(ids: list[int] | None, finish_reason: str | None = None) -> dict[str, Any]:
    return {
        "choices": [{"index": 0, "text": "x", "token_ids": ids, "finish_reason": finish_reason}]
    }


def sglang(ids: list[int], done: int, finish: str | None = None) -> dict[str, Any]:
    reason = None if finish is None else {"type": finish}
    return {"output_ids": ids, "meta_info": {"completion_tokens": done, "finish_reason": reason}}


def test_an_event_may_bring_several_tokens() -> None:
    assert VllmReader().read(vllm([5, 6])) == [TokenOut(token=5), TokenOut(token=6)]


def test_the_last_token_says_how_the_output_ends() -> None:
    assert VllmReader().read(vllm([5, 6], "length")) == [
        TokenOut(token=5),
        TokenOut(token=6, finish_reason="length"),
    ]


def test_an_end_without_a_token_is_an_end() -> None:
    (end,) = VllmReader().read(vllm([], "stop"))

    assert end.finish_reason == "stop"


def test_an_event_with_usage_alone_brings_nothing() -> None:
    assert VllmReader().read({"choices": [], "usage": {}}) == []


@pytest.mark.parametrize("reason", ["abort", "error", "repetition"])
def test_any_other_end_is_a_failure(reason: str) -> None:
    with pytest.raises(WorkerLost, match=f"ended the request with {reason}"):
        VllmReader().read(vllm([5], reason))


@pytest.mark.parametrize(
    "event",
    [{}, {"choices": 3}, vllm(None), vllm(["5"]), vllm([-1])],  # type: ignore[list-item]
    ids=["nothing", "no list", "text without ids", "words for ids", "negative"],
)
def test_an_event_of_another_shape_is_refused(event: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"engine"):
        VllmReader().read(event)


@pytest.mark.parametrize(
    "events",
    [
        [sglang([5], 1), sglang([5, 6], 2), sglang([5, 6, 7], 3, "stop")],
        [sglang([5], 1), sglang([6], 2), sglang([7], 3, "stop")],
    ],
    ids=["repeating what came before", "only what is new"],
)
def test_sglang_tells_each_token_once_however_it_streams(events: list[dict[str, Any]]) -> None:
    reader = SglangReader()

    found = [token for event in events for token in reader.read(event)]

    assert found == [
        TokenOut(token=5),
        TokenOut(token=6),
        TokenOut(token=7, finish_reason="stop"),
    ]
