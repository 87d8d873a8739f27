"""Probes over HTTP, on a session of their own: they must not wait behind jobs."""

from __future__ import annotations

from typing import Final

import aiohttp
from pydantic import ValidationError

from controlplane.config_health import HealthConfig
from controlplane.router.probes import NoBeat
from controlplane.wire import WorkerBeat

#: A beat without its inventory has under 2 KB.
_BEAT_BYTES_MAX: Final = 1 << 16
_OK: Final = 200


class HttpProber:
    """`GET /worker/v1/beat`."""

    def __init__(self, config: HealthConfig) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=config.probes_max, keepalive_timeout=30.0, enable_cleanup_closed=False
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            raise_for_status=False,
            timeout=aiohttp.ClientTimeout(total=config.probe_timeout_s),
        )

    async def ask(self, url: str) -> WorkerBeat | NoBeat:
        """What a worker says of itself; see the contract."""
        if self._session.closed:
            return "silent"
        try:
            body = await self._get(f"{url}/worker/v1/beat")
            return WorkerBeat.model_validate_json(body)
        except aiohttp.ClientConnectorError as error:
            is_refused = isinstance(error.os_error, ConnectionRefusedError)
            return "refused" if is_refused else "silent"
        except (aiohttp.ClientError, OSError, TimeoutError):
            return "silent"
        except ValidationError:
            # An empty answer too: whoever is there has no such route.
            return "mute"

    async def _get(self, url: str) -> bytes:
        """The body of an answer, as far as a beat can be; empty when it is none."""
        async with self._session.get(url, allow_redirects=False) as response:
            if response.status != _OK:
                return b""
            body = b""
            while len(body) < _BEAT_BYTES_MAX and (part := await response.content.readany()):
                body += part
            return body

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()
