"""Real processes: started, signalled, started again after a death, and ended by their ids."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

_STOP_S: Final = 40.0
_POLL_S: Final = 0.01
TESTS: Final = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """How a process is started."""

    name: str
    argv: tuple[str, ...]
    #: Written to its standard input, which then stays open: it ends when we do.
    first_line: bytes = b""
    environment: Mapping[str, str] = field(default_factory=dict)


class Child:
    """A process that is started again when it dies, as a supervisor does."""

    def __init__(
        self, command: Command, log: Path, tell: Callable[..., None], *, restart_s: float
    ) -> None:
        """
        A process that is not started.

        Args:
            command: How to start it.
            log: Its standard error, of all its lives.
            tell: Called with an event's name and fields.
            restart_s: Pause between a death and the next life.
        """
        self.command = command
        self.log = log
        #: Seconds between a death and the next life; an event may set another.
        self.restart_s = restart_s
        self.deaths = 0
        self._tell = tell
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None
        self._unwanted = asyncio.Event()

    @property
    def name(self) -> str:
        """What events call it."""
        return self.command.name

    @property
    def pid(self) -> int | None:
        """Of its present life; None between two."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def start(self) -> None:
        """Begin its first life."""
        await self._spawn()
        self._watch = asyncio.get_running_loop().create_task(self._keep(), name=self.name)

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal; false when it is between two lives."""
        if self._process is None or self._process.returncode is not None:
            return False
        with suppress(ProcessLookupError):
            self._process.send_signal(number)
            return True
        return False

    async def until_dead(self, deaths: int) -> None:
        """
        Wait until it has died more often than so many times.

        Raises:
            RuntimeError: It has not, much later than anything it drains may take.
        """
        try:
            async with asyncio.timeout(_STOP_S):
                while self.deaths <= deaths:  # noqa: ASYNC110 - a process has no event
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as error:
            raise RuntimeError(f"{self.name} has not ended within {_STOP_S:g} s") from error

    async def stop(self) -> None:
        """End it for good: SIGCONT and SIGTERM, then SIGKILL."""
        self._unwanted.set()
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        if self._watch is None:
            return
        _, late = await asyncio.wait((self._watch,), timeout=_STOP_S)
        if late:
            self.signal(signal.SIGKILL)
            await asyncio.wait((self._watch,))
        self._watch.result()

    async def _spawn(self) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "REDIS_URL"}
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self.command.argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=log,
                env={**environment, **self.command.environment},
                start_new_session=True,
            )
        assert self._process.stdin is not None
        if self.command.first_line:
            self._process.stdin.write(self.command.first_line)
        self._tell("started", target=self.name, pid=self._process.pid)

    async def _keep(self) -> None:
        while True:
            assert self._process is not None
            status = await self._process.wait()
            if self._process.stdin is not None:
                self._process.stdin.close()
            if self._unwanted.is_set():
                return
            self.deaths += 1
            self._tell("ended", target=self.name, status=status)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._unwanted.wait(), self.restart_s)
                return
            await self._spawn()


class Helper:
    """A Python module of this suite as a process that answers lines of JSON."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._argv = (sys.executable, "-m", module, *arguments)
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def start(self) -> None:
        """Start it."""
        path = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
        self._process = await asyncio.create_subprocess_exec(
            *self._argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
            limit=1 << 20,
        )

    async def ask(self, question: Mapping[str, Any], *, within_s: float = 10.0) -> dict[str, Any]:
        """
        Say one line, read one.

        Raises:
            RuntimeError: It answered with an error, or ended.
        """
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        async with self._turn, asyncio.timeout(within_s):
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            await self._process.stdin.drain()
            line = await self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "it ended"}
        if "error" in answer:
            raise RuntimeError(f"{self._argv[2]}: {answer['error']}")
        return answer

    async def stop(self) -> None:
        """Close its input and wait for its end."""
        if self._process is None or self._process.stdin is None:
            return
        self._process.stdin.close()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), 5.0)
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


class Events:
    """What happened and when, as lines of JSON; times are of the clock all processes share."""

    def __init__(self) -> None:
        self._path: Path | None = None

    def write_to(self, path: Path | None) -> None:
        """Write what happens from now on there."""
        self._path = path

    def tell(self, event: str, **fields: Any) -> None:
        """Write one event."""
        if self._path is None:
            return
        line = {"at_s": time.monotonic(), "wall_s": time.time(), "event": event, **fields}
        with self._path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")
