"""Routers that are replaced one after another under load: no request lost, no stream broken."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import pytest
from fleets import MODEL, Fleet, a_fleet, free_port, get, running, wait_for

from controlplane.config import FleetConfig, LimitsConfig, ModelConfig
from controlplane.store.embedded import EmbeddedServer

ROUNDS = int(os.environ.get("PRFAAS_DRAIN_ROUNDS", "3"))
CLIENTS = 4

#: Greedy, so that everybody gets the same answer.
SHORT: dict[str, Any] = {
    "model": MODEL,
    "prompt": "once upon a time",
    "max_tokens": 24,
    "temperature": 0,
    "stream": True,
}
#: Some seconds.
ENDLESS = {**SHORT, "max_tokens": 1900}


@dataclass
class Router:
    """One router of a fleet whose workers run elsewhere; it can be replaced on its ports."""

    path: Path
    redis_url: str
    port: int
    admin_port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        arguments = ["--port", str(self.port), "--admin-port", str(self.admin_port)]
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "controlplane.cli", "router", "--fleet", str(self.path)),
                *arguments,
            ],
            env={**os.environ, "REDIS_URL": self.redis_url},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def is_ready(self) -> bool:
        try:
            return get(f"{self.url}/ready").status == 200
        except OSError:
            return False

    def leave(self) -> None:
        """SIGTERM, without waiting."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)


@dataclass
class History:
    """What clients saw."""

    outcomes: Counter[str] = field(default_factory=Counter)
    texts: set[str] = field(default_factory=set)
    trouble: list[str] = field(default_factory=list)
    codes: Counter[str] = field(default_factory=Counter)


class Client(threading.Thread):
    """
    Streams one answer after another, from one router and then the other.

    A refusal, and a connection that ends before a byte of an answer, are tried at the other
    router, as any client with a load balancer does; a stream that has begun has to end.
    """

    def __init__(self, ports: tuple[int, int], history: History, number: int) -> None:
        super().__init__(daemon=True)
        self._ports = ports
        self._history = history
        self._number = number
        self._open: dict[int, HTTPConnection] = {}
        self.is_over = threading.Event()

    def run(self) -> None:
        turn = self._number
        while not self.is_over.is_set():
            turn += 1
            for attempt in range(40):
                outcome = self._ask(self._ports[(turn + attempt) % 2])
                self._history.outcomes[outcome] += 1
                if outcome not in {"refused", "unreached"}:
                    break
                time.sleep(0.02 * attempt)
            else:
                self._history.outcomes["lost"] += 1
        for connection in self._open.values():
            connection.close()

    def _ask(self, port: int) -> str:
        connection = self._open.setdefault(port, HTTPConnection("127.0.0.1", port, timeout=30))
        headers = {"content-type": "application/json"}
        try:
            connection.request("POST", "/v1/completions", json.dumps(SHORT), headers)
            answer = connection.getresponse()
        except (OSError, HTTPException):
            self._open.pop(port).close()
            return "unreached"
        try:
            data = answer.read()
        except (OSError, HTTPException) as error:
            self._history.trouble.append(repr(error))
            return "broken"
        finally:
            if answer.will_close:
                self._open.pop(port).close()
        if answer.status != 200:
            self._history.codes[json.loads(data)["error"]["code"]] += 1
            assert answer.headers["retry-after"], data
            return "refused" if answer.status in {429, 503} else f"status {answer.status}"
        if not data.endswith(b"data: [DONE]\n\n"):
            self._history.trouble.append(repr(data[-300:]))
            return "broken"
        self._history.texts.add(text_of(data))
        return "served"


def text_of(data: bytes) -> str:
    """The text of a stream."""
    events = [json.loads(part[6:]) for part in data.split(b"\n\n") if part.startswith(b"data: {")]
    return "".join(event["choices"][0]["text"] for event in events if event["choices"])


@contextmanager
def a_fleet_of_two_routers(
    directory: Path, **limits: Any
) -> Iterator[tuple[Fleet, Router, Router]]:
    """One fleet under `prfaas up`, and two further routers beside its own."""
    server = EmbeddedServer()
    server.start()
    with ExitStack() as stack:
        stack.callback(server.stop)
        config = a_config(**limits)
        fleet = stack.enter_context(running(config, directory, redis_url=server.url))
        routers = [
            Router(directory / "fleet.toml", server.url, free_port(), free_port()) for _ in range(2)
        ]
        for router in routers:
            router.start()
            stack.callback(router.kill)
        wait_for(lambda: all(router.is_ready() for router in routers), 30)
        yield fleet, routers[0], routers[1]


