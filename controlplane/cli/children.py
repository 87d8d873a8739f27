"""One process of a fleet: how it is started, followed and ended."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from rich.console import Console
from rich.text import Text

from controlplane.cli.restarts import Deaths

_LOG_LINE_BYTES_MAX: Final = 1 << 16


@dataclass(slots=True, kw_only=True)
class Child:
    """A process that is started again when it dies: the command stays, the process changes."""

    name: str
    #: Of `prfaas`.
    arguments: tuple[str, ...]
    #: Of its name in the log.
    colour: str
    process: asyncio.subprocess.Process
    born_s: float = field(default_factory=time.monotonic)
    deaths: Deaths = field(default_factory=Deaths)

    @property
    def is_router(self) -> bool:
        """Clients come in here."""
        return self.arguments[0] == "router"

    def died(self) -> None:
        """Count a death."""
        now_s = time.monotonic()
        self.deaths = self.deaths.and_one(now_s, lived_s=now_s - self.born_s)

    def is_born_again(self, process: asyncio.subprocess.Process) -> None:
        """Another life."""
        self.process = process
        self.born_s = time.monotonic()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it lives."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.send_signal(number)


async def launch(
    arguments: tuple[str, ...], *, redis_url: str, fleet_json: bytes
) -> asyncio.subprocess.Process:
    """
    Start a `prfaas` command.

    Each child is in a session of its own, so that Ctrl-C at the terminal reaches the supervisor
    alone and the stop is orderly. Its standard input is a pipe from here: it carries the fleet,
    and closes when the supervisor ends, however it ends.
    """
    environment = {
        "PRFAAS_LOG_FORMAT": "console",
        **os.environ,
        "REDIS_URL": redis_url,
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
    process.stdin.write(fleet_json + b"\n")
    return process


async def follow(child: Child, console: Console) -> None:
    """Print a child's log, line by line, with its name, until this life of it ends."""
    log = child.process.stderr
    assert log is not None
    while True:
        try:
            line = await log.readline()
        except ValueError:
            continue  # a line beyond the limit was dropped
        if not line:
            return
        text = Text(f"{child.name:>16} ", style=child.colour)
        text.append_text(Text.from_ansi(line.decode(errors="replace").rstrip()))
        console.print(text, soft_wrap=True, highlight=False)


async def end(children: list[Child], within_s: float) -> None:
    """SIGTERM, wait, SIGKILL."""
    for child in children:
        child.signal(signal.SIGTERM)
    waits = [asyncio.ensure_future(child.process.wait()) for child in children]
    if not waits:
        return
    _, late = await asyncio.wait(waits, timeout=within_s)
    if late:
        for child in children:
            child.signal(signal.SIGKILL)
        await asyncio.wait(late)


def ended_how(status: int) -> str:
    """An exit status in words."""
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
