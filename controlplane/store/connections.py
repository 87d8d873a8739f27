"""Connections to Redis: a bounded stack of them, and a deadline that a busy loop does not fool."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Final, TypeAlias
from urllib.parse import parse_qs, urlsplit

from hiredis import pack_command
from redis.asyncio.connection import AbstractConnection, Connection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError
from redis.maint_notifications import MaintNotificationsConfig

from controlplane.errors import ConfigError
from controlplane.store.scripts import BY_SHA, Command

#: What the server answers: bytes, int, None, lists of these, or an error it replied with.
Reply: TypeAlias = object
ConnectionFactory: TypeAlias = Callable[[], AbstractConnection]

#: A deadline that fires this much late finds a loop that was busy with something else; the answer
#: may lie in the socket, so the loop gets as long again to pick it up.
LOOP_LAG_S: Final = 0.005

#: Parts of a URL that do not change how we wait, retry or decode.
_URL_OPTIONS: Final = ("db", "username", "password", "ssl_")


def connection_factory(
    url: str, *, connect_timeout_s: float, client_name: str
) -> ConnectionFactory:
    """
    How to make a connection; makes none yet.

    Args:
        url: `redis://`, `rediss://` or `unix://`; its query may hold `db`, `username`, `password`
            and `ssl_...`.
        connect_timeout_s: Seconds for connecting, and for closing. > 0.
        client_name: Shown by `CLIENT LIST`; no blanks.

    Raises:
        ConfigError: Not such a URL.
    """
    for option in parse_qs(urlsplit(url).query):
        if not option.startswith(_URL_OPTIONS):
            raise ConfigError(
                f"REDIS_URL may not set {option!r}: waits and retries belong to the section "
                "[store] of the fleet file"
            )
    try:
        where: dict[str, Any] = {**parse_url(url)}
    except ValueError as error:
        raise ConfigError(f"REDIS_URL is not usable: {error}") from error
    connection_class: type[AbstractConnection] = where.pop("connection_class", Connection)
    if issubclass(connection_class, Connection):
        where["socket_keepalive"] = True
    options: dict[str, Any] = {
        # Each exchange runs under a deadline that also covers connecting and queueing. A second
        # one here would cost a task for every send and not see those.
        "socket_timeout": None,
        "socket_connect_timeout": connect_timeout_s,
        "socket_read_size": 65536,
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
    return lambda: connection_class(**where, **options)


class deadline:  # noqa: N801 - used as `async with deadline(...)`, as `asyncio.timeout` is
    """
    Bound what is awaited inside.

    A loop that was blocked past the deadline would cancel a call whose answer has arrived, and
    three of those at once would open a breaker although the store is well. A class, because every
    request enters it and a generator costs three times as much.
    """

    __slots__ = ("_due", "_limit", "_loop", "_seconds", "_timer")

    def __init__(self, seconds: float) -> None:
        """
        A deadline that begins with the block.

        Args:
            seconds: > 0. What takes longer ends in a `TimeoutError`, late by at most `LOOP_LAG_S`
                of a loop that runs.
        """
        self._seconds = seconds
        self._limit = asyncio.timeout(None)

    async def __aenter__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._due = self._loop.time() + self._seconds
        await self._limit.__aenter__()
        self._timer = self._loop.call_at(self._due, self._expire)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        await self._limit.__aexit__(kind, error, trace)

    def _expire(self) -> None:
        if self._loop.time() - self._due > LOOP_LAG_S:
            self._timer = self._loop.call_later(LOOP_LAG_S, self._expire_now)
        else:
            self._expire_now()

    def _expire_now(self) -> None:
        self._limit.reschedule(self._loop.time())


class Connections:
    """
    Up to `limit` connections; the one used last is used next, so that the rest stay idle.

    A connection goes back only after all its replies were read. After anything else, a timeout
    or a cancellation above all, it is closed, so that no reply can reach a later caller.
    """

    def __init__(self, make: ConnectionFactory, *, limit: int) -> None:
        self._make = make
        self._idle: list[AbstractConnection] = []
        self._busy: set[AbstractConnection] = set()
        self._slots = asyncio.Semaphore(limit)

    def __repr__(self) -> str:
        return f"<Connections {len(self._busy)} busy, {len(self._idle)} idle>"

    async def exchange(self, commands: Sequence[Command]) -> list[Reply]:
        """
        Send commands in one go and read as many replies.

        A script the server does not know (flushed, failed over) is sent again in full.

        Raises:
            redis.exceptions.RedisError: No connection, or it broke. An error that the server
                replied with is not raised but stands in the list.
            OSError: The same.
        """
        replies = await self._exchange_once(commands)
        unknown = [
            index
            for index, reply in enumerate(replies)
            if isinstance(reply, ResponseError) and reply.status_code == "NOSCRIPT"
        ]
        if unknown:
            again = [BY_SHA[str(commands[index][1])].in_full(commands[index]) for index in unknown]
            for index, reply in zip(unknown, await self._exchange_once(again), strict=True):
                replies[index] = reply
        return replies

    async def _exchange_once(self, commands: Sequence[Command]) -> list[Reply]:
        async with self._slots:
            connection = self._idle.pop() if self._idle else self._make()
            self._busy.add(connection)
            is_clean = False
            try:
                if connection.is_connected and await connection.can_read():
                    # Nobody asked, so this is the end of the stream: the server closed it.
                    await connection.disconnect(nowait=True)
                # Packed in C; the connection's own way is Python and takes ten times as long.
                packed = b"".join([pack_command(command) for command in commands])  # type: ignore[arg-type]
                await connection.send_packed_command(packed, check_health=False)
                replies = [await _read_reply(connection) for _ in commands]
                is_clean = True
                return replies
            finally:
                self._busy.discard(connection)
                if not is_clean:
                    # Without waiting, so a second cancellation has no moment to cut it short.
                    await connection.disconnect(nowait=True)
                self._idle.append(connection)

    async def close(self) -> None:
        """Close all connections; calls in flight fail."""
        connections = [*self._idle, *self._busy]
        self._idle.clear()
        for connection in connections:
            await connection.disconnect()


async def _read_reply(connection: AbstractConnection) -> Reply:
    try:
        reply: Reply = await connection.read_response()
    except ResponseError as error:
        return error
    return reply
