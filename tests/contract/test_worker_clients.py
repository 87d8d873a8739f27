"""Both worker clients keep one contract: the one over HTTP, and its twin in memory."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any, Literal, Protocol

import pytest
from aiohttp import web
from builders import a_beat, a_decode_job, a_location, a_prefill_job, a_prompt

from controlplane.config import LimitsConfig
from controlplane.errors import PeerError, WorkerLost, WorkerRefused, WorkerTimeout
from controlplane.router.http_workers import HttpWorkerClient
from controlplane.router.memory_workers import Gate, MemoryWorkerClient, Step, StreamStep
from controlplane.router.workers import WorkerClient
from controlplane.serving import listen
from controlplane.wire import FrameKind, KvLocation, WorkerError, pack_frame

Kind = Literal["prefill", "decode"]

CONTENT = (FrameKind.CONTENT, b"hello")
MORE = (FrameKind.CONTENT, b"more")
REPORT = (FrameKind.REPORT, b"{}")


class World(Protocol):
    """A client and one worker, which does what a script says."""

    client: WorkerClient
    url: str
    #: Ids of aborted jobs.
    aborted: list[str]

    def on_prefill(self, *steps: Step | KvLocation) -> None: ...

    def on_decode(self, *steps: Step, stream: Sequence[StreamStep] = ()) -> None: ...

    async def dies(self) -> None:
        """The worker's process ends; nobody listens there any more."""

    def is_reborn(self) -> None:
        """Another process life, `i2`, listens where `i1` did."""


class MemoryWorld:
    """The twin."""

    url = "http://east/p1"

    def __init__(self) -> None:
        self.client = MemoryWorkerClient()

    @property
    def aborted(self) -> list[str]:
        return [call.request_id for call in self.client.of_kind("abort")]

    def on_prefill(self, *steps: Step | KvLocation) -> None:
        self.client.on_prefill(self.url, *steps)

    def on_decode(self, *steps: Step, stream: Sequence[StreamStep] = ()) -> None:
        self.client.on_decode(self.url, *steps, stream=stream)

    async def dies(self) -> None:
        self.client.dead.add((self.url, "i1"))

    def is_reborn(self) -> None:
        self.client.dead.add((self.url, "i1"))


class HttpWorld:
    """A client over HTTP and a real server that acts the same script out."""

    def __init__(self) -> None:
        self.client = HttpWorkerClient(
            LimitsConfig(
                prefill_accept_timeout_s=0.2, decode_idle_timeout_s=0.2, alive_interval_s=0.1
            )
        )
        self.url = ""
        self.aborted: list[str] = []
        self._incarnation = "i1"
        self._stop = AsyncExitStack()
        self._prefills: deque[tuple[Step | KvLocation, ...]] = deque()
        self._decodes: deque[tuple[tuple[Step, ...], tuple[StreamStep, ...]]] = deque()

    async def start(self, stack: AsyncExitStack) -> None:
        app = web.Application()
        app.router.add_post("/worker/v1/prefill", self._prefill)
        app.router.add_delete("/worker/v1/prefill/{job_id}", self._abort)
        app.router.add_post("/worker/v1/decode", self._decode)
        app.router.add_get("/worker/v1/beat", self._beat)
        stack.push_async_callback(self._stop.aclose)
        self.url = await listen(self._stop, app, "127.0.0.1", 0)

    async def dies(self) -> None:
        await self._stop.aclose()

    def is_reborn(self) -> None:
        self._incarnation = "i2"

    async def _beat(self, _: web.Request) -> web.StreamResponse:
        return web.Response(body=a_beat(incarnation=self._incarnation).model_dump_json())

    def on_prefill(self, *steps: Step | KvLocation) -> None:
        self._prefills.append(steps)

    def on_decode(self, *steps: Step, stream: Sequence[StreamStep] = ()) -> None:
        self._decodes.append((steps, tuple(stream)))

    async def _prefill(self, request: web.Request) -> web.StreamResponse:
        await request.read()
        for step in self._prefills.popleft() if self._prefills else ():
            if isinstance(step, KvLocation):
                return web.Response(body=step.model_dump_json())
            if (refusal := await _act(request, step)) is not None:
                return refusal
        return web.Response(body=a_location().model_dump_json())

    async def _abort(self, request: web.Request) -> web.StreamResponse:
        self.aborted.append(request.match_info["job_id"])
        return web.Response(status=204)

    async def _decode(self, request: web.Request) -> web.StreamResponse:
        await request.read()
        steps, stream = self._decodes.popleft()
        for step in steps:
            if (refusal := await _act(request, step)) is not None:
                return refusal
        response = web.StreamResponse()
        await response.prepare(request)
        for item in stream:
            if isinstance(item, Gate | Exception):
                await _act(request, item)
            else:
                await response.write(b"".join(pack_frame(*frame) for frame in item))
        return response


async def _act(request: web.Request, step: Step) -> web.Response | None:
    """Wait, refuse, break the connection, or say nothing until the client leaves."""
    if isinstance(step, Gate):
        await step.wait()
    elif isinstance(step, WorkerRefused):
        body = WorkerError(code=step.code, message=step.message)
        return web.Response(status=step.http_status, body=body.model_dump_json())
    elif isinstance(step, WorkerLost):
        assert request.transport is not None
        request.transport.abort()
    else:
        await asyncio.Event().wait()
    return None