def a_config(**limits: Any) -> FleetConfig:
    small = ModelConfig(layers=4, context_tokens_max=2048)
    return a_fleet(
        east_prefill=1,
        west_prefill=1,
        west_decode=2,
        model=small,
        limits=LimitsConfig(**limits),
    )


@pytest.mark.timeout(180)
def test_routers_are_replaced_one_after_another_and_nobody_notices(tmp_path: Path) -> None:
    """Each on the ports of its predecessor, as soon as that has ended."""
    with a_fleet_of_two_routers(tmp_path) as (_, first, second):
        history = History()
        clients = [Client((first.port, second.port), history, n) for n in range(CLIENTS)]
        for client in clients:
            client.start()
        took_s = []
        try:
            for _ in range(ROUNDS):
                for router in (first, second):
                    time.sleep(0.5)
                    assert router.process is not None
                    began_s = time.monotonic()
                    router.leave()
                    assert router.process.wait(60) == 0
                    took_s.append(time.monotonic() - began_s)
                    router.start()
                    wait_for(router.is_ready, 30)
        finally:
            for client in clients:
                client.is_over.set()
            for client in clients:
                client.join(60)

        print(
            f"{2 * ROUNDS} replacements: {dict(history.outcomes)}, refusals {dict(history.codes)}, "
            f"longest end {max(took_s):.1f} s"
        )
        assert history.outcomes["lost"] == history.outcomes["broken"] == 0, history.trouble[:3]
        assert set(history.outcomes) <= {"served", "refused", "unreached", "lost", "broken"}
        assert history.outcomes["served"] > 20 * ROUNDS
        assert len(history.texts) == 1, "the same question, greedily, has one answer"
        assert set(history.codes) <= {"draining"}, "a router that has just come knows the workers"
        assert max(took_s) <= 35


def test_a_router_that_leaves_says_so_and_ends_what_it_has_begun(tmp_path: Path) -> None:
    """Readiness, refusals with a time, `connection: close` on each answer, idle ones closed."""
    with a_fleet_of_two_routers(tmp_path) as (_, router, _):
        assert router.process is not None
        idle = HTTPConnection("127.0.0.1", router.port, timeout=10)
        idle.request("GET", "/health")
        idle.getresponse().read()
        streaming = HTTPConnection("127.0.0.1", router.port, timeout=60)
        streaming.request("POST", "/v1/completions", json.dumps(ENDLESS), {})
        answer = streaming.getresponse()
        assert answer.readline().startswith(b"data: ")

        router.leave()
        wait_for(lambda: get(f"{router.url}/ready").status == 503, 15)

        ready = get(f"{router.url}/ready")
        assert ready.headers["connection"] == "close"
        refused = HTTPConnection("127.0.0.1", router.port, timeout=10)
        refused.request("POST", "/v1/completions", json.dumps(ENDLESS), {})
        refusal = refused.getresponse()
        assert refusal.status == 503
        assert refusal.headers["connection"] == "close"
        assert 1 <= int(refusal.headers["retry-after"]) <= 2
        assert json.loads(refusal.read())["error"]["code"] == "draining"
        assert idle.sock is not None
        assert idle.sock.recv(1) == b"", "the idle connection is closed"
        assert answer.read().endswith(b"data: [DONE]\n\n")
        assert router.process.wait(30) == 0
        for connection in (idle, streaming, refused):
            connection.close()


def test_a_router_whose_streams_do_not_end_leaves_in_time(tmp_path: Path) -> None:
    """Five seconds after its time to drain, with what it could not finish cut, and never done."""
    with a_fleet_of_two_routers(tmp_path, drain_s=0.5) as (fleet, router, _):
        assert router.process is not None
        streaming = HTTPConnection("127.0.0.1", router.port, timeout=30)
        streaming.request("POST", "/v1/completions", json.dumps(ENDLESS), {})
        answer = streaming.getresponse()
        assert answer.readline().startswith(b"data: ")
        frozen = ("west/decode-0", "west/decode-1")
        for name in frozen:
            fleet.kill(name, signal.SIGSTOP)

        began_s = time.monotonic()
        router.leave()
        try:
            status = router.process.wait(40)
            took_s = time.monotonic() - began_s
            rest = answer.read()
        except (OSError, HTTPException) as error:
            rest = getattr(error, "partial", b"")
        finally:
            streaming.close()
            for name in frozen:
                fleet.kill(name, signal.SIGCONT)

        print(f"with a stream that does not end: gone after {took_s:.1f} s")
        assert status == 0
        # Its stream would go on until the 30 s of a worker that says nothing, or for ever.
        assert took_s <= 20
        assert not rest.endswith(b"data: [DONE]\n\n")
