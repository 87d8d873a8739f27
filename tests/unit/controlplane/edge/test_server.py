"""The listener as clients meet it: the production runner, with a router in memory behind it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress

import aiohttp
import pytest
from edge_builders import Edge, an_edge, raw_request, until, until_idle
from router_builders import DECODE_1, EAST_1, LogBook, url_of

from controlplane.edge import answers as answers_module
from controlplane.edge.sink import StreamSink
from controlplane.errors import WorkerLost, WorkerRefused
from controlplane.router import dispatcher as dispatcher_module
from controlplane.router.memory_workers import Gate, a_report
from controlplane.wire import FrameKind

CONTENT = (FrameKind.CONTENT, b"data: hello\n\n")
DONE = (FrameKind.CONTENT, b"data: [DONE]\n\n")
REPORT = (FrameKind.REPORT, a_report().model_dump_json().encode())


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    """A listener with the usual limits."""
    async with an_edge() as edge:
        yield edge


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> LogBook:
    """What edge and dispatcher log."""
    book = LogBook()
    monkeypatch.setattr(answers_module, "_log", book)
    monkeypatch.setattr(dispatcher_module, "_log", book)
    return book


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
    assert 1000 <= int(answer.headers["retry-after-ms"]) <= 2000
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


async def test_a_client_that_hangs_up_with_its_last_byte_is_no_bug(
    edge: Edge, log: LogBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has all of its answer, and nobody is left to be sent the end of it."""
    close = StreamSink.close

    def hang_up(sink: StreamSink) -> None:
        close(sink)
        assert sink._request.transport is not None
        sink._request.transport.abort()

    monkeypatch.setattr(StreamSink, "close", hang_up)
    edge.router.workers.on_decode(url_of(DECODE_1), stream=[[CONTENT], [DONE, REPORT]])

    with suppress(aiohttp.ClientError):
        async with edge.post(stream=True) as answer:
            await answer.read()
    await until_idle(edge.router)

    assert (await edge.router.record()).outcome == "done"
    assert log.events == []


async def test_a_client_that_reads_nothing_is_cut_off(log: LogBook) -> None:
    """Its answer is cancelled and its connection closed: it holds no memory for ever."""
    async with an_edge(client_write_timeout_s=0.05) as edge:
        much = (FrameKind.CONTENT, b"x" * (1 << 20))
        edge.router.workers.on_decode(url_of(DECODE_1), stream=[[much] for _ in range(64)])
        reader, writer = await edge.connect()
        edge.router.taken += 1
        writer.write(raw_request(stream=True))
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
    """503 with a code of its own, a time for the retry, and the end of the connection."""
    await edge.router.dispatcher.drain(1)

    async with edge.ask() as answer:
        error = (await answer.json())["error"]

    assert (answer.status, error["code"]) == (503, "draining")
    assert answer.headers["x-should-retry"] == "true"
    assert 1 <= int(answer.headers["retry-after"]) <= 2
    assert answer.headers["connection"] == "close"


async def test_every_answer_of_a_router_that_leaves_ends_its_connection(edge: Edge) -> None:
    """Also of what is no request for tokens."""
    async with edge.session.get(f"{edge.url}/health") as before:
        assert "connection" not in before.headers

    await edge.router.dispatcher.drain(1)

    for path in ("/health", "/ready", "/v1/models", "/nowhere"):
        async with edge.session.get(edge.url + path) as answer:
            assert answer.headers["connection"] == "close", path


# --- What the headers of a request say --------------------------------------------------------


async def test_a_client_may_ask_for_less_time_than_there_is(edge: Edge) -> None:
    """Then its request ends in time, although the worker says nothing."""
    edge.router.workers.on_prefill(url_of(EAST_1), Gate())

    async with edge.post(headers={"x-request-timeout": "0.05"}) as answer:
        error = (await answer.json())["error"]

    assert (answer.status, error["code"]) == (504, "deadline_exceeded")
    assert "retry-after" in answer.headers


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("x-request-timeout", "1e3"),
        ("x-request-timeout", "301"),
        ("idempotency-key", "a b"),
        ("x-prfaas-ttft-deadline-ms", "0.5"),
        ("x-prfaas-datacenters", "south"),
    ],
)
async def test_a_wrong_header_is_refused_by_its_name(edge: Edge, header: str, value: str) -> None:
    """A client fault, and no reason to try again."""
    async with edge.ask(headers={header: value}) as answer:
        error = (await answer.json())["error"]

    assert (answer.status, error["code"], error["param"]) == (400, "malformed_request", header)
    assert answer.headers["x-should-retry"] == "false"
    assert "retry-after" not in answer.headers


async def test_a_policy_is_told_of_the_deadline_and_of_where_the_data_may_be(edge: Edge) -> None:
    """What is left of the time when the request is placed, and the datacenters in order."""
    wishes = {"x-prfaas-ttft-deadline-ms": "5000", "x-prfaas-datacenters": "west"}

    async with edge.post(headers=wishes) as answer:
        await answer.read()

    features = (await edge.router.record()).attempts[0].features
    assert answer.status == 200
    assert answer.headers["x-prfaas-prefill"].startswith("west/")
    assert features.allowed_datacenters == ("west",)
    assert features.ttft_deadline_s is not None
    assert 0 < features.ttft_deadline_s <= 5


# --- Bodies -----------------------------------------------------------------------------------


async def test_a_body_that_no_prompt_needs_is_refused_before_it_is_sent(edge: Edge) -> None:
    """By its length; the limit follows from the context of 4,096 tokens."""
    reader, writer = await edge.connect()

    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 999999\r\n\r\n")
    answer = await reader.readuntil(b"\r\n\r\n")

    assert b" 413 " in answer.splitlines()[0]
    writer.close()


async def test_a_chunked_body_is_counted_while_it_comes(edge: Edge) -> None:
    """It has no length to be refused by."""
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 64 << 20:
            sent += 1 << 14
            yield b" " * (1 << 14)

    with suppress(aiohttp.ClientConnectionError):  # it may still have been sending
        async with edge.session.post(f"{edge.url}/v1/completions", data=chunks()) as answer:
            assert answer.status == 413

    assert sent < 8 << 20


async def test_a_prompt_that_fills_the_context_fits_however_it_is_written(edge: Edge) -> None:
    """Ids one to a line, and text with every character escaped."""
    ids = json.dumps({"model": "m", "prompt": [65] * 4000, "max_tokens": 8}, indent=8)
    text = '{"model": "m", "max_tokens": 8, "prompt": "%s"}' % ("\\u0041" * 4000)
    for body in (ids, text):
        edge.router.taken += 1
        edge.router.workers.on_decode(
            url_of(DECODE_1), stream=[[(FrameKind.CONTENT, b"{}"), REPORT]]
        )
        async with edge.session.post(f"{edge.url}/v1/completions", data=body) as answer:
            assert answer.status == 200, await answer.text()
