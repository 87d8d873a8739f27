"""Processes of a measurement: started, asked, weighed, and ended by their ids."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

_START_S: Final = 20.0
_STOP_S: Final = 10.0
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class ChildFailed(RuntimeError):
    """A process did not answer; the message quotes the end of what it said."""


class Child:
    """
    A Python module running as a process of its own.

    Its standard input is a pipe from here: it ends when that closes, so none outlives us.
    """

    def __init__(
        self,
        name: str,
        *command: str,
        first_line: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **(environment or {})},
            text=True,
        )
        if first_line:
            self._write(first_line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """It has not ended."""
        return self._process.poll() is None

    def read(self, within_s: float = _START_S) -> Any:  # noqa: ANN401 - JSON
        """
        The next line it says, as JSON.

        Raises:
            ChildFailed: It said nothing in time, or ended.
        """
        stream = self._process.stdout
        assert stream is not None
        ready, _, _ = select.select([stream], [], [], within_s)
        line = stream.readline() if ready else ""
        if not line:
            how = f"status {self._process.poll()}" if ready else f"silent for {within_s:g} s"
            raise ChildFailed(f"{self.name}: {how}")
        return json.loads(line)

    def ask(self, question: object, within_s: float) -> Any:  # noqa: ANN401 - JSON
        """Say a line of JSON, and read one."""
        self._write(json.dumps(question))
        return self.read(within_s)

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()


def cores() -> tuple[int, int] | None:
    """A core for what is measured and one for the rest; None where there are not two."""
    allowed = sorted(os.sched_getaffinity(0))
    return (allowed[-1], allowed[0]) if len(allowed) > 1 else None


def pin(pid: int, core: int) -> None:
    """Keep a process, all its threads, on one core; threads it starts later stay there too."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {core})


def cpu_s(pid: int) -> float:
    """Seconds of processor time a process has used, all threads, user and system."""
    # The second field is the name in brackets and may hold blanks; count from behind it.
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def rss_bytes(pid: int) -> int:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * _PAGE_BYTES
