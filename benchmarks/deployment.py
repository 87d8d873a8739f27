"""Everything one size of prompts is measured on: a store, workers, the bare proxy, a router."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import redis

from benchmarks.cells import Size, System
from benchmarks.children import Child, ChildFailed, pin
from benchmarks.fleet import WORKERS, bench_fleet
from controlplane.store.embedded import EmbeddedServer
from controlplane.store.keys import Keys

_READY_S: Final = 20.0
_POLL_S: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A running fleet and what stands beside it."""

    size: Size
    model: str
    redis_url: str
    #: Port that each system is reached at.
    ports: dict[System, int]
    #: Process whose CPU is counted; none for `direct`.
    pids: dict[System, int]
    redis_pid: int
    admin_port: int

    def records_written(self) -> int:
        """Decision records the store has ever taken."""
        with redis.Redis.from_url(self.redis_url) as client:
            key = Keys(bench_fleet(self.size).name).decisions
            if not client.exists(key):
                return 0
            return int(client.xinfo_stream(key)["entries-added"])

    def store_errors(self) -> int:
        """Store calls that the router says have failed."""
        _, text = _get(self.admin_port, "/metrics")
        lines = [
            line for line in text.splitlines() if line.startswith("prfaas_store_errors_total{")
        ]
        return sum(int(float(line.rpartition(" ")[2])) for line in lines)


@contextmanager
def deploy(size: Size, cores: tuple[int, int] | None = None) -> Iterator[Deployment]:
    """
    Start a fleet for one size, yield it when its router is ready, end it.

    Args:
        size: Of its prompts.
        cores: One for the router and the bare proxy, which never run at the same time, and one
            for store and workers; None to leave all to the scheduler.

    Raises:
        ChildFailed: A process did not come up.
    """
    with ExitStack() as stack:
        server = EmbeddedServer()
        server.start()
        stack.callback(server.stop)
        worker = stack.enter_context(Child("worker", "benchmarks.worker", size.name, server.url))
        workers_url = worker.read()["url"]
        bare = stack.enter_context(Child("bare", "benchmarks.bare", workers_url))
        bare_url = bare.read()["url"]
        port, admin_port = _free_ports(2)
        fleet = bench_fleet(size, port=port, admin_port=admin_port)
        router = stack.enter_context(
            Child(
                "router",
                *("controlplane.cli", "router", "--supervised"),
                first_line=fleet.model_dump_json(),
                environment={"REDIS_URL": server.url, "PRFAAS_LOG_FORMAT": "json"},
            )
        )
        _wait_until_ready(router, port)
        with redis.Redis.from_url(server.url) as client:
            redis_pid = int(client.info("server")["process_id"])
        if cores is not None:
            for pid in (router.pid, bare.pid):
                pin(pid, cores[0])
            for pid in (redis_pid, worker.pid):
                pin(pid, cores[1])
        yield Deployment(
            size=size,
            model=fleet.model.name,
            redis_url=server.url,
            ports={"direct": _port_of(workers_url), "bare": _port_of(bare_url), "prfaas": port},
            pids={"bare": bare.pid, "prfaas": router.pid},
            redis_pid=redis_pid,
            admin_port=admin_port,
        )


def _wait_until_ready(router: Child, port: int) -> None:
    """Until the router sees every worker."""
    prefill = sum(worker.role == "prefill" for worker in WORKERS)
    wanted = (prefill, len(WORKERS) - prefill)
    give_up_s = time.monotonic() + _READY_S
    while router.is_alive and time.monotonic() < give_up_s:
        with suppress(OSError, ValueError):
            said = json.loads(_get(port, "/ready")[1])
            if (said["prefill_workers"], said["decode_workers"]) == wanted:
                return
        time.sleep(_POLL_S)
    how = "is not ready" if router.is_alive else "ended; `prfaas router` alone says why"
    raise ChildFailed(f"router: {how}")


def _get(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5.0)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def _port_of(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None
    return port


def _free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago; taken together, so that they differ."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
