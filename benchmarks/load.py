"""
The load generator: a closed loop over kept connections, on bare sockets so that it costs little.

It reads jobs from standard input, one JSON object a line, and answers each with one line.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from array import array
from dataclasses import asdict, dataclass
from itertools import cycle
from typing import Final, cast

import uvloop

from benchmarks.cells import PATH, SIZES, bodies

#: After its time a job waits so long for answers that are still under way.
_LINGER_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to send, where, and for how long."""

    port: int
    model: str
    size: str
    is_stream: bool
    connections: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came back."""

    #: Complete answers with status 200.
    requests: int
    #: Everything else, and answers that never came.
    errors: int
    elapsed_s: float
    p50_ms: float
    p99_ms: float
    #: The first wrong answer, for people.
    example: str = ""


class _Run:
    """A job under way: what its connections share."""

    def __init__(self, job: Job) -> None:
        size = next(size for size in SIZES if size.name == job.size)
        self.loop = asyncio.get_running_loop()
        self.requests = cycle(
            [_request(body, job.port) for body in bodies(size, job.model, is_stream=job.is_stream)]
        )
        self.is_stream = job.is_stream
        self.seconds_taken = array("d")
        self.right = self.errors = 0
        self.example = ""
        self.stop_s = time.monotonic() + job.seconds
        self.open = job.connections
        self.ended = asyncio.Event()

    def failed(self, what: bytes) -> None:
        """Count an answer that is wrong."""
        self.errors += 1
        self.example = self.example or what[:300].decode(errors="replace")

    def left(self) -> None:
        """One connection has nothing more to do."""
        self.open -= 1
        if not self.open:
            self.ended.set()


class _Client(asyncio.Protocol):
    """One connection: a request, its answer, the next request."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._transport: asyncio.Transport | None = None
        self._answer = b""
        self._sent_s = 0.0
        self._is_waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        # uvloop's transports are no subclasses of the interface that they have.
        self._transport = cast("asyncio.Transport", transport)
        self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        """A connection that ends in the middle of an answer has lost it."""
        if self._is_waiting:
            self._run.failed(f"connection lost ({exc})".encode())
        self._run.left()

    def data_received(self, data: bytes) -> None:
        """Count the answer when it is complete."""
        self._answer = self._answer + data if self._answer else data
        if not _is_complete(self._answer):
            return
        self._run.seconds_taken.append(time.monotonic() - self._sent_s)
        self._is_waiting = False
        if _is_right(self._answer, is_stream=self._run.is_stream):
            self._run.right += 1
        else:
            self._run.failed(self._answer)
        self._answer = b""
        self._next()

    def _next(self) -> None:
        assert self._transport is not None
        now_s = time.monotonic()
        if now_s >= self._run.stop_s:
            self._transport.close()
            return
        self._sent_s = now_s
        self._is_waiting = True
        self._transport.write(next(self._run.requests))


def _request(body: bytes, port: int) -> bytes:
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _is_complete(answer: bytes) -> bool:
    end = answer.find(b"\r\n\r\n")
    if end < 0:
        return False
    head = answer[:end].lower()
    if b"transfer-encoding: chunked" in head:
        # No event has an empty line with CR in it, so this stands at the end alone.
        return answer.endswith(b"\r\n0\r\n\r\n")
    _, _, length = head.partition(b"content-length: ")
    return len(answer) >= end + 4 + int(length.split(b"\r\n", 1)[0] or b"0")


def _is_right(answer: bytes, *, is_stream: bool) -> bool:
    wanted = b"data: [DONE]" if is_stream else b'"finish_reason": "length"'
    return answer.startswith(b"HTTP/1.1 200 ") and wanted in answer


async def _perform(job: Job) -> Outcome:
    run = _Run(job)
    began_s = time.monotonic()
    for _ in range(job.connections):
        await run.loop.create_connection(lambda: _Client(run), "127.0.0.1", job.port)
    try:
        async with asyncio.timeout(job.seconds + _LINGER_S):
            await run.ended.wait()
    except TimeoutError:
        run.errors += run.open
        run.example = run.example or "no answer"
    taken = sorted(run.seconds_taken)
    return Outcome(
        requests=run.right,
        errors=run.errors,
        elapsed_s=time.monotonic() - began_s,
        p50_ms=_quantile(taken, 0.5) * 1000,
        p99_ms=_quantile(taken, 0.99) * 1000,
        example=run.example,
    )


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def main() -> None:
    """Do jobs until standard input closes."""
    for line in sys.stdin:
        print(json.dumps(asdict(uvloop.run(_perform(Job(**json.loads(line)))))), flush=True)


if __name__ == "__main__":
    main()
