"""Both probers of links keep one contract: the one over HTTP, against real servers, and its twin."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Protocol

import pytest
from aiohttp import web
from builders import a_beat

from controlplane.router.http_link_probes import HttpLinkProber
from controlplane.router.link_probes import LinkProber, Way, WaySign
from controlplane.router.memory_link_probes import MemoryLinkProber
from controlplane.serving import listen
from controlplane.wire import KvAddress, LinkProbe, LinkProbeReply, LinkSign

TIMEOUT_S = 0.2
KV = KvAddress(host="10.0.0.1", port=9)
#: A port that nobody listens on.
NOWHERE = "http://127.0.0.1:9"


class World(Protocol):
    """A prober, and a way."""

    prober: LinkProber
    way: Way

    def way_is(self, sign: WaySign) -> None: ...


class MemoryWorld:
    """The twin."""

    way = Way(owner_url="http://east/p1", owner_kv=KV, reader_url="http://west/d1")

    def __init__(self) -> None:
        self.prober = MemoryLinkProber()

    def way_is(self, sign: WaySign) -> None:
        self.prober.signs[self.way.owner_url] = sign


class HttpWorld:
    """The prober over HTTP, and servers that behave as such workers do."""

    def __init__(self) -> None:
        self.prober = HttpLinkProber()
        self.way = MemoryWorld.way
        self.is_owner_silent = False
        #: None for a worker that knows no probes.
        self.sign: LinkSign | None = "answered"
        self.asked: list[LinkProbe] = []

    async def start(self, stack: AsyncExitStack) -> None:
        app = web.Application()
        app.router.add_get("/worker/v1/beat", self._beat)
        app.router.add_post("/worker/v1/probe-link", self._probe)
        url = await listen(stack, app, "127.0.0.1", 0)
        self.way = Way(owner_url=url, owner_kv=KV, reader_url=url)

    def way_is(self, sign: WaySign) -> None:
        self.sign = "refused" if sign == "unknown" else sign

    async def _beat(self, request: web.Request) -> web.StreamResponse:
        del request
        if self.is_owner_silent:
            await asyncio.Event().wait()
        return web.Response(body=a_beat().model_dump_json())

    async def _probe(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(LinkProbe.model_validate_json(await request.read()))
        if self.sign is None:
            raise web.HTTPNotFound
        return web.Response(body=LinkProbeReply(sign=self.sign).model_dump_json())


@pytest.fixture
async def http() -> AsyncIterator[HttpWorld]:
    async with AsyncExitStack() as stack:
        world = HttpWorld()
        await world.start(stack)
        stack.push_async_callback(world.prober.close)
        yield world


@pytest.fixture(params=["memory", "http"])
def world(request: pytest.FixtureRequest, http: HttpWorld) -> World:
    return MemoryWorld() if request.param == "memory" else http


@pytest.mark.parametrize("sign", ["answered", "silent", "unknown"])
async def test_a_way_is_what_its_ends_say(world: World, sign: WaySign) -> None:
    world.way_is(sign)

    assert await world.prober.cross(world.way, timeout_s=TIMEOUT_S) == sign


async def test_a_prober_that_is_closed_knows_nothing(world: World) -> None:
    await world.prober.close()
    await world.prober.close()

    assert await world.prober.cross(world.way, timeout_s=TIMEOUT_S) == "unknown"


# --- What only a network can do --------------------------------------------------------------


async def test_the_decode_worker_is_told_whom_to_dial_and_for_how_long(http: HttpWorld) -> None:
    await http.prober.cross(http.way, timeout_s=TIMEOUT_S)

    assert http.asked == [LinkProbe(target=KV, timeout_s=TIMEOUT_S)]


async def test_a_prefill_worker_that_does_not_hear_the_router_is_silent(http: HttpWorld) -> None:
    """KV would cross, and no job would get there."""
    http.is_owner_silent = True

    assert await http.prober.cross(http.way, timeout_s=TIMEOUT_S) == "silent"


async def test_a_decode_worker_of_an_older_version_cannot_tell(http: HttpWorld) -> None:
    http.sign = None

    assert await http.prober.cross(http.way, timeout_s=TIMEOUT_S) == "unknown"


@pytest.mark.parametrize("who", ["owner_url", "reader_url"])
async def test_a_worker_that_is_gone_says_nothing_of_the_link(http: HttpWorld, who: str) -> None:
    ends = {"owner_url": http.way.owner_url, "reader_url": http.way.reader_url, who: NOWHERE}

    sign = await http.prober.cross(Way(owner_kv=KV, **ends), timeout_s=TIMEOUT_S)

    assert sign == "unknown"