@pytest.fixture(params=["memory", "http"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """Each client in turn."""
    async with AsyncExitStack() as stack:
        if request.param == "memory":
            yield MemoryWorld()
        else:
            world = HttpWorld()
            await world.start(stack)
            stack.push_async_callback(world.client.close)
            yield world


async def call(world: World, kind: Kind) -> Any:
    """One job."""
    if kind == "prefill":
        return await world.client.prefill(world.url, a_prefill_job(), a_prompt())
    return await world.client.decode(world.url, a_decode_job(), a_prompt())


def script(world: World, kind: Kind, *steps: Step) -> None:
    """What the next job meets."""
    if kind == "prefill":
        world.on_prefill(*steps)
    else:
        world.on_decode(*steps, stream=[[CONTENT]])


kinds = pytest.mark.parametrize("kind", ["prefill", "decode"])


async def test_a_prefill_job_is_answered_with_a_location(world: World) -> None:
    """The one its worker gave."""
    world.on_prefill(a_location(segment_id="this-one"))

    location = await world.client.prefill(world.url, a_prefill_job(), a_prompt())

    assert location.segment_id == "this-one"


@kinds
@pytest.mark.parametrize("error", [WorkerRefused("full"), WorkerLost("cut"), WorkerTimeout("-")])
async def test_each_failure_is_its_own_error(world: World, kind: Kind, error: PeerError) -> None:
    """Refused, lost and silent are three things for the life cycle."""
    script(world, kind, error)

    with pytest.raises(type(error)):
        await call(world, kind)


@kinds
async def test_a_failure_says_nothing_of_the_next_job(world: World, kind: Kind) -> None:
    """The same worker is asked again."""
    script(world, kind, WorkerRefused("full"))
    with pytest.raises(WorkerRefused, match="full"):
        await call(world, kind)
    script(world, kind)

    assert await call(world, kind)


async def test_a_stream_gives_its_frames_in_order_and_then_nothing(world: World) -> None:
    """However often it is asked after its end."""
    world.on_decode(stream=[[CONTENT], [MORE, REPORT]])
    stream = await world.client.decode(world.url, a_decode_job(), a_prompt())

    frames = []
    while batch := await stream.frames():
        frames += batch
    after_the_end = await stream.frames()
    stream.close()

    assert frames == [CONTENT, MORE, REPORT]
    assert after_the_end == []


@pytest.mark.parametrize("error", [WorkerLost("cut"), WorkerTimeout("silent")])
async def test_a_stream_that_breaks_gives_what_came_before(world: World, error: PeerError) -> None:
    """First the frames, then the error."""
    gate = Gate()
    world.on_decode(stream=[[CONTENT], gate, error])
    stream = await world.client.decode(world.url, a_decode_job(), a_prompt())

    first = await stream.frames()
    gate.open()
    with pytest.raises(type(error)):
        await stream.frames()
    stream.close()

    assert first == [CONTENT]


async def test_a_stream_that_was_closed_gives_nothing_more(world: World) -> None:
    """Closing twice is closing once."""
    world.on_decode(stream=[[CONTENT], Gate(), [MORE]])
    stream = await world.client.decode(world.url, a_decode_job(), a_prompt())
    await stream.frames()

    stream.close()
    stream.close()

    assert await stream.frames() == []


@kinds
async def test_a_call_that_is_cancelled_harms_no_other(world: World, kind: Kind) -> None:
    """The next one gets its own answer."""
    gate = Gate()
    script(world, kind, gate)
    running = asyncio.ensure_future(call(world, kind))
    await gate.reached()

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    script(world, kind)

    assert await call(world, kind)


async def test_an_abort_names_its_job_and_raises_nothing(world: World) -> None:
    """Best effort, also for a job nobody knows."""
    await world.client.abort_prefill(world.url, "req-7.1")

    assert world.aborted == ["req-7.1"]


async def test_a_worker_that_lives_has_not_died(world: World) -> None:
    assert not await world.client.has_died(world.url, "i1")


async def test_a_worker_where_nobody_listens_has_died(world: World) -> None:
    await world.dies()

    assert await world.client.has_died(world.url, "i1")


async def test_a_worker_has_died_where_another_life_listens(world: World) -> None:
    """The first one's end was not seen; the second one is alive."""
    world.is_reborn()

    assert await world.client.has_died(world.url, "i1")
    assert not await world.client.has_died(world.url, "i2")


async def test_a_client_that_was_closed_has_lost_every_worker(world: World) -> None:
    """Streams that are open break, jobs that come are not sent."""
    world.on_decode(stream=[[CONTENT], Gate(), [MORE]])
    stream = await world.client.decode(world.url, a_decode_job(), a_prompt())
    await stream.frames()

    await world.client.close()

    with pytest.raises(WorkerLost):
        await stream.frames()
    for kind in ("prefill", "decode"):
        with pytest.raises(WorkerLost):
            await call(world, kind)
