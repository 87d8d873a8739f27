"""Which server to ask: a fixed one, one of a cluster's nodes, or the master that sentinels name."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, RedisError

from controlplane.config import StoreConfig
from controlplane.store.dialing import Dial, Reply, dialing, read_reply
from controlplane.store.urls import Address, parse_store_url, to_address

#: Nodes remembered from redirects, beside those of the URL; older ones are forgotten.
LEARNED_MAX: Final = 16


class Servers(Protocol):
    """
    The one server that is asked now, and how another one takes its place.

    Shared by all connections of a store, so that a change is found out once and not once for
    each connection.
    """

    @property
    def current(self) -> Address | None:
        """The server to ask, or None: it has to be found first."""

    async def find(self) -> Address:
        """
        The server to ask.

        Raises:
            redis.exceptions.RedisError: Nobody knows.
        """

    def dial(self, address: Address) -> AbstractConnection:
        """A connection to a server, not connected yet."""

    async def check(self, connection: AbstractConnection) -> None:
        """
        Make sure that a new connection leads to where it should.

        Raises:
            redis.exceptions.RedisError: It does not.
        """

    def moved(self, asked: Address, to: Address) -> None:
        """The server asked named another one. Does nothing if it is not the current one any more."""

    def lost(self, asked: Address) -> None:
        """The server asked does not serve. Does nothing if it is not the current one any more."""


def servers_of(url: str, *, config: StoreConfig, client_name: str) -> Servers:
    """
    Who stands behind a REDIS_URL; connects to nobody yet.

    Raises:
        ConfigError: The URL is not usable.
    """
    where = parse_store_url(url)
    timeout_s = config.slow_call_timeout_s
    dial = dialing(
        where.options, is_tls=where.is_tls, connect_timeout_s=timeout_s, client_name=client_name
    )
    if where.master is None:
        return SeedServers(dial, where.addresses)
    ask = dialing(
        where.sentinel_options,
        is_tls=where.is_tls,
        connect_timeout_s=timeout_s,
        client_name=client_name,
    )
    return SentinelServers(dial, ask, where.addresses, master=where.master)


class SeedServers:
    """
    The servers of a URL, tried in turn, and those a cluster's redirects name.

    A fleet's keys share a slot, so that one node of a cluster serves all of them; a redirect tells
    which. A node that is lost gives way to the next one known, which serves or redirects.
    """

    def __init__(self, dial: Dial, seeds: Sequence[Address]) -> None:
        """
        Begin with the first seed.

        Args:
            dial: How to connect.
            seeds: At least one.
        """
        self._dial = dial
        self._seeds = list(seeds)
        self._learned: list[Address] = []
        self._current = seeds[0]

    def __repr__(self) -> str:
        return f"<SeedServers {len(self._seeds)} seeds, {len(self._learned)} learned>"

    @property
    def current(self) -> Address:
        """The server to ask."""
        return self._current

    async def find(self) -> Address:
        """The server to ask."""
        return self._current

    def dial(self, address: Address) -> AbstractConnection:
        """A connection to a server, not connected yet."""
        return self._dial(address)

    async def check(self, connection: AbstractConnection) -> None:
        """Whoever answers is asked; a wrong one redirects."""

    def moved(self, asked: Address, to: Address) -> None:
        """Follow a redirect."""
        if asked != self._current:
            return
        self._current = to
        if to not in self._seeds and to not in self._learned:
            self._learned = [*self._learned, to][-LEARNED_MAX:]

    def lost(self, asked: Address) -> None:
        """Go on with the next server known."""
        if asked != self._current:
            return
        ring = [*self._seeds, *self._learned]
        place = ring.index(asked) if asked in ring else -1
        self._current = ring[(place + 1) % len(ring)]


class SentinelServers:
    """
    The master that sentinels name, asked for when there is none, and again after it was lost.

    A sentinel may be late, so a new connection's server is asked for its role as well.
    """

    def __init__(
        self, dial: Dial, dial_sentinel: Dial, sentinels: Sequence[Address], *, master: str
    ) -> None:
        """
        Know nothing yet.

        Args:
            dial: How to connect to servers.
            dial_sentinel: How to connect to sentinels.
            sentinels: At least one.
            master: What they call the master.
        """
        self._dial = dial
        self._dial_sentinel = dial_sentinel
        self._sentinels = list(sentinels)
        self._master = master
        self._current: Address | None = None
        self._asking = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<SentinelServers {len(self._sentinels)} sentinels of {self._master!r}>"

    @property
    def current(self) -> Address | None:
        """The master, if it is known."""
        return self._current

    async def find(self) -> Address:
        """
        The master; one caller asks and the others wait for the answer.

        Raises:
            redis.exceptions.RedisError: No sentinel that answers knows it.
        """
        async with self._asking:
            if self._current is None:
                self._current = await self._ask_sentinels()
            return self._current

    def dial(self, address: Address) -> AbstractConnection:
        """A connection to a server, not connected yet."""
        return self._dial(address)

    async def check(self, connection: AbstractConnection) -> None:
        """
        Make sure that a new connection leads to a master.

        Raises:
            redis.exceptions.RedisError: It does not.
        """
        await connection.send_command("ROLE", check_health=False)
        role = await read_reply(connection)
        if isinstance(role, RedisError):
            raise role
        if not isinstance(role, list) or not role or role[0] != b"master":
            raise ReadOnlyError("the server that the sentinels named is no master")

    def moved(self, asked: Address, to: Address) -> None:
        """Follow a redirect; sentinels and redirects do not come together."""
        if asked == self._current:
            self._current = to

    def lost(self, asked: Address) -> None:
        """Ask the sentinels again."""
        if asked == self._current:
            self._current = None

    async def _ask_sentinels(self) -> Address:
        for _ in range(len(self._sentinels)):
            address = None
            try:
                address = await self._ask_one(self._sentinels[0])
            except (RedisError, OSError):
                continue
            finally:
                if address is None:
                    # Also when the caller's time ran out: the next one begins with another.
                    self._sentinels.append(self._sentinels.pop(0))
            if address is not None:
                return address
        raise RedisConnectionError("no sentinel that answers knows the master")

    async def _ask_one(self, sentinel: Address) -> Address | None:
        connection = self._dial_sentinel(sentinel)
        try:
            await connection.send_command(
                "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._master, check_health=False
            )
            return _master_of(await read_reply(connection))
        finally:
            await connection.disconnect(nowait=True)


def _master_of(reply: Reply) -> Address | None:
    match reply:
        case [bytes() as host, bytes() as port]:
            return to_address(host.decode(errors="replace"), port.decode(errors="replace"))
        case _:
            return None
