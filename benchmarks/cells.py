"""What is measured: systems, sizes of prompts, and the bodies that are sent."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

System: TypeAlias = Literal["direct", "bare", "prfaas"]
SizeName: TypeAlias = Literal["short", "128k"]

#: In the order of the table: no router, a pass-through without any thought, and the router.
SYSTEMS: Final[tuple[System, ...]] = ("direct", "bare", "prfaas")

PATH: Final = "/v1/chat/completions"
OUTPUT_TOKENS: Final = 16

_SYSTEM_TEXT: Final = "You are a terse assistant. "
_FILLER: Final = "All work and no play makes Jack a dull boy. "


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A length of prompts."""

    name: SizeName
    #: Exactly so long is each JSON body.
    body_bytes: int
    #: Different prompts, sent in turn; they share their first half.
    prompts: int
    #: What the workers announce: the hash chain of a prompt has a link for each block.
    block_tokens: int


SIZES: Final = (
    Size(name="short", body_bytes=220, prompts=64, block_tokens=64),
    Size(name="128k", body_bytes=128 << 10, prompts=8, block_tokens=512),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One condition, under which all systems are measured."""

    size: Size
    is_stream: bool
    connections: int

    @property
    def name(self) -> str:
        """`short/n/32`: size, whole or streamed answers, connections."""
        return f"{self.size.name}/{'s' if self.is_stream else 'n'}/{self.connections}"


def cells_of(size: Size) -> tuple[Cell, ...]:
    """The cells of one size, in the order of the table."""
    return tuple(
        Cell(size=size, is_stream=is_stream, connections=connections)
        for is_stream in (False, True)
        for connections in (1, 32)
    )


def bodies(size: Size, model: str, *, is_stream: bool) -> list[bytes]:
    """Requests of one size, each of exactly `size.body_bytes` bytes."""
    return [_body(size, model, number, is_stream=is_stream) for number in range(size.prompts)]


def _body(size: Size, model: str, number: int, *, is_stream: bool) -> bytes:
    def whole(text: str) -> bytes:
        messages = [
            {"role": "system", "content": _SYSTEM_TEXT},
            {"role": "user", "content": text},
        ]
        fields = {
            "model": model,
            "max_tokens": OUTPUT_TOKENS,
            "stream": is_stream,
            "messages": messages,
        }
        return json.dumps(fields, separators=(",", ":")).encode()

    room = size.body_bytes - len(whole(""))
    tail = f" {number:03d}"
    filler = _FILLER * (room // len(_FILLER) + 1)
    shared = filler[: room // 2]
    return whole((shared + tail + filler)[: room - len(tail)] + tail)
