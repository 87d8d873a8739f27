"""
A process that holds the embedded server and lets it outlive nobody.

Run as a program of its own, `guard.py DIRECTORY SERVER ARGUMENT...`, with a pipe from the process
that needs the server as standard input. When that pipe ends, because it was closed or because its
owner is gone for whatever reason, the server is stopped and the directory removed. Only the
kernel has to work for that: a killed process runs no clean-up, but its pipes are closed.

Imports the standard library alone, so that it starts fast and in any layout.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Final, NoReturn

#: Seconds between SIGTERM and SIGKILL. The server has nothing to save.
TERMINATE_S: Final = 1.0
_POLL_S: Final = 0.01
_PR_SET_PDEATHSIG: Final = 1
_EXIT_NOT_STARTED: Final = 127


def main() -> int:
    """Hold a server; the exit status is 0 if it was stopped from outside, 1 if it stopped."""
    directory, *command = sys.argv[1:]
    # Ctrl-C at the terminal goes to everybody at once; whoever needs the server says when it ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda _number, _frame: None)
    try:
        server = _start(command)
        is_asked = _wait(server, wake_read)
        if is_asked:
            _stop(server)
        else:
            _tell_last_words(Path(directory, "server.log"))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return 0 if is_asked else 1


def _start(command: list[str]) -> int:
    guard = os.getpid()
    server = os.fork()
    if server == 0:
        _become(command, guard)
    return server


def _become(command: list[str], guard: int) -> NoReturn:
    try:
        signal.set_wakeup_fd(-1)
        if sys.platform == "linux":
            # Should the guard itself be killed, the kernel kills the server.
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == guard:
            os.execv(command[0], command)  # noqa: S606  no shell is wanted
    finally:
        # Reached if the guard is gone already or there is no such program.
        os._exit(_EXIT_NOT_STARTED)


def _wait(server: int, wake: int) -> bool:
    """Whether somebody asked for the end; False if the server ended by itself, and was reaped."""
    while True:
        ready, _, _ = select.select([sys.stdin.fileno(), wake], [], [])
        if wake in ready:
            numbers = os.read(wake, 4096)
            # The kernel sends SIGCHLD for a server that was stopped or continued, too.
            if signal.SIGCHLD in numbers and _is_gone(server):
                return False
            if signal.SIGTERM in numbers or signal.SIGHUP in numbers:
                return True
        elif not os.read(sys.stdin.fileno(), 4096):
            return True


def _tell_last_words(log: Path) -> None:
    """The end of the log, on standard error: it goes with the directory otherwise."""
    try:
        sys.stderr.write(log.read_text(encoding="utf-8", errors="replace")[-1000:])
    except OSError:
        sys.stderr.write("it wrote no log")


def _stop(server: int) -> None:
    give_up = time.monotonic() + TERMINATE_S
    os.kill(server, signal.SIGTERM)
    while time.monotonic() < give_up:
        if _is_gone(server):
            return
        time.sleep(_POLL_S)
    os.kill(server, signal.SIGKILL)
    os.waitpid(server, 0)


def _is_gone(server: int) -> bool:
    pid, _ = os.waitpid(server, os.WNOHANG)
    return pid == server


if __name__ == "__main__":
    os.chdir("/")
    sys.exit(main())
