"""Streams as a client sees them: which event came when."""

from __future__ import annotations

import http.client
import json
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlsplit

from conformance.router import body_of

_TIMEOUT_S = 30


@dataclass
class Stream:
    """Events of one answer, with the seconds since it was asked."""

    times_s: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    status: int = 0
    is_done: bool = False

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.texts)

    @property
    def gaps_s(self) -> list[float]:
        """Between events."""
        return [b - a for a, b in zip(self.times_s, self.times_s[1:], strict=False)]


class Client:
    """One connection that is kept."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        assert address.hostname is not None
        self._connection = http.client.HTTPConnection(
            address.hostname, address.port, timeout=_TIMEOUT_S
        )

    def stream(self, path: str, **fields: Any) -> Stream:
        """Ask, and read to the end."""
        found, began_s = Stream(), time.perf_counter()
        response = self._ask(path, stream=True, **fields)
        found.status = response.status
        for line in response:
            if line.startswith(b"data: [DONE]"):
                found.is_done = True
            elif line.startswith(b"data: ") and (text := _text(json.loads(line[6:]))) is not None:
                found.times_s.append(time.perf_counter() - began_s)
                found.texts.append(text)
        return found

    def leave_after(self, events: int, path: str, **fields: Any) -> None:
        """Ask for a stream, read so many events with text, and close the connection."""
        response = self._ask(path, stream=True, **fields)
        for line in response:
            if line.startswith(b"data: {") and _text(json.loads(line[6:])) is not None:
                events -= 1
            if not events:
                break
        response.close()
        self._connection.close()

    def leave_without_answer(self, path: str, after_s: float, **fields: Any) -> None:
        """Ask for a whole answer, and close the connection before it can be there."""
        assert self._connection.sock is None
        self._connection.timeout = after_s
        with suppress(TimeoutError):
            self._ask(path, **fields)
            raise AssertionError("the answer came too soon to leave before it")
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def _ask(self, path: str, **fields: Any) -> http.client.HTTPResponse:
        headers = {"content-type": "application/json"}
        self._connection.request("POST", path, json.dumps(body_of(**fields)), headers)
        return self._connection.getresponse()


def _text(event: dict[str, Any]) -> str | None:
    """Of an event; None where it brings none."""
    if not event.get("choices"):
        return None
    choice = event["choices"][0]
    return choice.get("text") or (choice.get("delta") or {}).get("content") or None
