"""A real fleet for integration tests: `prfaas up` with its processes, logs, metrics and records."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from controlplane.config import DatacenterConfig, FleetConfig, LinkConfig, ModelConfig, RouterConfig

MODEL = "prfaas-reference"
READY_S = 60.0
T = TypeVar("T")


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def a_fleet(
    *,
    east_prefill: int = 2,
    west_prefill: int = 1,
    west_decode: int = 2,
    threshold_tokens: int = 512,
    policy: str = "prfaas",
    mbit_per_s: float = 200,
    delay_ms: float = 20,
    **sections: Any,
) -> FleetConfig:
    """The default fleet on free ports, with changes."""
    # The planner runs, but what is tested does not move with the speed of this machine, nor with
    # what waits at its workers.
    pinned = {
        "threshold_tokens": threshold_tokens,
        "follows_plan": False,
        "spills_home": False,
        "spills_away": False,
    }
    parameters: dict[str, Any] = pinned if policy == "prfaas" else {}
    return FleetConfig(
        name="test",
        router=RouterConfig(
            datacenter="west",
            port=free_port(),
            admin_port=free_port(),
            policy=policy,
            policy_parameters=parameters,
        ),
        model=sections.pop("model", ModelConfig()),
        datacenters=(
            DatacenterConfig(name="east", prefill_workers=east_prefill),
            DatacenterConfig(name="west", prefill_workers=west_prefill, decode_workers=west_decode),
        ),
        links=(
            LinkConfig(
                from_datacenter="east",
                to_datacenter="west",
                capacity_mbit_per_s=mbit_per_s,
                emulated_delay_ms=delay_ms,
            ),
        ),
        **sections,
    )


@dataclass(frozen=True)
class Answer:
    """An HTTP answer, whole."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class Fleet:
    """A running `prfaas up`."""

    def __init__(
        self,
        config: FleetConfig,
        directory: Path,
        *,
        is_restarting: bool = False,
        redis_url: str = "",
    ) -> None:
        self.config = config
        self.url = f"http://127.0.0.1:{config.router.port}"
        self.admin_url = f"http://127.0.0.1:{config.router.admin_port}"
        path = directory / "fleet.toml"
        path.write_text(to_toml(config), encoding="utf-8")
        environment = {key: value for key, value in os.environ.items() if key != "REDIS_URL"}
        if redis_url:
            environment["REDIS_URL"] = redis_url
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "controlplane.cli", "up", "--fleet", str(path)),
                *(() if is_restarting else ("--no-restart",)),
            ],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=environment,
        )
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    def wait_ready(self) -> None:
        """Wait until the endpoint says that all workers are there."""

        def says_up() -> bool:
            assert self.process.poll() is None, "\n".join(self.log)
            return any("prfaas is up" in line for line in self.log)

        wait_for(says_up, READY_S)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop it; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(30)
        self._reader.join(5)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return status

    # --- Processes ----------------------------------------------------------------------------

    def pids(self) -> dict[str, int]:
        """Process ids by name: `router`, `redis`, `east/prefill-0` ..."""
        names = {}
        for pid, parent, command in processes():
            if parent != self.process.pid:
                continue
            found = re.search(r"--datacenter (\S+) --role \S+ --name (\S+)", command)
            if found:
                names[f"{found[1]}/{found[2]}"] = pid
            elif "controlplane.cli router" in command:
                own = re.search(r"--name (\S+)", command)
                names[own[1] if own else "router"] = pid
        guards = [pid for pid, parent, _ in processes() if parent == self.process.pid]
        for pid, parent, command in processes():
            if parent in guards and ("valkey-server" in command or "redis-server" in command):
                names["redis"] = pid
        return names

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to one process of the fleet."""
        os.kill(self.pids()[name], number)

    def worker_url(self, name: str) -> str:
        """Base URL of a worker, as it logged it."""
        for line in reversed(self.log):
            # Its process also logs the registration of the time that it lends.
            if "worker.started" in line and re.search(rf"worker={re.escape(name)}(\s|$)", line):
                return re.search(r"url=(\S+)", line)[1]  # type: ignore[index]
        raise AssertionError(f"{name} has not logged its start")

    def metrics(self, name: str) -> dict[str, float]:
        """Samples of a worker's metrics."""
        return parse_metrics(get(self.worker_url(name) + "/metrics").body.decode())

    # --- Requests -----------------------------------------------------------------------------

    def complete(self, prompt: object, **fields: Any) -> Answer:
        """A completion, not streamed, greedy unless said otherwise."""
        body = {"model": MODEL, "prompt": prompt, "temperature": 0, "max_tokens": 8, **fields}
        return post(self.url + "/v1/completions", json.dumps(body).encode())

    def record(self, answer: Answer) -> dict[str, Any]:
        """The decision record of an answer."""
        found = get(f"{self.admin_url}/admin/v1/decisions/{answer.headers['x-prfaas-decision']}")
        assert found.status == 200, found
        return record_of(found.json())

    def state(self) -> Any:
        """The admin API's picture."""
        return get(self.admin_url + "/admin/v1/state").json()

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line.decode(errors="replace").rstrip())


