"""Performs events on a plant, each at its time, and writes down what was done when."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, Final

import aiohttp
from redis.exceptions import RedisError

from chaos.fleet_actions import FleetActions
from chaos.garbage import spoil_keys
from chaos.plant import SIGNALS, Plant, short_session
from chaos.scenario import Event

_SKEWED: Final = Path(__file__).parent / "skewed"
_WATCH_S: Final = 15.0
_POLL_S: Final = 0.02


class Injector:
    """Does events; `undo_all` ends what still lasts."""

    def __init__(self, plant: Plant, random: Random) -> None:
        self._plant = plant
        self._random = random
        self._actions: dict[str, Callable[[Event], Coroutine[Any, Any, None]]] = {
            "kill": self._kill,
            "term": self._term,
            "stop": self._stop,
            "flush": self._flush,
            "garbage": self._garbage,
            "fault": self._fault,
            "cut": self._cut,
            "rolling": self._rolling,
            "stats": self._stats,
            "failover": self._failover,
            "strangers": self._strangers,
            "skew": self._skew,
        }
        fleet = FleetActions(plant, self._tell)
        for action in (fleet.upgrade, fleet.mix, fleet.split, fleet.herd, fleet.kill_all):
            self._actions[action.__name__] = action

    async def run(self, events: Sequence[Event], *, start_s: float) -> None:
        """
        Do all events at their times and wait for their ends.

        Args:
            events: In any order.
            start_s: When the load begins, by the clock all processes share.
        """
        async with asyncio.TaskGroup() as group:
            for event in sorted(events, key=lambda one: one.at_s):
                await asyncio.sleep(max(0.0, start_s + event.at_s - time.monotonic()))
                group.create_task(self._actions[event.do](event))

    async def undo_all(self) -> None:
        """Wake what is stopped and heal all links."""
        for child in self._plant.children.values():
            child.signal(signal.SIGCONT)
        await self._plant.proxy.ask({"op": "heal", "link": "*"})

    # --- Processes ----------------------------------------------------------------------------

    async def _kill(self, event: Event) -> None:
        child = self._plant.children[event.target]
        if event.for_s:
            child.restart_s = event.for_s
        self._tell(event, hit=child.signal(SIGNALS["kill"]))

    async def _term(self, event: Event) -> None:
        child = self._plant.children[event.target]
        self._tell(event, hit=child.signal(SIGNALS["term"]))

    async def _stop(self, event: Event) -> None:
        child = self._plant.children[event.target]
        self._tell(event, hit=child.signal(SIGNALS["stop"]))
        await asyncio.sleep(event.for_s)
        child.signal(SIGNALS["cont"])
        self._tell(event, do="cont")

    async def _rolling(self, event: Event) -> None:
        """SIGTERM of each router in turn; the next when the one before is ready again."""
        for _ in range(event.options.get("rounds", 1)):
            for name in self._plant.routers:
                child = self._plant.children[name]
                deaths, began_s = child.deaths, time.monotonic()
                hit = child.signal(SIGNALS["term"])
                self._tell(event, do="term", target=name, hit=hit)
                if hit:
                    await child.until_dead(deaths)
                self._tell(event, do="left", target=name, after_s=time.monotonic() - began_s)
                with suppress(TimeoutError):
                    await self._plant.until_whole(_WATCH_S)

    async def _strangers(self, event: Event) -> None:
        """Workers of other weights come into the same fleet, one of each role, and leave."""
        fleet = self._plant.fleet
        other = fleet.model_copy(update={"model": fleet.model.model_copy(update={"seed": 99})})
        # By name the first of all in one datacenter, and the last in the other.
        names = (("east", "decode", "a-stranger"), ("west", "prefill", "z-stranger"))
        for site, role, name in names:
            await self._plant.start_worker(site, role, name, fleet=other)  # type: ignore[arg-type]
        self._tell(event)
        await asyncio.sleep(event.for_s)
        for site, _, name in names:
            await self._plant.dismiss_worker(f"{site}/{name}")
        self._tell(event, do="gone")

    async def _skew(self, event: Event) -> None:
        """A process dies and comes back with a clock that is wrong; in the end with a right one."""
        child = self._plant.children[event.target]
        right = child.command
        environment = {
            **right.environment,
            "CHAOS_CLOCK_OFFSET_S": str(event.options["offset_s"]),
            "PYTHONPATH": os.pathsep.join((str(_SKEWED), right.environment["PYTHONPATH"])),
        }
        child.command = replace(right, environment=environment)
        self._tell(event, do="kill", hit=child.signal(SIGNALS["kill"]))
        await asyncio.sleep(event.for_s)
        child.command = right
        self._tell(event, do="kill", hit=child.signal(SIGNALS["kill"]))

    # --- Redis --------------------------------------------------------------------------------

    async def _flush(self, event: Event) -> None:
        """FLUSHALL, and how long until all workers are registered and in every view again."""
        async with self._plant.redis() as redis:
            await redis.flushall()
        began_s = time.monotonic()
        self._tell(event)
        after_s = _WATCH_S
        with suppress(TimeoutError, RedisError):
            async with asyncio.timeout(_WATCH_S):
                await self._until_registered()
                await self._plant.until_whole(_WATCH_S)
                after_s = time.monotonic() - began_s
        self._tell(event, do="rebuilt", after_s=after_s)

    async def _until_registered(self) -> None:
        key, expected = f"prfaas:{{{self._plant.fleet.name}}}:workers", len(self._plant.workers)
        async with self._plant.redis() as redis:
            while await redis.zcard(key) < expected:  # noqa: ASYNC110 - asked over a socket
                await asyncio.sleep(_POLL_S)

    async def _failover(self, event: Event) -> None:
        """The master dies with what its replica has not heard of; sentinels promote the replica."""
        guarded = self._plant.guarded
        assert guarded is not None, "this needs a plant with sentinels"
        await asyncio.to_thread(guarded.cut_replication)
        self._tell(event, do="replication_cut")
        await asyncio.sleep(event.for_s)
        await asyncio.to_thread(guarded.master.kill)
        began_s = time.monotonic()
        self._tell(event)
        async with asyncio.timeout(_WATCH_S):
            while guarded.replica.role() != "master":  # noqa: ASYNC110 - asked over a socket
                await asyncio.sleep(_POLL_S)
        self._tell(event, do="promoted", after_s=time.monotonic() - began_s)

    async def _garbage(self, event: Event) -> None:
        async with self._plant.redis() as redis:
            spoilt = await spoil_keys(redis, self._plant.fleet.name, self._random)
        self._tell(event, keys=spoilt)

    # --- Links --------------------------------------------------------------------------------

    async def _fault(self, event: Event) -> None:
        direction = event.options.get("direction", "both")
        faults = {key: value for key, value in event.options.items() if key != "direction"}
        await self._plant.proxy.ask(
            {"op": "fault", "link": event.target, "direction": direction, "faults": faults}
        )
        self._tell(event, faults=faults, direction=direction)
        await asyncio.sleep(event.for_s)
        await self._plant.proxy.ask({"op": "heal", "link": event.target})
        self._tell(event, do="heal")

    async def _cut(self, event: Event) -> None:
        await self._plant.proxy.ask({"op": "cut", "link": event.target})
        self._tell(event)

    async def _stats(self, event: Event) -> None:
        """What went through the proxy, and what the routers count, until now."""
        answer = await self._plant.proxy.ask({"op": "stats"})
        self._tell(event, links=answer["links"])

    def _tell(self, event: Event, *, do: str = "", **fields: Any) -> None:
        fields = {"target": event.target, "for_s": event.for_s, **fields}
        self._plant.events.tell(do or event.do, **fields)


async def scrape(url: str) -> str:
    """Metrics of a process as text; empty when it does not answer."""
    with suppress(aiohttp.ClientError, TimeoutError):
        async with short_session() as session, session.get(f"{url}/metrics") as answer:
            return await answer.text()
    return ""
