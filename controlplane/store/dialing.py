"""How a connection to a server is made: our waits, no retries, plain bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError
from redis.maint_notifications import MaintNotificationsConfig

from controlplane.store.urls import Address

#: What the server answers: bytes, int, None, lists of these, or an error it replied with.
Reply: TypeAlias = object
#: Makes a connection that is not connected yet.
Dial: TypeAlias = Callable[[Address], AbstractConnection]

_READ_BYTES: Final = 65536


def dialing(
    options: Mapping[str, Any], *, is_tls: bool, connect_timeout_s: float, client_name: str
) -> Dial:
    """
    How to make connections; makes none yet.

    Args:
        options: `db`, credentials and `ssl_...`.
        is_tls: Whether TCP connections are TLS; sockets of this machine never are.
        connect_timeout_s: Seconds for connecting, and for closing. > 0.
        client_name: Shown by `CLIENT LIST`; no blanks.
    """
    fixed: dict[str, Any] = {
        # Each exchange runs under a deadline that also covers connecting and queueing. A second
        # one here would cost a task for every send and not see those.
        "socket_timeout": None,
        "socket_connect_timeout": connect_timeout_s,
        "socket_read_size": _READ_BYTES,
        # A retry is the caller's choice, and on the request path it has no time for one.
        "retry": Retry(NoBackoff(), 0),
        "retry_on_error": [],
        "retry_on_timeout": False,
        # A dead idle connection is noticed when it is taken; a PING before would be a round trip.
        "health_check_interval": 0,
        "encoding": "utf-8",
        "encoding_errors": "strict",
        "decode_responses": False,
        # RESP2 has all we read, and saves HELLO on every connect.
        "protocol": 2,
        "client_name": client_name,
        "driver_info": None,
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }

    def dial(address: Address) -> AbstractConnection:
        if not address.port:
            return UnixDomainSocketConnection(path=address.host, **options, **fixed)
        kind = SSLConnection if is_tls else Connection
        return kind(host=address.host, port=address.port, socket_keepalive=True, **options, **fixed)

    return dial


async def read_reply(connection: AbstractConnection) -> Reply:
    """The next reply; an error that the server replied with is returned and not raised."""
    try:
        reply: Reply = await connection.read_response()
    except ResponseError as error:
        return error
    return reply
