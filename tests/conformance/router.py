"""A router, started by a command line that says where ports and servers go."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fleets import Answer, free_port, post, wait_for

from conformance.servers import MODEL, Servers

#: Names the router's command line in the environment.
VARIABLE: Final = "PRFAAS_CONFORMANCE_ROUTER"
#: Of a router that waits for hundreds of servers.
_START_S: Final = 120.0
_TAIL: Final = 4000


def ours() -> str:
    """The command line of this repository's router, with its agents."""
    return f"{shlex.quote(sys.executable)} -m conformance.ours --port {{port}} --tokenizer {{tokenizer}} --prefill {{prefill}} --decode {{decode}}"


def command_of(template: str, *, port: int, tokenizer: Path, servers: Servers) -> list[str]:
    """
    The words of a command line.

    A word with `{prefill}` or `{decode}` is repeated for each server, with the option before it, if there
    is one; `{port}`, `{tokenizer}` (a directory) and `{model}` stand for themselves, `{free_port}` for a port
    that nobody uses.
    """
    found: list[str] = []
    for word in shlex.split(template):
        for role, fakes in (("{prefill}", servers.prefill), ("{decode}", servers.decode)):
            if role in word:
                option = [found.pop()] if found and found[-1].startswith("-") else []
                for fake in fakes:
                    found += [*option, word.replace(role, fake.url)]
                break
        else:
            found.append(
                word.replace("{port}", str(port))
                .replace("{free_port}", str(free_port()))
                .replace("{tokenizer}", str(tokenizer))
                .replace("{model}", MODEL)
            )
    return found


@dataclass
class Router:
    """A router that answers."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def complete(self, prompt: str, **fields: Any) -> Answer:
        """A completion."""
        return self.ask("/v1/completions", prompt=prompt, **fields)

    def chat(self, text: str, **fields: Any) -> Answer:
        """A chat of one message."""
        return self.ask("/v1/chat/completions", messages=message(text), **fields)

    def ask(self, path: str, **fields: Any) -> Answer:
        """Any request of a model."""
        return post(self.url + path, json.dumps(body_of(**fields)).encode())

    def resident_bytes(self) -> int:
        """Memory of the router's processes."""
        total = 0
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError, ProcessLookupError):
                if entry.name.isdecimal() and os.getsid(int(entry.name)) == self.process.pid:
                    pages = int((entry / "statm").read_text().split()[1])
                    total += pages * os.sysconf("SC_PAGE_SIZE")
        return total


def message(text: str) -> list[dict[str, str]]:
    """One message of a user."""
    return [{"role": "user", "content": text}]


def body_of(**fields: Any) -> dict[str, Any]:
    """The body of a request, greedy and short."""
    return {"model": MODEL, "temperature": 0, "max_tokens": 8, **fields}


@contextlib.contextmanager
def a_router(servers: Servers, tokenizer: Path, directory: Path) -> Iterator[Router]:
    """Start the router, and wait until it answers."""
    port = free_port()
    template = os.environ.get(VARIABLE) or ours()
    command = command_of(template, port=port, tokenizer=tokenizer, servers=servers)
    log = directory / "router.log"
    tests = Path(__file__).parents[1]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)]),
            },
        )
    router = Router(f"http://127.0.0.1:{port}", process, log)
    try:
        _until_it_answers(router)
        yield router
    finally:
        _end(process)


def _until_it_answers(router: Router) -> None:
    def answers() -> bool:
        assert router.process.poll() is None, f"it ended: {_tail(router.log)}"
        with contextlib.suppress(OSError):
            return router.complete("hello").status == 200
        time.sleep(0.2)
        return False

    try:
        wait_for(answers, _START_S)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{_tail(router.log)}") from error


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-_TAIL:]


def _end(process: subprocess.Popen[bytes]) -> None:
    """All processes of its session: a router may have started others."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(15)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(15)
