"""The client's side of an answer over aiohttp."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from aiohttp import web

from controlplane.edge.errors_json import error_body
from controlplane.errors import PrfaasError
from controlplane.router.sink import ClientLeftError

#: Bytes that are written at once.
_PIECE_BYTES: Final = 32 << 10


class StreamSink:
    """
    Server-sent events, written as they come, with a deadline for each write.

    One timer watches all writes of a stream: a timeout around each would cost as much as the write.
    """

    def __init__(self, request: web.Request, request_id: str, *, write_timeout_s: float) -> None:
        self._request = request
        self._request_id = request_id
        self._write_timeout_s = write_timeout_s
        self._response: web.StreamResponse | None = None
        self._loop = asyncio.get_running_loop()
        self._watch: asyncio.TimerHandle | None = None
        #: When the write under way is too late, by the loop's clock.
        self._due_s = math.inf
        #: Nothing can be sent any more.
        self.has_left = False

    @property
    def is_begun(self) -> bool:
        """Headers are out."""
        return self._response is not None

    @property
    def response(self) -> web.StreamResponse:
        """What the handler returns."""
        assert self._response is not None
        return self._response

    async def begin(self, headers: Mapping[str, str]) -> None:
        """Send status 200 and headers."""
        response = web.StreamResponse(
            headers={
                **headers,
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-cache",
                "X-Accel-Buffering": "no",
            }
        )
        try:
            await response.prepare(self._request)
        except ConnectionError as error:
            raise ClientLeftError from error
        self._response = response
        self._watch = self._loop.call_later(self._write_timeout_s, self._look)

    async def write(self, data: bytes) -> None:
        """Send bytes; a client that does not read for too long has left."""
        self._due_s = self._loop.time() + self._write_timeout_s
        try:
            if len(data) <= _PIECE_BYTES:
                await self.response.write(data)
            else:
                await self._write_pieces(data)
        except ConnectionError as error:
            self._drop()
            raise ClientLeftError from error
        finally:
            self._due_s = math.inf

    async def _write_pieces(self, data: bytes) -> None:
        """So that no more waits for the client than the connection's buffer and one piece."""
        for start in range(0, len(data), _PIECE_BYTES):
            await self.response.write(data[start : start + _PIECE_BYTES])
            self._due_s = self._loop.time() + self._write_timeout_s

    async def fail(self, error: PrfaasError) -> None:
        """Send an error event; nothing follows it, least of all [DONE]."""
        await self.write(b"event: error\ndata: " + error_body(error, self._request_id) + b"\n\n")

    async def end(self) -> None:
        """Send what closes the answer; who has gone with its last byte cannot be told."""
        with suppress(ConnectionError):
            await self.response.write_eof()

    def close(self) -> None:
        """Watch no longer."""
        if self._watch is not None:
            self._watch.cancel()

    def _look(self) -> None:
        """Whether the write under way has waited for too long; its end comes as an error then."""
        now_s = self._loop.time()
        if now_s >= self._due_s:
            self._drop()
        else:
            next_s = min(self._due_s, now_s + self._write_timeout_s)
            self._watch = self._loop.call_at(next_s, self._look)

    def _drop(self) -> None:
        """
        Close the connection at once.

        A client that does not read holds buffers as long as its connection is open, and what it
        finds there later must not look like a whole answer.
        """
        self.has_left = True
        if self._request.transport is not None:
            self._request.transport.abort()


class WholeSink:
    """An answer that is sent at once when it is complete."""

    def __init__(self) -> None:
        self.headers: Mapping[str, str] = {}
        self.body = b""

    @property
    def is_begun(self) -> bool:
        """Never: until the answer is complete a failure can be a status code."""
        return False

    async def begin(self, headers: Mapping[str, str]) -> None:
        """Keep the headers."""
        self.headers = headers

    async def write(self, data: bytes) -> None:
        """Keep the answer."""
        self.body += data

    async def fail(self, error: PrfaasError) -> None:
        """Not called: the answer has not begun."""
        raise AssertionError(f"an answer that has not begun cannot fail in its middle: {error}")
