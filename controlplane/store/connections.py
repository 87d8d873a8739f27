"""Connections to Redis: a bounded stack of them, and a deadline that a busy loop does not fool."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Final

from hiredis import pack_command
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import AskError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from controlplane.store.dialing import Reply, read_reply
from controlplane.store.redirects import Asked, Moved, redirect_of
from controlplane.store.scripts import BY_SHA, Command
from controlplane.store.servers import Servers
from controlplane.store.urls import Address

#: Before a command that a node may answer although its slot is still on its way there.
_ASKING: Final[Command] = ("ASKING",)

#: A deadline that fires this much late finds a loop that was busy with something else; the answer
#: may lie in the socket, so the loop gets as long again to pick it up.
LOOP_LAG_S: Final = 0.005


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


class NotReached(RedisConnectionError):
    """A server could not be connected to: nothing was sent, so another one may be asked."""

    def __init__(self, reason: RedisError | OSError) -> None:
        super().__init__(str(reason))
        #: What went wrong.
        self.reason = reason


def _is_over(connection: AbstractConnection) -> bool:
    """
    Whether a connection was reset while nobody used it: by a proxy before the server, say.

    `can_read` sees a polite end alone, and on a loop of uvloop a write to what was reset is no
    `OSError` but a `RuntimeError`, as if the program were wrong.
    """
    writer = connection._writer  # noqa: SLF001 - there is no other way to its transport
    return writer is not None and writer.transport.is_closing()


class Connections:
    """
    Up to `limit` connections; the one used last is used next, so that the rest stay idle.

    A connection goes back only after all its replies were read. After anything else, a timeout
    or a cancellation above all, it is closed, so that no reply can reach a later caller.
    """

    def __init__(self, servers: Servers, *, limit: int, redirects_max: int) -> None:
        """
        Connect to nobody yet.

        Args:
            servers: Whom to ask.
            limit: Connections at the same time, >= 1.
            redirects_max: Further servers that one exchange may be sent to.
        """
        self._servers = servers
        self._redirects_max = redirects_max
        self._idle: list[tuple[Address, AbstractConnection]] = []
        self._busy: set[AbstractConnection] = set()
        self._slots = asyncio.Semaphore(limit)
        #: One exchange at a time, see `narrow`.
        self._is_narrow = False
        self._freed = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Connections {len(self._busy)} busy, {len(self._idle)} idle>"

    def narrow(self) -> None:
        """From now on one exchange at a time, and so one connection."""
        self._is_narrow = True

    def widen(self) -> None:
        """As many as there may be."""
        self._is_narrow = False
        self._freed.set()

    async def exchange(self, commands: Sequence[Command]) -> list[Reply]:
        """
        Send commands in one go and read as many replies.

        A script the server does not know (flushed, failed over) is sent again in full. A server
        that names another one, is no master or cannot be connected to gives way to the next, and
        all commands are sent there: each may be done twice. What was sent and not answered is
        never sent again.

        Raises:
            redis.exceptions.RedisError: No connection, or it broke; or no server serves. An
                error that a command was answered with is not raised but stands in the list.
            OSError: The same.
        """
        asked: list[Address] = []
        failure: RedisError | OSError | None = None
        while len(asked) <= self._redirects_max:
            server = self._servers.current or await self._servers.find()
            if server in asked:
                # The next call looks for another one.
                self._servers.lost(server)
                break
            asked.append(server)
            try:
                replies = await self._ask(server, commands)
            except NotReached as error:
                failure = error.reason
                self._servers.lost(server)
                continue
            except (RedisError, OSError):
                self._servers.lost(server)
                raise
            errors = [reply for reply in replies if isinstance(reply, ResponseError)]
            match redirect_of(errors, asked=server) if errors else None:
                case None:
                    return replies
                case Asked(at):
                    return await self._ask_aside(at, commands, replies)
                case Moved(to):
                    self._servers.moved(server, to)
                case "not_master":
                    self._servers.lost(server)
                case "down":
                    self._servers.lost(server)
                    raise errors[0]
            failure = errors[0]
        raise failure or RedisConnectionError("no server")

    async def _ask_aside(
        self, server: Address, commands: Sequence[Command], replies: list[Reply]
    ) -> list[Reply]:
        """Replies with those that a slot on its way sends to its new server asked for there."""
        aside = [index for index, reply in enumerate(replies) if isinstance(reply, AskError)]
        wanted = [command for index in aside for command in (_ASKING, commands[index])]
        found = (await self._ask(server, wanted, is_aside=True))[1::2]
        for index, reply in zip(aside, found, strict=True):
            replies[index] = reply
        return replies

    async def _ask(
        self, server: Address, commands: Sequence[Command], *, is_aside: bool = False
    ) -> list[Reply]:
        replies = await self._exchange_once(server, commands)
        unknown = [
            index
            for index, reply in enumerate(replies)
            if isinstance(reply, ResponseError) and reply.status_code == "NOSCRIPT"
        ]
        if unknown:
            again = [BY_SHA[str(commands[index][1])].in_full(commands[index]) for index in unknown]
            if is_aside:
                again = [command for each in again for command in (_ASKING, each)]
            told = await self._exchange_once(server, again)
            for index, reply in zip(unknown, told[1::2] if is_aside else told, strict=True):
                replies[index] = reply
        return replies

    async def _exchange_once(self, server: Address, commands: Sequence[Command]) -> list[Reply]:
        async with self._slots:
            while self._is_narrow and self._busy:
                self._freed.clear()
                await self._freed.wait()
            connection, stale = self._take(server)
            self._busy.add(connection)
            is_clean = False
            try:
                for other in stale:
                    await other.disconnect(nowait=True)
                if connection.is_connected and (
                    await connection.can_read() or _is_over(connection)
                ):
                    # Nobody asked, so this is the end of the stream: the server closed it.
                    await connection.disconnect(nowait=True)
                if not connection.is_connected:
                    await self._connect(connection)
                # Packed in C; the connection's own way is Python and takes ten times as long.
                packed = b"".join([pack_command(command) for command in commands])  # type: ignore[arg-type]
                await connection.send_packed_command(packed, check_health=False)
                replies = [await read_reply(connection) for _ in commands]
                is_clean = True
                return replies
            finally:
                self._busy.discard(connection)
                self._freed.set()
                if not is_clean:
                    # Without waiting, so a second cancellation has no moment to cut it short.
                    await connection.disconnect(nowait=True)
                self._idle.append((server, connection))

    def _take(self, server: Address) -> tuple[AbstractConnection, list[AbstractConnection]]:
        """
        The connection to this server that was used last, or a new one.

        Returns:
            It, and those to other servers that were found on the way: to be closed.
        """
        stale: list[AbstractConnection] = []
        while self._idle:
            known, connection = self._idle.pop()
            if known == server:
                return connection, stale
            stale.append(connection)
        return self._servers.dial(server), stale

    async def _connect(self, connection: AbstractConnection) -> None:
        try:
            await connection.connect_check_health(check_health=False)
            await self._servers.check(connection)
        except (RedisError, OSError) as error:
            raise NotReached(error) from error

    async def close(self) -> None:
        """Close all connections; calls in flight fail."""
        connections = [*(connection for _, connection in self._idle), *self._busy]
        self._idle.clear()
        for connection in connections:
            await connection.disconnect()
