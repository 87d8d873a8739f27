"""Probes of links over HTTP, on a session of their own: they must not wait behind jobs."""

from __future__ import annotations

import asyncio
import errno
from typing import Final

import aiohttp
from pydantic import ValidationError

from controlplane.router.link_probes import Way, WaySign
from controlplane.wire import LinkProbe, LinkProbeReply, LinkSign

#: An answer has under 100 bytes, and a heartbeat without its inventory under 2 KB.
_ANSWER_BYTES_MAX: Final = 1 << 16
_OK: Final = 200
#: The reader gives up by itself; its answer may take so much longer.
_MARGIN_S: Final = 0.5
#: Connections at the same time. Two for each of the links into a datacenter.
_CONNECTIONS_MAX: Final = 128
#: What a system call says when no way leads to that machine.
_NO_WAY: Final = frozenset({
    errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH,
})  # fmt: skip


class HttpLinkProber:
    """`GET /worker/v1/beat` at the prefill worker, `POST /worker/v1/probe-link` at the other."""

    def __init__(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=_CONNECTIONS_MAX, keepalive_timeout=30.0, enable_cleanup_closed=False
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            raise_for_status=False,
            timeout=aiohttp.ClientTimeout(total=None),  # set per call below
        )

    async def cross(self, way: Way, *, timeout_s: float) -> WaySign:
        """Whether a way is open; see the contract."""
        if self._session.closed:
            return "unknown"
        owner, reader = await asyncio.gather(
            self._ask_owner(way, timeout_s), self._ask_reader(way, timeout_s)
        )
        if "silent" in (owner, reader):
            return "silent"
        return "answered" if (owner, reader) == ("answered", "answered") else "unknown"

    async def _ask_owner(self, way: Way, timeout_s: float) -> LinkSign:
        """Whatever the prefill worker says to a question has crossed the link."""
        try:
            async with self._session.get(
                f"{way.owner_url}/worker/v1/beat",
                timeout=aiohttp.ClientTimeout(total=timeout_s),
                allow_redirects=False,
            ) as response:
                await response.content.readany()
        except TimeoutError:
            return "silent"
        except aiohttp.ClientConnectorError as error:
            return "silent" if error.os_error.errno in _NO_WAY else "refused"
        except (aiohttp.ClientError, ConnectionError, RuntimeError):
            return "refused"
        return "answered"

    async def _ask_reader(self, way: Way, timeout_s: float) -> LinkSign:
        """What the decode worker found; one that cannot be asked says nothing of the link."""
        question = LinkProbe(target=way.owner_kv, timeout_s=timeout_s)
        try:
            async with self._session.post(
                f"{way.reader_url}/worker/v1/probe-link",
                data=question.model_dump_json(),
                headers={"Content-Type": "application/json"},
                timeout=aiohttp.ClientTimeout(total=timeout_s + _MARGIN_S),
                allow_redirects=False,
            ) as response:
                if response.status != _OK or (response.content_length or 0) > _ANSWER_BYTES_MAX:
                    return "refused"
                return LinkProbeReply.model_validate_json(await response.read()).sign
        except (aiohttp.ClientError, ConnectionError, TimeoutError, RuntimeError, ValidationError):
            return "refused"

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()
