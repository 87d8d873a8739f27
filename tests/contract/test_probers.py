"""Both probers keep one contract: the one over HTTP, against a real server, and its twin."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Protocol

import pytest
from aiohttp import web
from builders import a_beat

from controlplane.config_health import HealthConfig
from controlplane.router.http_probes import HttpProber
from controlplane.router.memory_probes import MemoryProber
from controlplane.router.probes import NoBeat, Prober
from controlplane.serving import listen
from controlplane.wire import WorkerBeat

TIMEOUT_S = 0.2


class World(Protocol):
    """A prober, and a worker's address."""

    prober: Prober
    url: str

    def worker_is(self, answer: WorkerBeat | NoBeat) -> None: ...


class MemoryWorld:
    """The twin."""

    url = "http://east/p1"

    def __init__(self) -> None:
        self.prober = MemoryProber()

    def worker_is(self, answer: WorkerBeat | NoBeat) -> None:
        self.prober.answers[self.url] = answer


class HttpWorld:
    """The prober over HTTP, and a server that behaves as such a worker does."""

    def __init__(self) -> None:
        self.prober = HttpProber(HealthConfig(probe_timeout_s=TIMEOUT_S))
        self.url = ""
        self._answer: WorkerBeat | NoBeat = "mute"
        self._never = asyncio.Event()

    async def start(self, stack: AsyncExitStack) -> None:
        app = web.Application()
        app.router.add_get("/worker/v1/beat", self._beat)
        self.url = await listen(stack, app, "127.0.0.1", 0)

    def worker_is(self, answer: WorkerBeat | NoBeat) -> None:
        self._answer = answer
        if answer == "refused":
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.url = f"http://127.0.0.1:{free.getsockname()[1]}"

    async def _beat(self, request: web.Request) -> web.StreamResponse:
        del request
        if self._answer == "silent":
            await self._never.wait()
        if isinstance(self._answer, str):
            raise web.HTTPNotFound
        return web.Response(body=self._answer.model_dump_json(), content_type="application/json")


@pytest.fixture(params=["memory", "http"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        world: MemoryWorld | HttpWorld
        if request.param == "memory":
            world = MemoryWorld()
        else:
            world = HttpWorld()
            await world.start(stack)
        stack.push_async_callback(world.prober.close)
        yield world


async def test_a_worker_says_how_it_is(world: World) -> None:
    beat = a_beat("east/p1", sequence=7, is_draining=True, age_s=3.5)
    world.worker_is(beat)

    answer = await world.prober.ask(world.url)

    assert answer == beat


@pytest.mark.parametrize("answer", ["refused", "silent", "mute"])
async def test_a_worker_that_says_nothing_says_it_in_one_of_three_ways(
    world: World, answer: NoBeat
) -> None:
    world.worker_is(answer)

    assert await world.prober.ask(world.url) == answer


async def test_a_prober_that_is_closed_hears_nothing(world: World) -> None:
    world.worker_is(a_beat("east/p1"))
    await world.prober.close()
    await world.prober.close()

    assert await world.prober.ask(world.url) == "silent"


# --- What only a network can do --------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        pytest.param(lambda: web.Response(body=b"{"), "mute", id="half a document"),
        pytest.param(lambda: web.Response(body=b"\xff" * 100), "mute", id="garbage"),
        pytest.param(lambda: web.Response(body=b"{}" * 100_000), "mute", id="far too long"),
        pytest.param(lambda: web.Response(status=503), "mute", id="an error"),
        pytest.param(
            lambda: web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"}),
            "mute",
            id="elsewhere",
        ),
    ],
)
async def test_whatever_else_is_answered_is_no_beat(
    answer: Callable[[], web.Response], said: NoBeat
) -> None:
    async def handle(request: web.Request) -> web.StreamResponse:
        del request
        return answer()

    app = web.Application()
    app.router.add_get("/worker/v1/beat", handle)
    prober = HttpProber(HealthConfig(probe_timeout_s=TIMEOUT_S))
    async with AsyncExitStack() as stack:
        stack.push_async_callback(prober.close)
        url = await listen(stack, app, "127.0.0.1", 0)

        assert await prober.ask(url) == said


async def test_a_machine_that_breaks_off_is_silent() -> None:
    """It may be the way; only a refusal says that nobody listens."""

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    prober = HttpProber(HealthConfig(probe_timeout_s=TIMEOUT_S))

    said = await prober.ask(f"http://127.0.0.1:{port}")

    assert said == "silent"
    await prober.close()
    server.close()
    await server.wait_closed()
