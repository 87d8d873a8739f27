"""Worker processes that are stopped, die or hang under a router's eyes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

import chaos_worker
import pytest
from builders import a_decode_job, a_prefill_job, an_output

from controlplane.config import LimitsConfig, StoreConfig
from controlplane.domain.byte_tokenizer import encode_text
from controlplane.domain.tokens import TokenIds
from controlplane.errors import WorkerLost
from controlplane.router.http_workers import HttpDecodeStream, HttpWorkerClient
from controlplane.store.embedded import EmbeddedServer
from controlplane.store.redis_store import RedisStore
from controlplane.wire import FrameKind, KvLocation, Sampling, WorkerBeat

TESTS = Path(__file__).parents[1]
#: A prompt whose greedy output is long, and one with a marker in its middle.
PROMPT = encode_text("Count the waves, one by one, until the tide has turned. ")

#: An answer to `PROMPT` of 3,285 tokens, some seconds.
SEED = 38
_numbers = count()

FLEET = """
name = "{name}"
router = {{ datacenter = "west" }}
datacenters = [{{ name = "west", prefill_workers = 1, decode_workers = 1 }}]
heartbeat = {{ interval_s = 0.2, timeout_s = 0.5, ttl_s = 2.2 }}
worker = {{ drain_s = {drain_s}, engine_stall_s = 1.0 }}
"""


class Workers:
    """A prefill and a decode process over one Redis, and a router's client."""

    def __init__(self, redis_url: str, folder: Path, *, drain_s: float) -> None:
        self.name = f"workers-{next(_numbers)}"
        self.redis_url = redis_url
        self.fleet = folder / "fleet.toml"
        self.fleet.write_text(FLEET.format(name=self.name, drain_s=drain_s))
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.client = HttpWorkerClient(LimitsConfig())
        self.beats: dict[str, WorkerBeat] = {}

    def start(self, role: str) -> None:
        """A process of this role."""
        command = [sys.executable, "-m", "chaos_worker", "worker"]
        options = ["--datacenter", "west", "--role", role, "--name", role]
        self.processes[role] = subprocess.Popen(
            [*command, "--fleet", str(self.fleet), *options],
            cwd=TESTS,
            env={**os.environ, "REDIS_URL": self.redis_url},
            stdout=subprocess.DEVNULL,
        )

    async def known(self) -> None:
        """Wait for both first heartbeats."""
        store = await RedisStore.connect(self.redis_url, fleet=self.name, config=StoreConfig())
        async with asyncio.timeout(30):
            while len(self.beats) < 2:
                await asyncio.sleep(0.1)
                beats = (await store.snapshot()).beats
                self.beats = {beat.role: beat for beat in beats}
        await store.close()

    def stop(self) -> None:
        """Whatever still lives is killed."""
        for process in self.processes.values():
            process.kill()
            process.wait(10)

    async def prefill(self, prompt: TokenIds) -> KvLocation:
        """A prefill job."""
        beat = self.beats["prefill"]
        job = a_prefill_job(
            incarnation=beat.incarnation, fingerprint=beat.fingerprint, destination="west"
        )
        return await self.client.prefill(beat.url, job, prompt)

    async def decode(self, prompt: TokenIds, output_tokens_max: int) -> HttpDecodeStream:
        """A stream over both processes."""
        location = await self.prefill(prompt)
        job = a_decode_job(
            incarnation=self.beats["decode"].incarnation,
            location=location,
            sampling=Sampling(temperature=0.5, seed=SEED, output_tokens_max=output_tokens_max),
            output=an_output(is_stream=True),
            wants_tokens=True,
        )
        return await self.client.decode(self.beats["decode"].url, job, prompt)

    async def status(self, role: str, within_s: float) -> tuple[int, float]:
        """Exit status, and seconds until it was there."""
        began_s = time.monotonic()
        status = await asyncio.to_thread(self.processes[role].wait, within_s)
        return status, time.monotonic() - began_s


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    """A store of these tests alone."""
    server = EmbeddedServer()
    server.start()
    yield server.url
    server.stop()


@pytest.fixture
def drain_s() -> float:
    """Tests that need another one override it."""
    return 0.3


