"""Events that change the fleet as a whole: its version, its store, a datacenter's workers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import RedisError

from chaos.plant import HOST, SIGNALS, Plant
from chaos.scenario import Event
from chaos.versions import Version

_POLL_S: Final = 0.01
_BACK_S: Final = 20.0
#: The time in which a herd is counted.
_HERD_S: Final = 1.0
_SECOND_HALF: Final = ("redis-router-*[13579]", "redis-far-1", "redis-home-1")


class FleetActions:
    """Each method performs one kind of event and tells what it did."""

    def __init__(self, plant: Plant, tell: Callable[..., None]) -> None:
        """
        Args:
            plant: What is changed.
            tell: Called with the event, and fields to write down; `do` replaces its name.
        """
        self._plant = plant
        self._tell = tell

    # --- Versions -----------------------------------------------------------------------------

    async def upgrade(self, event: Event) -> None:
        """
        Replace all workers, then all routers, by another version: one after another.

        Each gets SIGTERM, and the next one its own when the fleet is whole again.
        """
        for name in (*self._plant.workers, *self._plant.routers):
            await self._replace(event, [name], event.options["to"])

    async def mix(self, event: Event) -> None:
        """Replace some processes at once, and put them back when the event is over."""
        names = event.options["names"]
        await self._replace(event, names, "old")
        await asyncio.sleep(event.for_s)
        await self._replace(event, names, "new")

    async def _replace(self, event: Event, names: Sequence[str], version: Version) -> None:
        children = [self._plant.children[name] for name in names]
        for child in children:
            await self._plant.set_version(child.name, version)
        deaths = [child.deaths for child in children]
        hits = [child.signal(SIGNALS["term"]) for child in children]
        for child, hit in zip(children, hits, strict=True):
            # While it leaves it is neither: nobody counts what it serves then.
            self._tell(event, do="version", target=child.name, version="")
            self._tell(event, do="term", target=child.name, hit=hit)
        for child, before, hit in zip(children, deaths, hits, strict=True):
            if hit:
                await child.until_dead(before)
            self._tell(event, do="version", target=child.name, version=version)
        with suppress(TimeoutError):
            await self._plant.until_whole(_BACK_S)

    # --- Redis --------------------------------------------------------------------------------

    async def split(self, event: Event) -> None:
        """
        Two primaries with the same past, half of all routers and workers at each; then one again.

        What the second one has learned alone is lost when it ends, as after any failover.
        """
        plant = self._plant
        await self._say(plant.second_redis_port, "REPLICAOF", "NO", "ONE")
        await self._lead(plant.second_redis_port)
        self._tell(event)
        await asyncio.sleep(event.for_s)
        key = f"prfaas:{{{plant.fleet.name}}}:workers"
        ports = (plant.redis_port, plant.second_redis_port)
        roles = [(await self._say(port, "ROLE"))[0].decode() for port in ports]
        known = [await self._say(port, "ZCARD", key) for port in ports]
        self._tell(event, do="joined", roles=roles, known=known)
        await self._lead(plant.redis_port)
        await self._say(plant.second_redis_port, "REPLICAOF", HOST, str(plant.redis_port))

    async def _lead(self, port: int) -> None:
        for link in _SECOND_HALF:
            await self._plant.proxy.ask({"op": "lead", "link": link, "target": [HOST, port]})

    async def _say(self, port: int, *words: str) -> Any:
        async with Redis(host=HOST, port=port, socket_timeout=2.0) as redis:
            return await redis.execute_command(*words)

    async def herd(self, event: Event) -> None:
        """Redis dies and comes back; who connects in the first second after that?"""
        child = self._plant.children["redis"]
        child.restart_s = event.for_s
        self._tell(event, do="kill", target="redis", hit=child.signal(SIGNALS["kill"]))
        await asyncio.sleep(event.for_s)
        async with asyncio.timeout(_BACK_S):
            while not await self._is_back():  # noqa: ASYNC110 - asked over a socket
                await asyncio.sleep(_POLL_S)
        before, began_s = await self._connects(), time.monotonic()
        await asyncio.sleep(_HERD_S)
        after = await self._connects()
        made = {name: after[name] - count for name, count in before.items()}
        self._tell(event, connects=made, seconds=time.monotonic() - began_s)

    async def _is_back(self) -> bool:
        with suppress(RedisError, OSError):
            return bool(await self._say(self._plant.redis_port, "PING"))
        return False

    async def _connects(self) -> dict[str, int]:
        links = (await self._plant.proxy.ask({"op": "stats"}))["links"]
        return {
            name: counts["connections"]
            for name, counts in links.items()
            if name.startswith("redis-router-")
        }

    # --- A datacenter's workers ---------------------------------------------------------------

    async def kill_all(self, event: Event) -> None:
        """SIGKILL of all workers whose names begin so; none comes back before the event is over."""
        victims = [
            child
            for name, child in self._plant.children.items()
            if name.startswith(event.target) and "/" in name
        ]
        pauses = [child.restart_s for child in victims]
        for child in victims:
            child.restart_s = event.for_s
            self._tell(event, do="kill", target=child.name, hit=child.signal(SIGNALS["kill"]))
        await asyncio.sleep(event.for_s)
        for child, pause_s in zip(victims, pauses, strict=True):
            child.restart_s = pause_s
