"""What a client saw of each request, as lines of JSON that a judge can read much later."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

#: How an attempt ended. `done`: whole. `error`: an HTTP status or an event that says so, with its
#: code. `refused`: no connection. `broken`: the connection ended before the answer did.
#: `silent`: the answer ended politely, and is not whole. `timeout`: nothing ended within the
#: client's patience. `left`: the client hung up on purpose.
End: TypeAlias = Literal["done", "error", "refused", "broken", "silent", "timeout", "left"]


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One HTTP request. Times are of the clock that all processes of a machine share."""

    router: str
    sent_s: float
    ended_s: float = 0.0
    headers_s: float | None = None
    status: int = 0
    request_id: str = ""
    prefill: str = ""
    decode: str = ""
    #: When each piece of text came, and the piece.
    pieces: list[tuple[float, str]] = field(default_factory=list)
    output_tokens: int | None = None
    finish_reason: str = ""
    end: End = "timeout"
    code: str = ""

    @property
    def text(self) -> str:
        """What was received."""
        return "".join(piece for _, piece in self.pieces)

    @property
    def first_s(self) -> float | None:
        """When the first text came."""
        return self.pieces[0][0] if self.pieces else None


@dataclass(slots=True, kw_only=True)
class Request:
    """One request of the load, with all its attempts."""

    number: int
    #: Place of its prompt in the pool.
    item: int
    is_stream: bool
    key: str = ""
    #: Whose it is, if there are several.
    tenant: str = ""
    #: When the load meant to send it.
    due_s: float = 0.0
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def last(self) -> Attempt:
        """The attempt that counts."""
        return self.attempts[-1]

    def to_line(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), separators=(",", ":"))


def read_history(path: Path) -> list[Request]:
    """All requests of a run."""
    return [
        Request(**{**line, "attempts": [Attempt(**one) for one in line["attempts"]]})
        for line in read_lines(path)
    ]


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of JSON; none if there is no such file."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)