@pytest.fixture
async def workers(redis_url: str, tmp_path: Path, drain_s: float) -> AsyncIterator[Workers]:
    """Two running processes."""
    workers = Workers(redis_url, tmp_path, drain_s=drain_s)
    try:
        for role in ("prefill", "decode"):
            workers.start(role)
        await workers.known()
        yield workers
    finally:
        workers.stop()
        await workers.client.close()


async def rest_of(stream: HttpDecodeStream) -> list[tuple[FrameKind, bytes]]:
    """Everything up to the end, whichever it is."""
    frames: list[tuple[FrameKind, bytes]] = []
    with suppress(WorkerLost):
        while batch := await stream.frames():
            frames += batch
    return frames


def code_of(frames: list[tuple[FrameKind, bytes]]) -> str:
    """Of the failure that ends a stream."""
    kind, payload = frames[-1]
    assert kind is FrameKind.FAILURE
    code: str = json.loads(payload)["code"]
    return code


def with_marker(marker: str) -> TokenIds:
    """A prompt that does something to a worker."""
    return encode_text(f"Before {marker} and behind it.")


@pytest.mark.parametrize("drain_s", [0.05])
async def test_a_decode_worker_that_is_stopped_hands_over_its_stream(workers: Workers) -> None:
    """The answer takes some seconds more when the drain is over."""
    stream = await workers.decode(PROMPT, 10_000)
    await stream.frames()

    workers.processes["decode"].send_signal(signal.SIGTERM)
    frames = await rest_of(stream)
    status, _ = await workers.status("decode", 30)

    kinds = {kind for kind, _ in frames[:-1]}
    assert code_of(frames) == "draining"
    assert kinds <= {FrameKind.OUTPUT, FrameKind.ALIVE}
    assert status == 0


@pytest.mark.parametrize("drain_s", [28.0])
async def test_a_decode_worker_that_is_stopped_lets_a_short_answer_end(workers: Workers) -> None:
    """And goes as soon as it is out, long before its drain is over."""
    stream = await workers.decode(PROMPT, 300)
    await stream.frames()

    workers.processes["decode"].send_signal(signal.SIGTERM)
    frames = await rest_of(stream)
    status, took_s = await workers.status("decode", 40)

    assert frames[-1][0] is FrameKind.REPORT
    assert status == 0
    assert took_s < 20


@pytest.mark.parametrize("drain_s", [28.0])
async def test_a_prefill_worker_that_is_stopped_waits_for_its_reader_or_the_lease(
    workers: Workers,
) -> None:
    """Nobody reads: it goes when the first lease is over, five seconds and a sweep."""
    await workers.prefill(PROMPT)

    workers.processes["prefill"].send_signal(signal.SIGTERM)
    status, took_s = await workers.status("prefill", 40)

    assert status == 0
    assert 3 < took_s < 20


async def test_a_poisoned_prompt_ends_the_worker_that_meets_it(workers: Workers) -> None:
    """Which is what the chaos suite is built on."""
    with suppress(WorkerLost):
        await workers.prefill(with_marker(chaos_worker.DIES_IN_PREFILL))
    assert await workers.status("prefill", 30)
    assert workers.processes["prefill"].returncode == chaos_worker.EXIT_STATUS


async def test_a_poisoned_stream_ends_without_a_word(workers: Workers) -> None:
    """No report and no failure: the process is gone."""
    frames = await rest_of(await workers.decode(with_marker(chaos_worker.DIES_IN_DECODE), 100))
    status, _ = await workers.status("decode", 30)

    assert {kind for kind, _ in frames} <= {FrameKind.ALIVE}
    assert status == chaos_worker.EXIT_STATUS


async def test_a_hanging_engine_is_told_of_and_does_not_keep_its_process(
    workers: Workers,
) -> None:
    """The stream fails after the stall; SIGTERM still ends the worker."""
    began_s = time.monotonic()
    frames = await rest_of(await workers.decode(with_marker(chaos_worker.HANGS_IN_DECODE), 100))
    told_s = time.monotonic() - began_s
    workers.processes["decode"].send_signal(signal.SIGTERM)
    status, _ = await workers.status("decode", 40)

    assert code_of(frames) == "worker_timeout"
    assert told_s > 0.9
    assert status == 0
