"""The worker client over HTTP, on one pooled session."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from weakref import WeakSet

import aiohttp
from pydantic import ValidationError

from controlplane.config import LimitsConfig
from controlplane.domain.tokens import TokenIds
from controlplane.errors import (
    PeerError,
    RoleRefused,
    WorkerLost,
    WorkerRefused,
    WorkerTimeout,
    WorkerUnreached,
)
from controlplane.wire import (
    PARCEL_CONTENT_TYPE,
    DecodeJob,
    FrameKind,
    FrameReader,
    KvLocation,
    PrefillJob,
    PrefixAsk,
    RoleChange,
    RoleReply,
    WorkerBeat,
    WorkerError,
    pack_parcel,
)

_HEADERS: Final = {"Content-Type": PARCEL_CONTENT_TYPE}
_ANSWER_BYTES_MAX: Final = 1 << 20
_OK: Final = 200
_ACCEPTED: Final = 202
_NOT_FOUND: Final = 404
_CONFLICT: Final = 409

#: Whether a worker's process is there is known at once, or not worth a longer wait.
_PROBE_TIMEOUT: Final = aiohttp.ClientTimeout(total=0.5, connect=0.5)


class HttpDecodeStream:
    """A decode worker's answer on an open connection."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self._reader = FrameReader()
        self._is_closed = False

    async def frames(self) -> list[tuple[FrameKind, bytes]]:
        """The next frames; see the contract."""
        try:
            while not self._is_closed and (data := await self._response.content.readany()):
                frames = self._reader.feed(data)
                if frames:
                    return frames
        except TimeoutError as error:
            raise WorkerTimeout(
                "the decode worker fell silent in the middle of a stream"
            ) from error
        except (aiohttp.ClientError, ConnectionError, RuntimeError) as error:
            # A RuntimeError is what aiohttp makes of reading a connection that was closed here.
            raise WorkerLost("the connection to the decode worker broke") from error
        except ValueError as error:
            raise WorkerLost(f"the decode worker sent a malformed stream: {error}") from error
        return []

    @property
    def has_ended(self) -> bool:
        """Mostly the end comes with the last frames; see the contract."""
        return self._is_closed or self._response.content.at_eof()

    def close(self) -> None:
        """Drop the connection, unless the answer is complete: then it is kept for the next job."""
        self._is_closed = True
        self._response.close()

    def break_off(self) -> None:
        """Drop the connection under a reader's feet: what it asks for next is lost."""
        self._response.close()


