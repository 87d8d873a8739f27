"""The worker client over HTTP, on one pooled session."""

from __future__ import annotations

from typing import Final

import aiohttp
from pydantic import ValidationError

from controlplane.config import LimitsConfig
from controlplane.domain.tokens import TokenIds
from controlplane.errors import PeerError, WorkerLost, WorkerRefused, WorkerTimeout
from controlplane.wire import (
    PARCEL_CONTENT_TYPE,
    DecodeJob,
    FrameKind,
    FrameReader,
    KvLocation,
    PrefillJob,
    WorkerError,
    pack_parcel,
)

_HEADERS: Final = {"Content-Type": PARCEL_CONTENT_TYPE}
_ANSWER_BYTES_MAX: Final = 1 << 20
_OK: Final = 200


class HttpDecodeStream:
    """A decode worker's answer on an open connection."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self._reader = FrameReader()

    async def frames(self) -> list[tuple[FrameKind, bytes]]:
        """The next frames; see the contract."""
        try:
            while data := await self._response.content.readany():
                frames = self._reader.feed(data)
                if frames:
                    return frames
        except TimeoutError as error:
            raise WorkerTimeout(
                "the decode worker fell silent in the middle of a stream"
            ) from error
        except (aiohttp.ClientError, ConnectionError) as error:
            raise WorkerLost("the connection to the decode worker broke") from error
        except ValueError as error:
            raise WorkerLost(f"the decode worker sent a malformed stream: {error}") from error
        return []

    def close(self) -> None:
        """Drop the connection, unless the answer is complete: then it is kept for the next job."""
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
        self._prefill_timeout = aiohttp.ClientTimeout(
            total=limits.prefill_accept_timeout_s, connect=limits.connect_timeout_s
        )
        self._decode_timeout = aiohttp.ClientTimeout(
            total=None,  # the request's own deadline ends it
            sock_connect=limits.connect_timeout_s,
            sock_read=limits.decode_idle_timeout_s,
        )

    async def prefill(self, url: str, job: PrefillJob, tokens: TokenIds) -> KvLocation:
        """Start a prefill; see the contract."""
        body = pack_parcel(job, tokens.data)
        try:
            async with self._session.post(
                f"{url}/worker/v1/prefill",
                data=body,
                headers=_HEADERS,
                timeout=self._prefill_timeout,
                allow_redirects=False,
            ) as response:
                answer = await response.content.read(_ANSWER_BYTES_MAX)
                if response.status != _OK:
                    raise _refusal(answer, "prefill")
                return KvLocation.model_validate_json(answer)
        except TimeoutError as error:
            raise WorkerTimeout("the prefill worker did not answer in time") from error
        except (aiohttp.ClientError, ConnectionError) as error:
            raise WorkerLost("no connection to the prefill worker, or it broke") from error
        except ValidationError as error:
            raise WorkerRefused("the prefill worker answered with a malformed location") from error

    async def abort_prefill(self, url: str, request_id: str) -> None:
        """Stop a prefill; see the contract."""
        try:
            async with self._session.delete(
                f"{url}/worker/v1/prefill/{request_id}",
                timeout=self._prefill_timeout,
                allow_redirects=False,
            ) as response:
                await response.content.read(_ANSWER_BYTES_MAX)
        except (aiohttp.ClientError, ConnectionError, TimeoutError):
            # The worker is gone, or its lease will end the segment: nothing more can be done here.
            return

    async def decode(self, url: str, job: DecodeJob, tokens: TokenIds) -> HttpDecodeStream:
        """Start a decode; see the contract."""
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
                    raise _refusal(await response.content.read(_ANSWER_BYTES_MAX), "decode")
        except TimeoutError as error:
            raise WorkerTimeout("the decode worker did not answer in time") from error
        except (aiohttp.ClientError, ConnectionError) as error:
            raise WorkerLost("no connection to the decode worker, or it broke") from error
        return HttpDecodeStream(response)

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()


def _refusal(answer: bytes, role: str) -> PeerError:
    """A worker's error answer; whatever it says, it did not take the job."""
    try:
        said = WorkerError.model_validate_json(answer)
    except ValidationError:
        return WorkerRefused(f"the {role} worker refused the job without a reason")
    return WorkerRefused(f"the {role} worker refused the job: {said.message}")
