"""How the store asks Redis: under a deadline, through a breaker, with the project's own errors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from random import Random

from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from controlplane.config import StoreConfig
from controlplane.errors import StoreTimeout, StoreUnavailable
from controlplane.store.breaker import Breaker
from controlplane.store.connections import Connections, deadline
from controlplane.store.dialing import Reply
from controlplane.store.redirects import code_of
from controlplane.store.scripts import Command
from controlplane.store.servers import servers_of


class Calls:
    """Two sets of connections behind one breaker: for calls, and for reads that wait or are long."""

    def __init__(
        self,
        url: str,
        *,
        config: StoreConfig,
        client_name: str,
        clock: Callable[[], float],
        rng: Random,
    ) -> None:
        """
        Connect to nothing yet.

        Args:
            url: See `controlplane/store/urls.py`.
            config: Deadlines and bounds.
            client_name: Shown by `CLIENT LIST`.
            clock: Monotonic seconds, for the breaker.
            rng: Jitter of the breaker's probes.

        Raises:
            ConfigError: The URL is not usable.
        """
        self._servers = servers_of(url, config=config, client_name=client_name)
        limit, redirects_max = config.connections_max, config.redirects_max
        self._connections = Connections(self._servers, limit=limit, redirects_max=redirects_max)
        # Apart, because a read that waits or takes long holds its connection for as long.
        self._reading = Connections(self._servers, limit=limit, redirects_max=redirects_max)
        self._slow_s = config.slow_call_timeout_s
        self._calm_s = config.reconnect_calm_s
        self._calm_timer: asyncio.TimerHandle | None = None
        self._is_closed = False
        self.breaker = Breaker(
            failures_max=config.breaker_failures,
            probe_s=config.breaker_probe_s,
            clock=clock,
            rng=rng,
        )

    def __repr__(self) -> str:
        return f"<Calls {self.breaker!r} calling {self._connections!r} reading {self._reading!r}>"

    async def ask(
        self, what: str, commands: Sequence[Command], *, timeout_s: float | None = None
    ) -> list[Reply]:
        """
        One round trip.

        Args:
            what: Name of the operation, for messages.
            commands: At least one.
            timeout_s: Seconds for all of it, connecting included; None for a slow call's.

        Returns:
            A reply for each command; an error where a key has a wrong type.

        Raises:
            StoreTimeout: No answer in time.
            StoreUnavailable: No connection, closed, the breaker is open, or the server refused:
                out of memory, read-only, no permission, ...
        """
        timeout_s = self._slow_s if timeout_s is None else timeout_s
        replies = await self._exchange(what, self._connections, commands, timeout_s)
        return [reply if _is_wrong_type(reply) else _accepted(what, reply) for reply in replies]

    async def read(self, what: str, commands: Sequence[Command]) -> list[Reply]:
        """As `ask`, for much at once: on a connection that no other call waits for."""
        replies = await self._exchange(what, self._reading, commands, self._slow_s)
        return [reply if _is_wrong_type(reply) else _accepted(what, reply) for reply in replies]

    async def ask_one(
        self, what: str, command: Command, *, timeout_s: float | None = None
    ) -> Reply:
        """
        One command that must not fail for its key's type either.

        Raises:
            StoreTimeout: No answer in time.
            StoreUnavailable: As `ask`.
        """
        (reply,) = await self.ask(what, (command,), timeout_s=timeout_s)
        return _accepted(what, reply)

    async def ask_all(
        self, what: str, commands: Sequence[Command], *, timeout_s: float | None = None
    ) -> list[Reply]:
        """As `ask_one`, for many commands in one round trip; all are tried."""
        replies = await self.ask(what, commands, timeout_s=timeout_s)
        return [_accepted(what, reply) for reply in replies]

    async def wait(self, what: str, command: Command, *, wait_s: float) -> Reply:
        """
        One command that may wait at the server for `wait_s` seconds.

        Raises:
            StoreTimeout: No answer within `wait_s` and a slow call's time.
            StoreUnavailable: As `ask`.
        """
        timeout_s = wait_s + self._slow_s
        (reply,) = await self._exchange(what, self._reading, (command,), timeout_s)
        return reply if _is_wrong_type(reply) else _accepted(what, reply)

    async def close(self) -> None:
        """Close all connections; calls in flight fail."""
        self._is_closed = True
        self._widen()
        await self._connections.close()
        await self._reading.close()

    async def _exchange(
        self, what: str, connections: Connections, commands: Sequence[Command], timeout_s: float
    ) -> list[Reply]:
        """One round trip under the deadline and the breaker."""
        if self._is_closed:
            raise StoreUnavailable(f"{what}: this store was closed")
        if not self.breaker.allows():
            raise StoreUnavailable(
                f"{what}: the store did not answer before; it is asked again in "
                f"{self.breaker.probe_in_s:.1f} s",
                retry_after_s=self.breaker.probe_in_s,
            )
        try:
            async with deadline(timeout_s):
                replies = await connections.exchange(commands)
        except (TimeoutError, RedisTimeoutError) as error:
            self._failed()
            raise StoreTimeout(
                f"{what}: the store did not answer within {timeout_s * 1000:.0f} ms"
            ) from error
        except ResponseError as error:
            # Every server asked sends us elsewhere: the store is away, whoever answers.
            self._failed()
            raise StoreUnavailable(f"{what}: no server serves ({code_of(error)})") from error
        except (RedisError, OSError) as error:
            self._failed()
            # The cause names hosts; the message goes to clients and must not.
            raise StoreUnavailable(
                f"{what}: no connection to the store ({type(error).__name__})"
            ) from error
        self._succeeded()
        return replies

    def _failed(self) -> None:
        """Count a failure; a server that failed often enough gives way to another, if there is."""
        self.breaker.failed()
        server = self._servers.current
        if self.breaker.is_open and server is not None:
            self._servers.lost(server)

    def _succeeded(self) -> None:
        """Count an answer; after an outage begin slowly, for all replicas come back at once."""
        is_back = self.breaker.is_open
        self.breaker.succeeded()
        if is_back and not self._is_closed:
            self._widen()
            for connections in (self._connections, self._reading):
                connections.narrow()
            loop = asyncio.get_running_loop()
            self._calm_timer = loop.call_later(self._calm_s, self._widen)

    def _widen(self) -> None:
        if self._calm_timer is not None:
            self._calm_timer.cancel()
            self._calm_timer = None
        for connections in (self._connections, self._reading):
            connections.widen()


def _is_wrong_type(reply: Reply) -> bool:
    return isinstance(reply, ResponseError) and str(reply).startswith("WRONGTYPE")


def _accepted(what: str, reply: Reply) -> Reply:
    if isinstance(reply, ResponseError):
        raise StoreUnavailable(f"{what}: the store refused ({code_of(reply)})") from reply
    return reply
