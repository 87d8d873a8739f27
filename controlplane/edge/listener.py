"""Where clients come in: the data listener with its bounds, and how it is left."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass

from aiohttp import web

from controlplane.config import LimitsConfig
from controlplane.edge.protocol import BoundedRunner, BoundedServer, ConnectionBounds
from controlplane.observe.metrics import RouterMetrics
from controlplane.serving import runner_options, start_site

#: What was written before the end gets so long to be taken by its clients.
_FLUSH_S = 1.0


@dataclass(frozen=True, slots=True)
class Listener:
    """A listener that is open."""

    #: Base URL; with port 0 it has the port that was found.
    url: str
    _server: BoundedServer

    async def leave(self, grace_s: float) -> None:
        """
        Close connections that nothing is asked on, after a moment.

        A request may be on its way on any of them, and a connection that is closed under it is an
        error without a status. So for `grace_s` they stay: who asks meanwhile is told that this
        router leaves, and every answer ends its connection. New connections are still taken.
        """
        await self._server.until_none_is_open(grace_s)
        self._server.close_idle()


async def listen_to_clients(
    stack: AsyncExitStack,
    app: web.Application,
    host: str,
    port: int,
    *,
    limits: LimitsConfig,
    metrics: RouterMetrics,
) -> Listener:
    """
    Serve clients until the stack unwinds.

    Raises:
        ConfigError: The address cannot be listened on.
    """
    bounds = ConnectionBounds(
        connections_max=limits.connections_max,
        peer_connections_max=limits.peer_connections_max,
        header_timeout_s=limits.header_timeout_s,
        write_timeout_s=limits.client_write_timeout_s,
        write_buffer_bytes=limits.client_buffer_bytes,
        closed_on=lambda cause: metrics.connections_closed_total.labels(cause).inc(),
    )
    runner = BoundedRunner(app, bounds, runner_options(limits.keepalive_timeout_s))

    async def flush() -> None:
        if runner.bounded is not None:
            await runner.bounded.close_all(_FLUSH_S)

    stack.push_async_callback(flush)
    url = await start_site(stack, app, runner, host, port)
    assert runner.bounded is not None
    return Listener(url, runner.bounded)
