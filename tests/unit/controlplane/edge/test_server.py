"""The listener as clients meet it: the production runner, with a router in memory behind it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import aiohttp
import pytest
from router_builders import (
    DECODE_1,
    EAST_1,
    SCOPE,
    LogBook,
    MemoryRouter,
    a_router,
    url_of,
)

from controlplane.config import LimitsConfig
from controlplane.edge import server as server_module
from controlplane.edge.requests import ModelFacts
from controlplane.edge.server import EdgeServer, Readiness
from controlplane.edge.tokenizers import tokenizer_for
from controlplane.errors import WorkerLost, WorkerRefused
from controlplane.router import dispatcher as dispatcher_module
from controlplane.router.memory_workers import Gate, a_report
from controlplane.serving import listen
from controlplane.wire import FrameKind

CONTENT = (FrameKind.CONTENT, b"data: hello\n\n")
DONE = (FrameKind.CONTENT, b"data: [DONE]\n\n")
REPORT = (FrameKind.REPORT, a_report().model_dump_json().encode())

LONG = "x" * 101


class Edge:
    """A listener and the router behind it."""

    def __init__(self, router: MemoryRouter, url: str, session: aiohttp.ClientSession) -> None:
        self.router = router
        self.url = url
        self.session = session
        self.is_ready = True

    def post(self, **fields: Any) -> Any:
        """A completion request."""
        body = {"model": "m", "prompt": LONG, "max_tokens": 8, **fields}
        # Each of them owes a record.
        self.router.taken += 1
        return self.session.post(f"{self.url}/v1/completions", json=body)


@asynccontextmanager
async def an_edge(**limits: Any) -> AsyncIterator[Edge]:
    """A listener on a port of its own; at the end nothing may be held for anybody."""
    async with AsyncExitStack() as stack:
        router = await stack.enter_async_context(a_router(limits=LimitsConfig(**limits)))
        executor = stack.enter_context(ThreadPoolExecutor(1))
        facts = ModelFacts(
            name="m",
            tokenizer=tokenizer_for("reference"),
            block_tokens=16,
            context_tokens_max=4096,
            scope=SCOPE,
        )
        server = EdgeServer(
            router.dispatcher,
            limits=router.limits,
            models=lambda: {"m": facts},
            readiness=lambda: Readiness(is_ready=edge.is_ready, details={"store": "ok"}),
            executor=executor,
        )
        url = await listen(stack, server.application(), "127.0.0.1", 0)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        edge = Edge(router, url, session)
        yield edge


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    """A listener with the usual limits."""
    async with an_edge() as edge:
        yield edge


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> LogBook:
    """What edge and dispatcher log."""
    book = LogBook()
    monkeypatch.setattr(server_module, "_log", book)
    monkeypatch.setattr(dispatcher_module, "_log", book)
    return book


async def until(is_true: Callable[[], bool]) -> None:
    """Turn the loop until something is true."""
    async with asyncio.timeout(5):
        while not is_true():  # noqa: ASYNC110 - another process's sockets are part of it
            await asyncio.sleep(0)


async def until_idle(router: MemoryRouter) -> None:
    """Wait until no request is in flight."""
    await until(lambda: router.dispatcher.in_flight == 0)


async def test_a_streamed_answer_is_copied(edge: Edge) -> None:
    """The worker's bytes, the router's headers."""
    edge.router.workers.on_decode(url_of(DECODE_1), stream=[[CONTENT], [DONE, REPORT]])

    async with edge.post(stream=True) as answer:
        body = await answer.read()

    assert answer.status == 200
    assert body == CONTENT[1] + DONE[1]
    assert answer.headers["x-prfaas-prefill"] == EAST_1
    assert answer.headers["x-request-id"].startswith("req-")


async def test_a_whole_answer_is_json(edge: Edge) -> None:
    """With a length, and headers that say who served."""
    edge.router.workers.on_decode(
        url_of(DECODE_1), stream=[[(FrameKind.CONTENT, b'{"a": 1}'), REPORT]]
    )

    async with edge.post() as answer:
        body = await answer.json()

    assert body == {"a": 1}
    assert answer.headers["x-prfaas-decode"] == DECODE_1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_before_the_first_token_is_a_status(edge: Edge, *, stream: bool) -> None:
    """Also where a stream was asked for."""
    for worker_id in (EAST_1, "east/p2", "west/p1"):
        edge.router.workers.on_prefill(url_of(worker_id), WorkerRefused("full"))

    async with edge.post(stream=stream) as answer:
        error = (await answer.json())["error"]

    assert answer.status == 503
    assert error["code"] == "worker_refused"
    assert error["request_id"] == answer.headers["x-request-id"]
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["x-should-retry"] == "true"


@pytest.mark.parametrize(
    ("trouble", "code"),
    [(WorkerLost("reset"), "worker_lost"), (ZeroDivisionError(), "internal_error")],
)
async def test_a_failure_after_the_first_token_is_one_error_event(
    edge: Edge, log: LogBook, trouble: Exception, code: str
) -> None:
    """Then the end of the stream and of the connection, and never [DONE]."""
    edge.router.workers.on_decode(url_of(DECODE_1), stream=[[CONTENT], trouble])

    async with edge.post(stream=True) as answer:
        body = await answer.read()

    head, _, error = body.partition(b"event: error\ndata: ")
    assert answer.status == 200
    assert head == CONTENT[1]
    assert json.loads(error)["error"]["code"] == code
    assert b"[DONE]" not in body
    assert len(log.events) == (code == "internal_error")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_hangs_up_is_noticed_while_it_waits(
    edge: Edge, *, stream: bool
) -> None:
    """The handler is cancelled: this is the runner that production uses."""
    gate = Gate()
    edge.router.workers.on_prefill(url_of(EAST_1), gate)
    asking = asyncio.ensure_future(edge.post(stream=stream).__aenter__())
    await gate.reached()

    asking.cancel()
    await until_idle(edge.router)

    record = await edge.router.record()
    assert record.outcome == "cancelled"


async def test_a_client_that_hangs_up_is_noticed_while_it_reads(edge: Edge, log: LogBook) -> None:
    """And nothing is logged as a bug."""
    gate = Gate()
    edge.router.workers.on_decode(url_of(DECODE_1), stream=[[CONTENT], gate])
    async with edge.post(stream=True) as answer:
        await answer.content.readany()
        await gate.reached()

        answer.close()
        await until_idle(edge.router)

    assert (await edge.router.record()).outcome == "cancelled"
    assert log.events == []


async def test_a_client_that_reads_nothing_is_cut_off(log: LogBook) -> None:
    """Its answer is cancelled and its connection closed: it holds no memory for ever."""
    async with an_edge(client_write_timeout_s=0.05) as edge:
        much = (FrameKind.CONTENT, b"x" * (1 << 20))
        edge.router.workers.on_decode(url_of(DECODE_1), stream=[[much] for _ in range(64)])
        host, _, port = edge.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        body = json.dumps({"model": "m", "prompt": LONG, "max_tokens": 8, "stream": True}).encode()
        edge.router.taken += 1
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        await until(lambda: edge.router.dispatcher.in_flight == 1)
        await until_idle(edge.router)

        end = await the_end_of(reader)
        writer.close()

        assert (await edge.router.record()).outcome == "cancelled"
        assert not end.endswith(b"0\r\n\r\n"), "it looks like a whole answer"
        assert log.events == []


async def the_end_of(reader: asyncio.StreamReader) -> bytes:
    """The last bytes before a connection ends, however it ends."""
    end = b""
    async with asyncio.timeout(5):
        with suppress(ConnectionError):
            while data := await reader.read(1 << 20):
                end = (end + data)[-100:]
    return end


async def test_readiness_is_a_status(edge: Edge) -> None:
    """For a load balancer; the details are for people."""
    async with edge.session.get(f"{edge.url}/ready") as ready:
        assert (ready.status, await ready.json()) == (200, {"ready": True, "store": "ok"})
    edge.is_ready = False

    async with edge.session.get(f"{edge.url}/ready") as not_ready:
        assert (not_ready.status, (await not_ready.json())["ready"]) == (503, False)
    async with edge.session.get(f"{edge.url}/health") as health:
        assert health.status == 200


async def test_what_a_router_that_leaves_refuses_can_be_tried_elsewhere(edge: Edge) -> None:
    """503 with a code of its own."""
    await edge.router.dispatcher.drain(1)

    async with edge.post() as answer:
        error = (await answer.json())["error"]

    assert (answer.status, error["code"]) == (503, "draining")
    assert answer.headers["x-should-retry"] == "true"
    edge.router.taken -= 1
