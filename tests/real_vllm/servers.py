"""One real vLLM server as a child process, and the fleets that drive two of them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, Any

import pytest
from fleets import Answer, get, parse_metrics, post, wait_for

from controlplane.config_server import ListedServer
from real_vllm.network import Site

MODEL = "tiny"
CONTEXT_TOKENS = 4096
#: 24 to 33 s on a quiet machine with two cores, 90 s under load.
START_S = 240.0
#: Ports behind that of its side channel: of its KV events, and of their past.
_EVENTS, _REPLAY = 100, 200
#: Layers, keys and values, heads, width, bytes of bfloat16.
DENSE_BYTES_PER_TOKEN = 4 * 2 * 2 * 64 * 2

_SILENT_LIBRARIES = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # Otherwise each engine takes the same core, and waits for its own threads.
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_HOST_IP": "127.0.0.1",
    "UCX_TLS": "tcp,self",
}


@cache
def vllm_python() -> str:
    """The interpreter of vLLM's own environment; skips the test where there is none."""
    default = Path(__file__).resolve().parents[2] / ".venv-vllm" / "bin" / "python"
    found = os.environ.get("PRFAAS_VLLM_PYTHON", str(default))
    if not Path(found).exists():
        pytest.skip("needs a real vLLM: make test-vllm installs one and runs this")
    return found


def make_models(directory: Path) -> None:
    """Write the tiny models."""
    script = Path(__file__).with_name("tiny_models.py")
    subprocess.run(
        [vllm_python(), str(script), str(directory)],
        check=True,
        timeout=300,
        env={**os.environ, **_SILENT_LIBRARIES, "PYTHONPATH": ""},
        capture_output=True,
    )


@dataclass
class VllmServer:
    """A server that can be killed and started again."""

    site: Site
    model: Path
    core: int
    port: int
    kv_port: int
    log: Path
    process: subprocess.Popen[bytes] | None = None
    _output: IO[bytes] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        """Base of its API."""
        return f"http://{self.site.host}:{self.port}"

    def listed(self) -> ListedServer:
        """As a fleet names it."""
        return ListedServer(
            url=self.url,
            kv_events_port=self.kv_port + _EVENTS,
            kv_replay_port=self.kv_port + _REPLAY,
        )

    def start(self) -> None:
        """Start it, without waiting."""
        events = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": f"tcp://*:{self.kv_port + _EVENTS}",
            "replay_endpoint": f"tcp://*:{self.kv_port + _REPLAY}",
        }
        transfer = {
            "kv_connector": "NixlConnector",
            "kv_role": "kv_both",
            "kv_buffer_device": "cpu",
            "kv_connector_extra_config": {"num_threads": 0},
        }
        self._output = self.log.open("ab")
        self.process = subprocess.Popen(
            [
                *self.site.inside,
                *("taskset", "-c", str(self.core), vllm_python()),
                *("-m", "vllm.entrypoints.openai.api_server", "--model", str(self.model)),
                *("--host", self.site.host, "--port", str(self.port)),
                *("--served-model-name", MODEL, "--max-model-len", str(CONTEXT_TOKENS)),
                *("--enforce-eager", "--num-gpu-blocks-override", "256"),
                *("--enable-prefix-caching", "--kv-events-config", json.dumps(events)),
                *("--enable-prompt-tokens-details", "--kv-transfer-config", json.dumps(transfer)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={
                **os.environ,
                **_SILENT_LIBRARIES,
                # The tests' own folder has the package's name.
                "PYTHONPATH": "",
                "UCX_NET_DEVICES": self.site.kv_device,
                "VLLM_NIXL_SIDE_CHANNEL_HOST": self.site.kv_host,
                "VLLM_NIXL_SIDE_CHANNEL_PORT": str(self.kv_port),
            },
        )

    def wait_ready(self) -> None:
        """Wait until it serves."""

        def serves() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            with contextlib.suppress(OSError):
                return get(self.url + "/health").status == 200
            time.sleep(0.5)
            return False

        wait_for(serves, START_S)

    def kill(self) -> None:
        """End it and all its processes at once."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)
            self.process = None
        if self._output is not None:
            self._output.close()

    def metric(self, name: str) -> float:
        """Sum of the samples of a metric whose name, and a part of its labels, begins so."""
        samples = parse_metrics(get(self.url + "/metrics").body.decode())
        name, _, label = name.partition("|")
        return sum(
            value
            for key, value in samples.items()
            if key.partition("{")[0] == name and label in key
        )

    def ask(self, path: str, **body: Any) -> Answer:
        """A request without any router."""
        return post(self.url + path, json.dumps({"model": MODEL, **body}).encode())


@contextlib.contextmanager
def two_servers(
    model: Path, sites: tuple[Site, Site], directory: Path
) -> Iterator[tuple[VllmServer, VllmServer]]:
    """East on core 0, west on core 1: their progress threads spin, each on its own."""
    cores = sorted(os.sched_getaffinity(0))
    east, west = (
        VllmServer(
            site=site,
            model=model,
            core=cores[number % len(cores)],
            port=18_101 + number,
            kv_port=15_600 + number,
            log=directory / f"vllm-{number}.log",
        )
        for number, site in enumerate(sites)
    )
    try:
        for server in (east, west):
            server.start()
        for server in (east, west):
            server.wait_ready()
        yield east, west
    finally:
        for server in (east, west):
            server.kill()
