"""
Connections within bounds: how many, how long a request's head may take, how long a client may read
nothing.

aiohttp bounds none of these: a half-sent head, a peer that opens thousands of connections, or one
that stops reading would each be held for ever.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, cast

from aiohttp import web
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler
from aiohttp.web_server import Server

#: Why a connection was closed on the client: too many of them all, or of its peer; its request's
#: head came too late; it read nothing for too long.
Cause: TypeAlias = Literal["connections", "peer", "head", "stalled"]

#: Clients that read nothing are looked for this often: a stall is noticed so much later.
_SWEEP_S: Final = 1.0

#: Bytes in the kernel that are not on their way yet; beyond that they wait here, where they count.
_UNSENT_BYTES: Final = 128 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionBounds:
    """What one listener takes."""

    #: Connections at a time, > 0: of all, and of one peer's address.
    connections_max: int
    peer_connections_max: int
    #: Seconds from the first byte of a head, or from the connection, to the head's last byte.
    header_timeout_s: float
    #: Seconds in which a client that has bytes to read takes none.
    write_timeout_s: float
    #: Bytes that may wait here for one client; beyond them its stream waits.
    write_buffer_bytes: int
    #: Told of each connection that was closed on a client.
    closed_on: Callable[[Cause], None]


class BoundedHandler(RequestHandler):
    """One connection, with a deadline for each head."""

    __slots__ = ("_body", "_bounds", "_head_due")

    def __init__(
        self, manager: BoundedServer, bounds: ConnectionBounds, options: Mapping[str, Any]
    ) -> None:
        super().__init__(manager, **options)
        self._bounds = bounds
        #: Of the newest request; what follows its end is another head.
        self._body: StreamReader | None = None
        self._head_due: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        """Nothing of a request is here, and none is being answered."""
        waiter = self._waiter
        # A waiter that is done has been told of a request in this very turn of the loop.
        return waiter is not None and not waiter.done() and self._head_due is None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin: the first head is awaited from now on."""
        # uvloop's transports are no subclasses of the interface that they have.
        stream = cast("asyncio.Transport", transport)
        stream.set_write_buffer_limits(high=self._bounds.write_buffer_bytes)
        _bound_kernel_buffer(stream)
        super().connection_made(stream)
        self._await_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        """End."""
        self._head_is_here()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes; those between two requests begin a head, which has to end in time."""
        is_between = self._body is None or self._body.is_eof()
        count = self._request_count
        super().data_received(data)
        if self._request_count != count:
            self._body = self._messages[-1][1]
            self._head_is_here()
        elif is_between and data and self._head_due is None and self.transport is not None:
            self._await_head()

    def _await_head(self) -> None:
        self._head_due = self._loop.call_later(self._bounds.header_timeout_s, self._head_is_late)

    def _head_is_here(self) -> None:
        if self._head_due is not None:
            self._head_due.cancel()
            self._head_due = None

    def _head_is_late(self) -> None:
        self._head_due = None
        if self._waiter is None:
            # The request before it is still being answered; the half-sent one waits for that.
            self._await_head()
            return
        self._bounds.closed_on("head")
        self.force_close()


@dataclass(slots=True)
class _Connection:
    """What the server knows of an open connection."""

    transport: asyncio.Transport
    peer: str
    waiting_bytes: int = 0
    #: When it was last seen to take bytes, or had none to take.
    progress_s: float = 0.0


class BoundedServer(Server):
    """All connections of one listener."""

    def __init__(self, made: Server, bounds: ConnectionBounds) -> None:
        """
        Args:
            made: What aiohttp would have used; its handler and options are taken over.
            bounds: See there.
        """
        super().__init__(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
            loop=made._loop,  # noqa: SLF001 - a copy of another server has no other way
            **made._kwargs,  # noqa: SLF001 - the same
        )
        self._bounds = bounds
        self._open: dict[RequestHandler, _Connection] = {}
        self._peers: Counter[str] = Counter()
        self._sweep: asyncio.TimerHandle | None = None
        self._none_open = asyncio.Event()
        self._none_open.set()

    def __call__(self) -> RequestHandler:
        """The handler of a new connection."""
        return BoundedHandler(self, self._bounds, {"loop": self._loop, **self._kwargs})

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        """Count a connection; one too many is closed at once."""
        super().connection_made(handler, transport)
        name = transport.get_extra_info("peername")
        peer = name[0] if isinstance(name, tuple) else ""
        self._open[handler] = _Connection(transport, peer, progress_s=self._loop.time())
        self._peers[peer] += 1
        self._none_open.clear()
        if len(self._open) > self._bounds.connections_max:
            self._close_on("connections", transport)
        elif self._peers[peer] > self._bounds.peer_connections_max:
            self._close_on("peer", transport)
        if self._sweep is None:
            self._sweep = self._loop.call_later(_SWEEP_S, self._look_for_stalls)

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        """Forget a connection."""
        super().connection_lost(handler, exc)
        connection = self._open.pop(handler, None)
        if connection is None:
            return
        self._peers[connection.peer] -= 1
        if not self._peers[connection.peer]:
            del self._peers[connection.peer]
        if not self._open:
            self._none_open.set()

    def close_idle(self) -> None:
        """Close connections that wait for their next request: it should go to somebody else."""
        for handler in tuple(self._open):
            if isinstance(handler, BoundedHandler) and handler.is_idle:
                handler.force_close()

    async def until_none_is_open(self, within_s: float) -> None:
        """Wait until all connections are closed, or for so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._none_open.wait()

    async def close_all(self, within_s: float) -> None:
        """Wait until what was written has been taken and all connections are closed, or cut them."""
        await self.until_none_is_open(within_s)
        for connection in tuple(self._open.values()):
            connection.transport.abort()
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None

    def _look_for_stalls(self) -> None:
        """
        Cut clients that have bytes to read and take none.

        One look at all connections instead of a timer around each write: it also sees answers that
        were handed over whole, and connections that are closing, which nobody else waits for.
        """
        now_s = self._loop.time()
        for connection in tuple(self._open.values()):
            waiting = connection.transport.get_write_buffer_size()
            if not connection.waiting_bytes or waiting < connection.waiting_bytes:
                connection.progress_s = now_s
            connection.waiting_bytes = waiting
            if waiting and now_s - connection.progress_s >= self._bounds.write_timeout_s:
                self._close_on("stalled", connection.transport)
        again = bool(self._open)
        self._sweep = self._loop.call_later(_SWEEP_S, self._look_for_stalls) if again else None

    def _close_on(self, cause: Cause, transport: asyncio.Transport) -> None:
        self._bounds.closed_on(cause)
        transport.abort()


class BoundedRunner(web.AppRunner):
    """Runs an application on a server with bounds."""

    def __init__(
        self, app: web.Application, bounds: ConnectionBounds, options: Mapping[str, Any]
    ) -> None:
        super().__init__(app, **options)
        self._bounds = bounds
        self.bounded: BoundedServer | None = None

    async def _make_server(self) -> Server:
        self.bounded = BoundedServer(await super()._make_server(), self._bounds)
        return self.bounded


def _bound_kernel_buffer(transport: asyncio.Transport) -> None:
    """
    Keep the kernel from taking megabytes for a client that does not read.

    Bytes under way are not counted, so a fast client far away is as fast as before.
    """
    option = getattr(socket, "TCP_NOTSENT_LOWAT", None)
    handle = transport.get_extra_info("socket")
    if option is not None and handle is not None and handle.family != socket.AF_UNIX:
        with suppress(OSError):
            handle.setsockopt(socket.IPPROTO_TCP, option, _UNSENT_BYTES)