class HttpWorkerClient:
    """
    Jobs over HTTP/1.1 on kept connections.

    Connections per worker are not limited here: reservations and the router's own limit of
    requests in flight bound them.
    """

    def __init__(self, limits: LimitsConfig) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, keepalive_timeout=30.0, enable_cleanup_closed=False, force_close=False
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            raise_for_status=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
            read_bufsize=1 << 18,
            timeout=aiohttp.ClientTimeout(total=None),  # set per call below
        )
        self._streams: WeakSet[HttpDecodeStream] = WeakSet()
        self._prefill_timeout = aiohttp.ClientTimeout(
            total=limits.prefill_accept_timeout_s, connect=limits.connect_timeout_s
        )
        self._prefix_timeout = aiohttp.ClientTimeout(
            total=limits.prefix_ask_timeout_s, connect=limits.connect_timeout_s
        )
        self._decode_timeout = aiohttp.ClientTimeout(
            total=None,  # the request's own deadline ends it
            sock_connect=limits.connect_timeout_s,
            sock_read=limits.decode_idle_timeout_s,
        )

    async def prefill(self, url: str, job: PrefillJob, tokens: TokenIds) -> KvLocation:
        """Start a prefill; see the contract."""
        self._check_open()
        body = pack_parcel(job, tokens.data)
        try:
            async with self._session.post(
                f"{url}/worker/v1/prefill",
                data=body,
                headers=_HEADERS,
                timeout=self._prefill_timeout,
                allow_redirects=False,
            ) as response:
                answer = await _whole(response)
                if response.status != _OK:
                    raise _refusal(answer, "prefill")
                return KvLocation.model_validate_json(answer)
        except TimeoutError as error:
            raise WorkerTimeout("the prefill worker did not answer in time") from error
        except aiohttp.ClientConnectorError as error:
            raise WorkerUnreached("no connection to the prefill worker") from error
        except (aiohttp.ClientError, ConnectionError) as error:
            raise WorkerLost("the connection to the prefill worker broke") from error
        except ValidationError as error:
            # It did not refuse, so it may well compute: only a worker that is lost is told to stop.
            raise WorkerLost("the prefill worker answered with a malformed location") from error

    async def abort_prefill(self, url: str, request_id: str) -> None:
        """Stop a prefill; see the contract."""
        try:
            async with self._session.delete(
                f"{url}/worker/v1/prefill/{request_id}",
                timeout=self._prefill_timeout,
                allow_redirects=False,
            ) as response:
                await _whole(response)
        except (aiohttp.ClientError, ConnectionError, TimeoutError):
            # The worker is gone, or its lease will end the segment: nothing more can be done here.
            return

    async def export_prefix(self, url: str, ask: PrefixAsk, tokens: TokenIds) -> KvLocation | None:
        """Ask where a cached prefix can be copied from; see the contract."""
        status, answer = await self._ask(
            f"{url}/worker/v1/prefix",
            pack_parcel(ask, tokens.data),
            self._prefix_timeout,
            who="the worker with the prefix",
        )
        if status == _NOT_FOUND:
            return None
        if status != _OK:
            raise _refusal(answer, "exporting")
        try:
            return KvLocation.model_validate_json(answer)
        except ValidationError as error:
            raise WorkerLost("the exporting worker answered with a malformed location") from error

    async def change_role(self, url: str, change: RoleChange) -> RoleReply:
        """Ask for another role; see the contract."""
        status, answer = await self._ask(
            f"{url}/worker/v1/role",
            change.model_dump_json().encode(),
            self._prefill_timeout,
            who="the worker",
        )
        try:
            if status == _CONFLICT:
                said = WorkerError.model_validate_json(answer)
                raise RoleRefused(said.message, reason=said.code)
            if status != _ACCEPTED:
                raise _refusal(answer, "asked")
            return RoleReply.model_validate_json(answer)
        except ValidationError as error:
            raise WorkerLost("the worker answered a change of its role with garbage") from error

    async def _ask(
        self, url: str, body: bytes, within: aiohttp.ClientTimeout, *, who: str
    ) -> tuple[int, bytes]:
        """Post and take the whole answer, whatever its status; failures are of the contract."""
        self._check_open()
        try:
            async with self._session.post(
                url, data=body, headers=_HEADERS, timeout=within, allow_redirects=False
            ) as response:
                return response.status, await _whole(response)
        except TimeoutError as error:
            raise WorkerTimeout(f"{who} did not answer in time") from error
        except aiohttp.ClientConnectorError as error:
            raise WorkerUnreached(f"no connection to {who}") from error
        except (aiohttp.ClientError, ConnectionError) as error:
            raise WorkerLost(f"the connection to {who} broke") from error

    async def has_died(self, url: str, incarnation: str, *, neighbours: Sequence[str] = ()) -> bool:
        """Whether a process life is certainly over; see the contract."""
        try:
            async with self._session.get(
                f"{url}/worker/v1/beat", timeout=_PROBE_TIMEOUT, allow_redirects=False
            ) as response:
                answer = await _whole(response)
                if response.status != _OK:
                    return False
                return WorkerBeat.model_validate_json(answer).incarnation != incarnation
        except aiohttp.ClientConnectorError as error:
            return isinstance(error.os_error, ConnectionRefusedError)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            return await _answers_any(neighbours)
        except (aiohttp.ClientError, ConnectionError, TimeoutError, RuntimeError, ValidationError):
            # Somebody is there, or nobody can tell.
            return False

    async def decode(self, url: str, job: DecodeJob, tokens: TokenIds) -> HttpDecodeStream:
        """Start a decode; see the contract."""
        self._check_open()
        body = pack_parcel(job, tokens.data)
        try:
            response = await self._session.post(
                f"{url}/worker/v1/decode",
                data=body,
                headers=_HEADERS,
                timeout=self._decode_timeout,
                allow_redirects=False,
            )
            if response.status != _OK:
                async with response:
                    raise _refusal(await _whole(response), "decode")
        except TimeoutError as error:
            raise WorkerTimeout("the decode worker did not answer in time") from error
        except aiohttp.ClientConnectorError as error:
            raise WorkerUnreached("no connection to the decode worker") from error
        except (aiohttp.ClientError, ConnectionError) as error:
            raise WorkerLost("the connection to the decode worker broke") from error
        stream = HttpDecodeStream(response)
        self._streams.add(stream)
        return stream

    def _check_open(self) -> None:
        if self._session.closed:
            raise WorkerLost("this router is stopping and has closed its connections")

    async def close(self) -> None:
        """Close all connections, those of open streams too."""
        for stream in tuple(self._streams):
            stream.break_off()
        await self._session.close()


async def _answers_any(urls: Sequence[str]) -> bool:
    """Whether one of these workers answers, on a connection made now: an old one says nothing."""
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=_PROBE_TIMEOUT) as session:
        for url in urls:
            try:
                async with session.get(f"{url}/worker/v1/beat", allow_redirects=False) as response:
                    if response.status == _OK:
                        return True
            except (aiohttp.ClientError, ConnectionError, TimeoutError):
                continue
    return False


async def _whole(response: aiohttp.ClientResponse) -> bytes:
    """
    An answer's body.

    Raises:
        aiohttp.ClientPayloadError: More than any worker has to say.
    """
    parts: list[bytes] = []
    size = 0
    while data := await response.content.readany():
        parts.append(data)
        size += len(data)
        if size > _ANSWER_BYTES_MAX:
            raise aiohttp.ClientPayloadError(f"an answer has more than {_ANSWER_BYTES_MAX} bytes")
    return b"".join(parts)


def _refusal(answer: bytes, role: str) -> PeerError:
    """A worker's error answer; whatever it says, it did not take the job."""
    try:
        said = WorkerError.model_validate_json(answer)
    except ValidationError:
        return WorkerRefused(f"the {role} worker refused the job without a reason")
    return WorkerRefused(f"the {role} worker refused the job: {said.message}")
