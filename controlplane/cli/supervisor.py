"""Starts the processes of a fleet on one machine, follows their logs, and stops them all."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
from rich.console import Console

from controlplane.cli.children import Child, end, ended_how, follow, launch
from controlplane.cli.restarts import DEATHS_MAX, WINDOW_S
from controlplane.config import FleetConfig

#: Workers make their weights and calibrate within this, also on a busy laptop.
_READY_S: Final = 60.0
_POLL_S: Final = 0.1

#: Beyond the drain of the router, before SIGKILL.
_STOP_SLACK_S: Final = 5.0
#: Longer than the short lease of a prefill whose router has gone.
_WORKER_STOP_S: Final = 8.0

_COLOURS: Final = ("cyan", "magenta", "green", "yellow", "blue", "red")


class FleetFailed(Exception):
    """A process ended that should not have; says which."""


class Supervisor:
    """
    The processes of one fleet; those that die are started again.

    While the fleet starts, a death is the end: what cannot start would not start again either.
    """

    def __init__(
        self, fleet: FleetConfig, *, redis_url: str, console: Console, is_restarting: bool = True
    ) -> None:
        self._fleet = fleet
        self._redis_url = redis_url
        self._console = console
        self._is_restarting = is_restarting
        self._children: list[Child] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._stop = asyncio.Event()
        self._failure = ""
        self._is_ready = False

    @property
    def is_stopping(self) -> bool:
        """Somebody asked for the end."""
        return self._stop.is_set()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._asked_to_stop)
        try:
            for name, arguments in self._commands():
                await self._start(name, arguments)
        except BaseException:
            await self._stop_all()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stop_all()

    async def until_ready(self) -> None:
        """
        Wait until every router sees every worker of the fleet, or somebody asks for the end.

        Raises:
            FleetFailed: A process ended, or it took too long.
        """
        timeout = aiohttp.ClientTimeout(total=2.0)
        waiting = [f"http://{one.host}:{one.port}/ready" for one in self._fleet.router.each()]
        try:
            async with asyncio.timeout(_READY_S), aiohttp.ClientSession(timeout=timeout) as session:
                while waiting and not self._stop.is_set():
                    if await self._sees_all(session, waiting[-1]):
                        waiting.pop()
                        continue
                    self._check()
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._stop.wait(), _POLL_S)
        except TimeoutError:
            raise FleetFailed(f"the fleet was not ready within {_READY_S:g} s") from None
        self._is_ready = not waiting
        self._check()

    async def _sees_all(self, session: aiohttp.ClientSession, url: str) -> bool:
        """Whether a router sees every worker."""
        prefill = sum(site.prefill_workers for site in self._fleet.datacenters)
        decode = sum(site.decode_workers for site in self._fleet.datacenters)
        try:
            async with session.get(url) as response:
                said = await response.json()
        except (aiohttp.ClientError, TimeoutError):
            return False
        return (said.get("prefill_workers"), said.get("decode_workers")) == (prefill, decode)

    async def until_stopped(self) -> None:
        """
        Wait for the end.

        Raises:
            FleetFailed: A router ended by itself, and for good.
        """
        await self._stop.wait()
        self._check()

    # --- Inside -------------------------------------------------------------------------------

    def _commands(self) -> list[tuple[str, list[str]]]:
        routers = self._fleet.router.each()
        commands = [("router", ["router"])] if len(routers) == 1 else []
        for number, one in enumerate(routers if not commands else ()):
            name = f"router-{number}"
            ports = ["--port", str(one.port), "--admin-port", str(one.admin_port)]
            commands.append((name, ["router", *ports, "--name", name]))
        for site in self._fleet.datacenters:
            for role, count, servers in (
                ("prefill", site.prefill_workers, site.prefill_servers),
                ("decode", site.decode_workers, site.decode_servers),
            ):
                for number in range(count):
                    name = f"{role}-{number}"
                    arguments = ["--datacenter", site.name, "--role", role, "--name", name]
                    if servers:
                        arguments += servers[number].arguments()
                    commands.append((f"{site.name}/{name}", ["worker", *arguments]))
        return commands

    async def _start(self, name: str, arguments: list[str]) -> None:
        child = Child(
            name=name,
            arguments=tuple(arguments),
            colour=_COLOURS[len(self._children) % len(_COLOURS)],
            process=await self._launch(tuple(arguments)),
        )
        self._children.append(child)
        self._spawn(follow(child, self._console))
        self._spawn(self._watch(child))

    async def _launch(self, arguments: tuple[str, ...]) -> asyncio.subprocess.Process:
        return await launch(
            arguments,
            redis_url=self._redis_url,
            fleet_json=self._fleet.model_dump_json().encode(),
        )

    def _spawn(self, job: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(job)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watch(self, child: Child) -> None:
        """Start a child again whenever it dies, until the end or until it is given up."""
        while True:
            how = ended_how(await child.process.wait())
            if self._stop.is_set():
                return
            child.died()
            wait_s = child.deaths.wait_s if self._is_restarting else None
            if wait_s is None or not self._is_ready:
                self._give_up(child, how)
                return
            self._say(f"[bold red]{child.name} ended[/] ({how}); started again in {wait_s:g} s")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), wait_s)
                return
            child.is_born_again(await self._launch(child.arguments))
            self._spawn(follow(child, self._console))
            if self._stop.is_set():
                # The end came while it was being started, and did not see it.
                await end([child], _WORKER_STOP_S)
                return

    def _give_up(self, child: Child, how: str) -> None:
        often = len(child.deaths.recent_s) >= DEATHS_MAX
        why = f", {DEATHS_MAX} times within {WINDOW_S:g} s" if often else ""
        if child.is_router or not self._is_ready:
            self._failure = f"{child.name} ended ({how}{why}); its log is above"
            self._stop.set()
            return
        gone = "[bold red]it is given up[/]; " if often else ""
        self._say(f"[bold red]{child.name} ended[/] ({how}{why}); {gone}requests go on without it")

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)

    def _check(self) -> None:
        if self._failure:
            raise FleetFailed(self._failure)

    def _asked_to_stop(self) -> None:
        if self._stop.is_set():
            for child in self._children:
                child.signal(signal.SIGKILL)
        self._stop.set()

    async def _stop_all(self) -> None:
        """Routers first, so that requests in flight end while their workers are there."""
        self._stop.set()
        routers = [child for child in self._children if child.is_router]
        workers = [child for child in self._children if not child.is_router]
        await end(routers, self._fleet.limits.drain_s + _STOP_SLACK_S)
        await end(workers, _WORKER_STOP_S)
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=_STOP_SLACK_S)