def record_of(document: dict[str, Any]) -> dict[str, Any]:
    """The record in an answer of the admin API."""
    record: dict[str, Any] = document.get("record", document)
    return record


@contextlib.contextmanager
def running(
    config: FleetConfig, directory: Path, *, is_restarting: bool = False, redis_url: str = ""
) -> Iterator[Fleet]:
    """A fleet for the length of a block; what a test kills stays dead unless it says otherwise."""
    fleet = Fleet(config, directory, is_restarting=is_restarting, redis_url=redis_url)
    try:
        fleet.wait_ready()
        yield fleet
    finally:
        fleet.stop()


def wait_for(condition: Callable[[], T | None], within_s: float) -> T:
    """Poll until a condition holds; its value."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError(f"not within {within_s} s: {condition}")


def processes() -> list[tuple[int, int, str]]:
    """Process id, parent id and command of everything that runs."""
    listing = subprocess.run(
        ["ps", "-A", "-ww", "-o", "pid=,ppid=,command="], capture_output=True, check=True
    ).stdout.decode(errors="replace")
    rows = (line.split(None, 2) for line in listing.splitlines())
    return [(int(row[0]), int(row[1]), row[2]) for row in rows if len(row) == 3]


def get(url: str) -> Answer:
    """GET, whatever the status."""
    return _open(urllib.request.Request(url))


def post(url: str, body: bytes, headers: dict[str, str] | None = None) -> Answer:
    """POST JSON, whatever the status."""
    return _open(
        urllib.request.Request(
            url, data=body, headers={"content-type": "application/json", **(headers or {})}
        )
    )


def _open(request: urllib.request.Request) -> Answer:
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return Answer(response.status, lower(response.headers), response.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, lower(error.headers), error.read())


def lower(headers: Any) -> dict[str, str]:
    """Headers by lower-case name."""
    return {name.lower(): value for name, value in headers.items()}


def parse_metrics(text: str) -> dict[str, float]:
    """Samples by name and labels, as they are written."""
    samples = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            samples[name] = float(value)
    return samples


def to_toml(config: FleetConfig) -> str:
    """A fleet as the file `--fleet` reads."""
    document = config.model_dump(mode="json", exclude_none=True)
    lines = [f'name = "{document.pop("name")}"']
    tables = {key: value for key, value in document.items() if isinstance(value, dict)}
    arrays = {key: value for key, value in document.items() if isinstance(value, list)}
    for key, table in tables.items():
        lines += [f"[{key}]", *(_toml_item(name, value) for name, value in table.items())]
    for key, array in arrays.items():
        for table in array:
            lines += [f"[[{key}]]", *(_toml_item(name, value) for name, value in table.items())]
    return "\n".join(lines) + "\n"


def _toml_item(name: str, value: Any) -> str:
    return f"{name} = {_toml_value(value)}"


def _toml_value(value: Any) -> str:
    if isinstance(value, dict):
        inner = ", ".join(_toml_item(key, item) for key, item in value.items())
        return f"{{ {inner} }}"
    if isinstance(value, list):
        return f"[{', '.join(_toml_value(item) for item in value)}]"
    return json.dumps(value)
