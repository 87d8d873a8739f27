"""Both worker clients keep one contract: the one over HTTP, and its twin in memory."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any, Literal, Protocol

import pytest
from aiohttp import web
from builders import a_beat, a_decode_job, a_location, a_prefill_job, a_prefix_ask, a_prompt

from controlplane.config import LimitsConfig
from controlplane.errors import PeerError, RoleRefused, WorkerLost, WorkerRefused, WorkerTimeout
from controlplane.router.http_workers import HttpWorkerClient
from controlplane.router.memory_workers import Gate, MemoryWorkerClient, Step, StreamStep
from controlplane.router.workers import RoleClient, WorkerClient
from controlplane.serving import listen
from controlplane.wire import (
    FrameKind,
    KvLocation,
    RoleChange,
    RoleReply,
    WorkerError,
    pack_frame,
)

Kind = Literal["prefill", "decode", "prefix", "role"]

CONTENT = (FrameKind.CONTENT, b"hello")
MORE = (FrameKind.CONTENT, b"more")
REPORT = (FrameKind.REPORT, b"{}")
TO_PREFILL = RoleChange(incarnation="i1", role="prefill", dwell_s=0)


class Client(WorkerClient, RoleClient, Protocol):
    """Both contracts in one."""


class World(Protocol):
    """A client and one worker, which does what a script says."""

    client: Client
    url: str
    #: Ids of aborted jobs.
    aborted: list[str]

    def on_prefill(self, *steps: Step | KvLocation) -> None: ...

    def on_decode(self, *steps: Step, stream: Sequence[StreamStep] = ()) -> None: ...

    def on_prefix(self, *steps: Step | KvLocation) -> None: ...

    def on_role(self, *steps: Step) -> None: ...

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

    def on_prefix(self, *steps: Step | KvLocation) -> None:
        self.client.on_prefix(self.url, *steps)

    def on_role(self, *steps: Step) -> None:
        self.client.on_role(self.url, *steps)

    async def dies(self) -> None:
        self.client.dead.add((self.url, "i1"))

    def is_reborn(self) -> None:
        self.client.dead.add((self.url, "i1"))


class HttpWorld:
    """A client over HTTP and a real server that acts the same script out."""

    def __init__(self) -> None:
        self.client = HttpWorkerClient(
            LimitsConfig(
                prefill_accept_timeout_s=0.2,
                prefix_ask_timeout_s=0.2,
                decode_idle_timeout_s=0.2,
                alive_interval_s=0.1,
            )
        )
        self.url = ""
        self.aborted: list[str] = []
        self._incarnation = "i1"
        self._stop = AsyncExitStack()
        self._prefills: deque[tuple[Step | KvLocation, ...]] = deque()
        self._decodes: deque[tuple[tuple[Step, ...], tuple[StreamStep, ...]]] = deque()
        self._prefixes: deque[tuple[Step | KvLocation, ...]] = deque()
        self._roles: deque[tuple[Step, ...]] = deque()

    async def start(self, stack: AsyncExitStack) -> None:
        app = web.Application()
        app.router.add_post("/worker/v1/prefill", self._prefill)
        app.router.add_delete("/worker/v1/prefill/{job_id}", self._abort)
        app.router.add_post("/worker/v1/decode", self._decode)
        app.router.add_post("/worker/v1/prefix", self._prefix)
        app.router.add_post("/worker/v1/role", self._role)
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

    def on_prefix(self, *steps: Step | KvLocation) -> None:
        self._prefixes.append(steps)

    def on_role(self, *steps: Step) -> None:
        self._roles.append(steps)

    async def _prefix(self, request: web.Request) -> web.StreamResponse:
        await request.read()
        for step in self._prefixes.popleft() if self._prefixes else ():
            if isinstance(step, KvLocation):
                return web.Response(body=step.model_dump_json())
            if (refusal := await _act(request, step)) is not None:
                return refusal
        return web.Response(status=404)

    async def _role(self, request: web.Request) -> web.StreamResponse:
        change = RoleChange.model_validate_json(await request.read())
        for step in self._roles.popleft() if self._roles else ():
            if (refusal := await _act(request, step)) is not None:
                return refusal
        reply = RoleReply(
            worker_id="east/p1",
            incarnation=change.incarnation,
            role=change.role,
            lend_share=change.lend_share,
        )
        return web.Response(status=202, body=reply.model_dump_json())

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
    elif isinstance(step, RoleRefused):
        body = WorkerError(code=step.reason, message=step.message)
        return web.Response(status=step.http_status, body=body.model_dump_json())
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
    if kind == "prefix":
        return await world.client.export_prefix(world.url, a_prefix_ask(), a_prompt())
    if kind == "role":
        return await world.client.change_role(world.url, TO_PREFILL)
    return await world.client.decode(world.url, a_decode_job(), a_prompt())


def script(world: World, kind: Kind, *steps: Step) -> None:
    """What the next job meets."""
    if kind == "prefill":
        world.on_prefill(*steps)
    elif kind == "prefix":
        world.on_prefix(*steps, a_location())
    elif kind == "role":
        world.on_role(*steps)
    else:
        world.on_decode(*steps, stream=[[CONTENT]])


kinds = pytest.mark.parametrize("kind", ["prefill", "decode", "prefix", "role"])


async def test_a_prefix_is_answered_with_where_it_is(world: World) -> None:
    world.on_prefix(a_location(segment_id="this-one"))

    location = await world.client.export_prefix(world.url, a_prefix_ask(), a_prompt())

    assert location is not None
    assert location.segment_id == "this-one"


async def test_a_prefix_that_is_gone_is_no_error(world: World) -> None:
    """Caches change while requests are on their way."""
    assert await world.client.export_prefix(world.url, a_prefix_ask(), a_prompt()) is None


async def test_a_change_of_a_role_is_answered_with_what_it_comes_to(world: World) -> None:
    change = RoleChange(incarnation="i1", role="decode", lend_share=0.25, dwell_s=60)

    reply = await world.client.change_role(world.url, change)

    assert (reply.worker_id, reply.incarnation) == ("east/p1", "i1")
    assert (reply.role, reply.lend_share) == ("decode", 0.25)


@pytest.mark.parametrize("reason", ["role_dwell", "role_incarnation", "role_busy"])
async def test_a_change_that_is_refused_says_why(world: World, reason: str) -> None:
    """The planner treats each reason differently."""
    world.on_role(RoleRefused("not now", reason=reason))

    with pytest.raises(RoleRefused, match="not now") as refused:
        await world.client.change_role(world.url, TO_PREFILL)

    assert refused.value.reason == reason


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
    for kind in ("prefill", "decode", "prefix", "role"):
        with pytest.raises(WorkerLost):
            await call(world, kind)
