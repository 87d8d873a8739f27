"""The client's side of an answer over aiohttp."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from aiohttp import web

from controlplane.edge.errors_json import error_body
from controlplane.errors import PrfaasError
from controlplane.router.sink import ClientLeftError


class StreamSink:
    """Server-sent events, written as they come, with a deadline for each write."""

    def __init__(self, request: web.Request, request_id: str, *, write_timeout_s: float) -> None:
        self._request = request
        self._request_id = request_id
        self._write_timeout_s = write_timeout_s
        self._response: web.StreamResponse | None = None

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

    async def write(self, data: bytes) -> None:
        """Send bytes; a client that does not read for too long has left."""
        try:
            async with asyncio.timeout(self._write_timeout_s):
                await self.response.write(data)
        except (ConnectionError, TimeoutError) as error:
            raise ClientLeftError from error

    async def fail(self, error: PrfaasError) -> None:
        """Send an error event; nothing follows it, least of all [DONE]."""
        await self.write(b"event: error\ndata: " + error_body(error, self._request_id) + b"\n\n")


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
