"""Starts the processes of a fleet on one machine, follows their logs, and stops them all."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
from rich.console import Console
from rich.text import Text

from controlplane.config import FleetConfig

#: Workers make their weights and calibrate within this, also on a busy laptop.
_READY_S: Final = 60.0
_POLL_S: Final = 0.1

#: Beyond the drain of the router, before SIGKILL.
_STOP_SLACK_S: Final = 5.0
_WORKER_STOP_S: Final = 5.0

_LOG_LINE_BYTES_MAX: Final = 1 << 16
_COLOURS: Final = ("cyan", "magenta", "green", "yellow", "blue", "red")


class FleetFailed(Exception):
    """A process ended that should not have; says which."""


@dataclass(frozen=True, slots=True)
class _Child:
    name: str
    process: asyncio.subprocess.Process


class Supervisor:
    """
    The processes of one fleet.

    Each child is in a session of its own, so that Ctrl-C at the terminal reaches the supervisor
    alone and the stop is orderly. Each child's standard input is a pipe from here: it carries the
    fleet, and closes when the supervisor ends, however it ends.
    """

    def __init__(self, fleet: FleetConfig, *, redis_url: str, console: Console) -> None:
        self._fleet = fleet
        self._redis_url = redis_url
        self._console = console
        self._children: list[_Child] = []
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
        Wait until the router sees every worker of the fleet, or somebody asks for the end.

        Raises:
            FleetFailed: A process ended, or it took too long.
        """
        prefill = sum(site.prefill_workers for site in self._fleet.datacenters)
        decode = sum(site.decode_workers for site in self._fleet.datacenters)
        config = self._fleet.router
        url = f"http://{config.host}:{config.port}/ready"
        timeout = aiohttp.ClientTimeout(total=2.0)
        try:
            async with asyncio.timeout(_READY_S), aiohttp.ClientSession(timeout=timeout) as session:
                while not self._stop.is_set():
                    with suppress(aiohttp.ClientError, TimeoutError):
                        async with session.get(url) as response:
                            said = await response.json()
                        seen = (said.get("prefill_workers"), said.get("decode_workers"))
                        if seen == (prefill, decode):
                            self._is_ready = True
                            return
                    self._check()
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._stop.wait(), _POLL_S)
        except TimeoutError:
            raise FleetFailed(f"the fleet was not ready within {_READY_S:g} s") from None
        self._check()

    async def until_stopped(self) -> None:
        """
        Wait for the end.

        Raises:
            FleetFailed: The router ended by itself.
        """
        await self._stop.wait()
        self._check()

    # --- Inside -------------------------------------------------------------------------------

    def _commands(self) -> list[tuple[str, list[str]]]:
        commands = [("router", ["router"])]
        for site in self._fleet.datacenters:
            for role, count in (("prefill", site.prefill_workers), ("decode", site.decode_workers)):
                for number in range(count):
                    name = f"{role}-{number}"
                    arguments = ["--datacenter", site.name, "--role", role, "--name", name]
                    commands.append((f"{site.name}/{name}", ["worker", *arguments]))
        return commands

    async def _start(self, name: str, arguments: list[str]) -> None:
        environment = {
            "PRFAAS_LOG_FORMAT": "console",
            **os.environ,
            "REDIS_URL": self._redis_url,
            # One core a worker: a matrix product that spreads over all cores starves the others.
            "OPENBLAS_NUM_THREADS": "1",
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "controlplane.cli",
            *arguments,
            "--supervised",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
            start_new_session=True,
            limit=_LOG_LINE_BYTES_MAX,
        )
        assert process.stdin is not None
        process.stdin.write(self._fleet.model_dump_json().encode() + b"\n")
        child = _Child(name, process)
        self._children.append(child)
        colour = _COLOURS[len(self._children) % len(_COLOURS)]
        self._spawn(self._follow(child, colour))
        self._spawn(self._watch(child))

    def _spawn(self, job: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(job)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _follow(self, child: _Child, colour: str) -> None:
        """Print a child's log, line by line, with its name."""
        assert child.process.stderr is not None
        while True:
            try:
                line = await child.process.stderr.readline()
            except ValueError:
                continue  # a line beyond the limit was dropped
            if not line:
                return
            text = Text(f"{child.name:>16} ", style=colour)
            text.append_text(Text.from_ansi(line.decode(errors="replace").rstrip()))
            self._console.print(text, soft_wrap=True, highlight=False)

    async def _watch(self, child: _Child) -> None:
        status = await child.process.wait()
        if self._stop.is_set():
            return
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        if child.name == "router" or not self._is_ready:
            self._failure = f"{child.name} ended ({how}); its log is above"
            self._stop.set()
            return
        self._console.print(
            f"[bold red]{child.name} ended[/] ({how}); requests go on without it", highlight=False
        )

    def _check(self) -> None:
        if self._failure:
            raise FleetFailed(self._failure)

    def _asked_to_stop(self) -> None:
        if self._stop.is_set():
            for child in self._children:
                _signal(child, signal.SIGKILL)
        self._stop.set()

    async def _stop_all(self) -> None:
        """Router first, so that requests in flight end while their workers are there."""
        self._stop.set()
        routers = [child for child in self._children if child.name == "router"]
        workers = [child for child in self._children if child.name != "router"]
        await _end(routers, self._fleet.limits.drain_s + _STOP_SLACK_S)
        await _end(workers, _WORKER_STOP_S)
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=_STOP_SLACK_S)


async def _end(children: list[_Child], within_s: float) -> None:
    """SIGTERM, wait, SIGKILL."""
    for child in children:
        _signal(child, signal.SIGTERM)
    waits = [asyncio.ensure_future(child.process.wait()) for child in children]
    if not waits:
        return
    _, late = await asyncio.wait(waits, timeout=within_s)
    if late:
        for child in children:
            _signal(child, signal.SIGKILL)
        await asyncio.wait(late)


def _signal(child: _Child, number: signal.Signals) -> None:
    if child.process.returncode is None:
        with suppress(ProcessLookupError):
            child.process.send_signal(number)
