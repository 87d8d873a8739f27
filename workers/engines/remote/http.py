"""HTTP to one engine server: every wait bounded, every failure one of our errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp

from controlplane.errors import PrfaasError, WorkerLost, WorkerRefused, WorkerUnreached

_CONNECT_S: Final = 2.0
#: Answers that are read whole: metrics of a server with many engines are 1 MB.
_WHOLE_BYTES_MAX: Final = 32 << 20
#: One event of a stream; the first one may repeat the prompt's ids.
_EVENT_BYTES_MAX: Final = 16 << 20
#: What an answer says of its failure, as far as it is passed on.
_REASON_CHARACTERS: Final = 300
_CLIENT_ERROR: Final = 400
_SERVER_ERROR: Final = 500


class EngineHttp:
    """
    Requests to one server. Cancelling one closes its connection: that is how engines are told to abort.

    Legs have no time limit here: their caller has one.
    """

    def __init__(self, url: str, *, api_key: str = "") -> None:
        """
        Args:
            url: Base of the server's API, without `/v1`.
            api_key: Sent as bearer token; empty for none.
        """
        self.url = url.rstrip("/")
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._session: aiohttp.ClientSession | None = None

    def __repr__(self) -> str:
        return f"<EngineHttp {self.url}>"

    async def get(self, path: str, *, timeout_s: float, base: str | None = None) -> str:
        """
        The text of an answer.

        Raises:
            WorkerUnreached: No connection.
            WorkerLost: It broke, took too long, or the server failed.
            WorkerRefused: 4xx.
        """
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._request("GET", path, base=base) as response,
            ):
                return (await _whole(response)).decode(errors="replace")
        except TimeoutError as error:
            raise WorkerLost(f"the engine did not answer GET {path} in {timeout_s:g} s") from error

    async def post(
        self, path: str, body: Mapping[str, Any], headers: Mapping[str, str]
    ) -> dict[str, Any]:
        """
        Send JSON, and read the object that comes back.

        Raises:
            PrfaasError: As `get`, and WorkerLost for an answer that is no object.
        """
        async with self._request("POST", path, body=body, headers=headers) as response:
            return _object(await _whole(response))

    async def events(
        self, path: str, body: Mapping[str, Any], headers: Mapping[str, str]
    ) -> AsyncGenerator[dict[str, Any], None]:
        """
        Send JSON, and read the events of the stream that comes back, without its `[DONE]`.

        Raises:
            PrfaasError: As `post`. An event that tells of an error is an event, see `reason_of`.
        """
        async with self._request("POST", path, body=body, headers=headers) as response:
            pending = b""
            async for chunk in response.content.iter_any():
                *whole, pending = (pending + chunk).split(b"\n\n")
                if len(pending) > _EVENT_BYTES_MAX:
                    raise WorkerLost("the engine sends an event without end")
                for event in whole:
                    if not event.startswith(b"data:"):
                        continue  # a comment, as proxies send them to keep a connection
                    data = event.removeprefix(b"data:").strip()
                    if data == b"[DONE]":
                        return
                    yield _object(data)
            raise WorkerLost("the engine's stream broke off before its end")

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        if self._session is not None:
            await self._session.close()

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        *,
        base: str | None = None,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        if self._session is None:
            # Made here: a session belongs to a running loop. Legs are long and many.
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=None),
                headers=self._headers,
            )
        try:
            async with self._session.request(
                method, (base or self.url) + path, json=body, headers=headers,
                allow_redirects=False,
            ) as response:  # fmt: skip
                if response.status >= _CLIENT_ERROR:
                    raise _refusal(response.status, path, await _whole(response))
                yield response
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise WorkerUnreached("no connection to the engine server") from error
        except aiohttp.ClientError as error:
            kind = type(error).__name__
            raise WorkerLost(f"the connection to the engine server broke: {kind}") from error


async def _whole(response: aiohttp.ClientResponse) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > _WHOLE_BYTES_MAX:
            raise WorkerLost(f"the engine's answer is over {_WHOLE_BYTES_MAX} bytes")
    return b"".join(parts)


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError as error:
        raise WorkerLost("the engine answered something that is not JSON") from error
    if not isinstance(found, dict):
        raise WorkerLost("the engine answered JSON that is no object")
    return found


def _refusal(status: int, path: str, body: bytes) -> PrfaasError:
    try:
        reason = reason_of(_object(body))
    except WorkerLost:
        reason = body[:_REASON_CHARACTERS].decode(errors="replace")
    if status >= _SERVER_ERROR:
        return WorkerLost(f"the engine answered {status} to {path}: {reason}")
    return WorkerRefused(f"the engine answered {status} to {path}: {reason}")


def reason_of(answer: Mapping[str, Any]) -> str:
    """What an error answer or an error event says, cut to a sentence or two."""
    error = answer.get("error", answer)
    said = error.get("message", error) if isinstance(error, dict) else error
    return str(said)[:_REASON_CHARACTERS]
