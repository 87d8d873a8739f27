"""Answers as a decode worker tells them: what a client gets is a function of the tokens alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from controlplane.router.memory_workers import Frame, a_report
from controlplane.wire import DecodeFailure, FrameKind, pack_output

DONE = b"data: [DONE]\n\n"
ALIVE: Frame = (FrameKind.ALIVE, b"")


def text_of(*tokens: int) -> bytes:
    """The client's bytes for these tokens."""
    return b"".join(b"data: %d\n\n" % token for token in tokens)


def told(*tokens: int) -> Frame:
    """Tokens, and the bytes that they made certain."""
    return FrameKind.OUTPUT, pack_output(tokens, text_of(*tokens))


def the_end(data: bytes = DONE) -> Frame:
    """What closes an answer."""
    return FrameKind.CONTENT, data


def report(tokens: int, **overrides: Any) -> Frame:
    """A decode worker's report on so many tokens of output."""
    said = a_report(output_tokens=tokens, **overrides)
    return FrameKind.REPORT, said.model_dump_json().encode()


def a_failure(code: str) -> Frame:
    """A decode worker's last words."""
    said = DecodeFailure(code=code, message=f"it was {code}")
    return FrameKind.FAILURE, said.model_dump_json().encode()


def an_answer(tokens: Sequence[int]) -> bytes:
    """All that a client gets for these tokens."""
    return text_of(*tokens) + DONE


def a_telling(tokens: Sequence[int], *, resumed: int = 0) -> list[Frame]:
    """The frames of a whole answer, one a token, of which so many tokens were told before."""
    return [*(told(token) for token in tokens[resumed:]), the_end(), report(len(tokens))]
