"""The worker client over HTTP, against real servers: those that behave and those that do not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeAlias

import pytest
from aiohttp import web
from builders import a_beat, a_decode_job, a_location, a_prefill_job, a_prompt

from controlplane.config import LimitsConfig
from controlplane.errors import WorkerLost, WorkerRefused, WorkerTimeout, WorkerUnreached
from controlplane.router.http_workers import HttpWorkerClient
from controlplane.router.workers import DecodeStream
from controlplane.serving import listen
from controlplane.wire import (
    DecodeJob,
    FrameKind,
    PrefillJob,
    WorkerError,
    pack_frame,
    unpack_parcel,
)

HOST = "127.0.0.1"
Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]
Peer: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

PREFILL = "/worker/v1/prefill"
DECODE = "/worker/v1/decode"


@pytest.fixture
async def client() -> AsyncIterator[HttpWorkerClient]:
    """A client with patience; a test that waits for its end says so."""
    client = HttpWorkerClient(LimitsConfig())
    yield client
    await client.close()


@pytest.fixture
async def impatient() -> AsyncIterator[HttpWorkerClient]:
    """A client that waits as little as a busy machine allows."""
    client = HttpWorkerClient(
        LimitsConfig(
            connect_timeout_s=0.2,
            prefill_accept_timeout_s=0.2,
            decode_idle_timeout_s=0.2,
            alive_interval_s=0.05,
        )
    )
    yield client
    await client.close()


@asynccontextmanager
async def a_worker(*, prefill: Handler | None = None, **handlers: Handler) -> AsyncIterator[str]:
    """The URL of a server with these handlers, on the runner of production."""
    app = web.Application()
    if prefill is not None:
        app.router.add_post(PREFILL, prefill)
    if "abort" in handlers:
        app.router.add_delete(PREFILL + "/{job_id}", handlers["abort"])
    if "beat" in handlers:
        app.router.add_get("/worker/v1/beat", handlers["beat"])
    if "decode" in handlers:
        app.router.add_post(DECODE, handlers["decode"])
    async with AsyncExitStack() as stack:
        yield await listen(stack, app, HOST, 0)


@asynccontextmanager
async def a_peer(serve: Peer) -> AsyncIterator[str]:
    """The URL of something that reads the head of a request and then does as it likes."""
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await reader.readuntil(b"\r\n\r\n")
            await serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, HOST, 0)
    try:
        yield f"http://{HOST}:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def says(data: bytes) -> Peer:
    """Sends these bytes and closes."""

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()

    return serve


async def silence(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    """Says nothing until the client leaves."""
    while await reader.read(65536):
        pass


def refuses(status: int, code: str = "worker_refused", message: str = "full") -> Handler:
    """Answers every job with an error."""

    async def handle(_: web.Request) -> web.Response:
        body = WorkerError(code=code, message=message)
        return web.Response(status=status, body=body.model_dump_json())

    return handle


async def locates(_: web.Request) -> web.Response:
    """Takes every prefill job."""
    return web.Response(body=a_location().model_dump_json(), content_type="application/json")


def streams(*frames: tuple[FrameKind, bytes]) -> Handler:
    """Answers every decode job with these frames, each in a write of its own."""

    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for kind, payload in frames:
            await response.write(pack_frame(kind, payload))
        await response.write_eof()
        return response

    return handle


async def read_all(
    stream: DecodeStream, found: list[tuple[FrameKind, bytes]] | None = None
) -> list[tuple[FrameKind, bytes]]:
    """Every frame to the end; those before an error are in `found`."""
    frames = [] if found is None else found
    while batch := await stream.frames():
        frames += batch
    return frames


# --- Prefill ---------------------------------------------------------------------------------


async def test_a_prefill_job_arrives_as_it_was_sent(client: HttpWorkerClient) -> None:
    """Header and tokens; the location comes back."""
    seen: list[bytes] = []

    async def handle(request: web.Request) -> web.Response:
        seen.append(await request.read())
        return await locates(request)

    async with a_worker(prefill=handle) as url:
        location = await client.prefill(url, a_prefill_job(), a_prompt())

    head, payload = unpack_parcel(seen[0])
    assert PrefillJob.model_validate_json(head) == a_prefill_job()
    assert payload == a_prompt().data
    assert location == a_location()


@pytest.mark.parametrize(
    ("status", "code"), [(503, "worker_refused"), (503, "draining"), (400, "malformed_request")]
)
async def test_a_prefill_that_is_refused_says_why(
    client: HttpWorkerClient, status: int, code: str
) -> None:
    """Whatever the reason: this worker did not take it."""
    async with a_worker(prefill=refuses(status, code, "no room")) as url:
        with pytest.raises(WorkerRefused, match="no room"):
            await client.prefill(url, a_prefill_job(), a_prompt())


async def test_a_refusal_without_a_reason_is_a_refusal(client: HttpWorkerClient) -> None:
    """A worker of the other role has no such route."""
    async with a_worker(decode=streams()) as url:
        with pytest.raises(WorkerRefused, match="without a reason"):
            await client.prefill(url, a_prefill_job(), a_prompt())


async def test_a_redirect_is_not_followed(client: HttpWorkerClient) -> None:
    """A worker cannot send the router to an address of its choice."""

    async def handle(_: web.Request) -> web.Response:
        raise web.HTTPTemporaryRedirect("http://192.0.2.1/worker/v1/prefill")

    async with a_worker(prefill=handle) as url:
        with pytest.raises(WorkerRefused):
            await client.prefill(url, a_prefill_job(), a_prompt())


async def test_nobody_there_is_a_worker_lost(client: HttpWorkerClient) -> None:
    """Without the address in the message: it goes to clients."""
    async with a_worker(prefill=locates) as url:
        pass

    with pytest.raises(WorkerLost) as lost:
        await client.prefill(url, a_prefill_job(), a_prompt())

    assert HOST not in lost.value.message


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 20",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
        b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"worker_id":',
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 1000\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    ],
    ids=[
        "before the headers",
        "in the status",
        "after the headers",
        "in the content",
        "in a refusal",
        "another protocol",
        "a third one",
    ],
)
async def test_a_connection_cut_anywhere_is_a_worker_lost(
    client: HttpWorkerClient, answer: bytes
) -> None:
    """Nobody can tell whether the job was taken."""
    async with a_peer(says(answer)) as url:
        with pytest.raises(WorkerLost):
            await client.prefill(url, a_prefill_job(), a_prompt())


@pytest.mark.parametrize("content", [b"", b"{}", b"null", b'{"worker_id": 5}', b"\xff\xfe"])
async def test_a_location_that_is_none_may_still_be_a_segment(
    client: HttpWorkerClient, content: bytes
) -> None:
    """The worker took the job, so it must be told to stop: that is a worker lost, no refusal."""

    async def handle(_: web.Request) -> web.Response:
        return web.Response(body=content, content_type="application/json")

    async with a_worker(prefill=handle) as url:
        with pytest.raises(WorkerLost, match="malformed"):
            await client.prefill(url, a_prefill_job(), a_prompt())


async def test_an_answer_without_end_is_not_read_to_its_end(client: HttpWorkerClient) -> None:
    """Memory is bounded by what a location can be."""

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n")
        while True:
            writer.write(b" " * 65536)
            await writer.drain()

    async with a_peer(serve) as url:
        with pytest.raises(WorkerLost):
            await client.prefill(url, a_prefill_job(), a_prompt())


async def test_an_answer_in_pieces_is_put_together(client: HttpWorkerClient) -> None:
    """The network may cut it anywhere."""
    content = a_location().model_dump_json().encode()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content))
        await writer.drain()
        for start in range(0, len(content), 100):
            writer.write(content[start : start + 100])
            await writer.drain()
            for _ in range(5):
                await asyncio.sleep(0)

    async with a_peer(serve) as url:
        location = await client.prefill(url, a_prefill_job(), a_prompt())

    assert location == a_location()


async def test_a_prefill_worker_that_says_nothing_is_not_waited_for(
    impatient: HttpWorkerClient,
) -> None:
    """It took the connection, and perhaps the job."""
    async with a_peer(silence) as url:
        with pytest.raises(WorkerTimeout):
            await impatient.prefill(url, a_prefill_job(), a_prompt())


async def test_headers_alone_are_no_answer(impatient: HttpWorkerClient) -> None:
    """The time is for the whole of it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        await silence(reader, writer)

    async with a_peer(serve) as url:
        with pytest.raises(WorkerTimeout):
            await impatient.prefill(url, a_prefill_job(), a_prompt())


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://[::1", "http://", "nonsense"])
async def test_an_address_that_leads_nowhere_is_a_worker_lost(
    client: HttpWorkerClient, url: str
) -> None:
    """What a worker registered is not trusted to be usable."""
    with pytest.raises(WorkerLost):
        await client.prefill(url, a_prefill_job(), a_prompt())


# --- Aborts ----------------------------------------------------------------------------------


async def test_an_abort_names_the_job(client: HttpWorkerClient) -> None:
    """The id in the path is that of the attempt."""
    seen: list[str] = []

    async def handle(request: web.Request) -> web.Response:
        seen.append(request.match_info["job_id"])
        return web.Response(status=204)

    async with a_worker(abort=handle) as url:
        await client.abort_prefill(url, "req-1.2")

    assert seen == ["req-1.2"]


@pytest.mark.parametrize("serve", [says(b""), says(b"nonsense\r\n\r\n"), silence])
async def test_an_abort_that_fails_is_nobodys_error(
    impatient: HttpWorkerClient, serve: Peer
) -> None:
    """A lease ends what it misses."""
    async with a_peer(serve) as url:
        await impatient.abort_prefill(url, "req-1.2")


async def test_an_abort_at_a_dead_worker_is_nobodys_error(client: HttpWorkerClient) -> None:
    """There is nothing left to stop."""
    await client.abort_prefill("http://127.0.0.1:1", "req-1.2")


# --- Decode ----------------------------------------------------------------------------------


async def test_a_decode_answers_frame_by_frame(client: HttpWorkerClient) -> None:
    """In order, whatever arrives together; then nothing more."""
    frames = (
        (FrameKind.ALIVE, b""),
        (FrameKind.CONTENT, b"a" * 100_000),
        (FrameKind.CONTENT, b"b"),
        (FrameKind.REPORT, b"{}"),
    )
    async with a_worker(decode=streams(*frames)) as url:
        stream = await client.decode(url, a_decode_job(), a_prompt())
        found = await read_all(stream)
        again = await stream.frames()
        stream.close()

    assert found == list(frames)
    assert again == []


async def test_a_decode_job_arrives_as_it_was_sent(client: HttpWorkerClient) -> None:
    """Header, location in it, and tokens."""
    seen: list[bytes] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        seen.append(await request.read())
        return await streams()(request)

    async with a_worker(decode=handle) as url:
        stream = await client.decode(url, a_decode_job(), a_prompt(20_000))
        await read_all(stream)

    head, payload = unpack_parcel(seen[0])
    assert DecodeJob.model_validate_json(head) == a_decode_job()
    assert payload == a_prompt(20_000).data


async def test_a_decode_that_is_refused_says_why(client: HttpWorkerClient) -> None:
    """Before a stream has begun."""
    async with a_worker(decode=refuses(503, "draining", "leaving")) as url:
        with pytest.raises(WorkerRefused, match="leaving"):
            await client.decode(url, a_decode_job(), a_prompt())


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 200", b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 9\r\n\r\n", b"x"],
)
async def test_a_decode_cut_before_its_headers_is_a_worker_lost(
    client: HttpWorkerClient, answer: bytes
) -> None:
    """Nobody can tell whether the job was taken."""
    async with a_peer(says(answer)) as url:
        with pytest.raises(WorkerLost):
            await client.decode(url, a_decode_job(), a_prompt())


FRAME = pack_frame(FrameKind.CONTENT, b"hello")


@pytest.mark.parametrize(
    ("content", "frames"),
    [
        (b"", 0),
        (FRAME, 1),
        (FRAME + FRAME[:3], 1),
        (FRAME + FRAME[:8], 1),
        (b"\x99" + FRAME[1:], 0),
        (b"\x01\xff\xff\xff\xff", 0),
    ],
    ids=[
        "at once",
        "between frames",
        "in a frame's head",
        "in a frame's payload",
        "an unknown kind",
        "a frame without bound",
    ],
)
async def test_a_stream_that_breaks_is_a_worker_lost(
    client: HttpWorkerClient, content: bytes, frames: int
) -> None:
    """What came whole before the break is given out first."""
    chunk = b"%x\r\n%b\r\n" % (len(content), content) if content else b""
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk
    async with a_peer(says(answer)) as url:
        stream = await client.decode(url, a_decode_job(), a_prompt())
        found: list[tuple[FrameKind, bytes]] = []
        with pytest.raises(WorkerLost):
            await read_all(stream, found)
        stream.close()

    assert found == [(FrameKind.CONTENT, b"hello")] * frames


@pytest.mark.parametrize("chunk", [b"zz\r\nhello\r\n", b"5\r\nhelloworld\r\n", b"-5\r\nhello\r\n"])
async def test_chunks_that_are_none_are_a_worker_lost(
    client: HttpWorkerClient, chunk: bytes
) -> None:
    """A worker that speaks no HTTP any more."""
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk
    async with a_peer(says(answer)) as url:
        with pytest.raises(WorkerLost):
            await read_all(await client.decode(url, a_decode_job(), a_prompt()))


async def test_a_stream_that_ends_in_a_frame_just_ends(client: HttpWorkerClient) -> None:
    """The answer was complete as HTTP: what is missing is the report, and the flight sees that."""
    content = FRAME[:4]
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content
    async with a_peer(says(answer)) as url:
        stream = await client.decode(url, a_decode_job(), a_prompt())

        assert await stream.frames() == []


async def test_a_decode_worker_that_says_nothing_is_not_waited_for(
    impatient: HttpWorkerClient,
) -> None:
    """Not even headers."""
    async with a_peer(silence) as url:
        with pytest.raises(WorkerTimeout):
            await impatient.decode(url, a_decode_job(), a_prompt())


async def test_a_stream_that_falls_silent_is_not_waited_for(impatient: HttpWorkerClient) -> None:
    """A sign of life would have been enough."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        writer.write(b"%x\r\n%b\r\n" % (len(FRAME), FRAME))
        await silence(reader, writer)

    async with a_peer(serve) as url:
        stream = await impatient.decode(url, a_decode_job(), a_prompt())
        first = await stream.frames()
        with pytest.raises(WorkerTimeout):
            await stream.frames()
        stream.close()

    assert first == [(FrameKind.CONTENT, b"hello")]


async def test_closing_a_stream_stops_its_worker(client: HttpWorkerClient) -> None:
    """The worker's handler is cancelled, with the runner that production uses."""
    stopped = asyncio.Event()

    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(FRAME)
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return response

    async with a_worker(decode=handle) as url:
        stream = await client.decode(url, a_decode_job(), a_prompt())
        await stream.frames()

        stream.close()
        stream.close()

        async with asyncio.timeout(5):
            await stopped.wait()


@pytest.mark.parametrize("kind", ["prefill", "decode"])
async def test_a_call_that_is_cancelled_stops_its_worker(
    client: HttpWorkerClient, kind: str
) -> None:
    """While it waits for headers: the client of the router has left."""
    started, stopped = asyncio.Event(), asyncio.Event()

    async def handle(_: web.Request) -> web.StreamResponse:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        raise AssertionError

    async with a_worker(prefill=handle, decode=handle) as url:
        call: Awaitable[Any] = (
            client.prefill(url, a_prefill_job(), a_prompt())
            if kind == "prefill"
            else client.decode(url, a_decode_job(), a_prompt())
        )
        task = asyncio.ensure_future(call)
        await started.wait()

        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

        async with asyncio.timeout(5):
            await stopped.wait()


# --- Connections -----------------------------------------------------------------------------


class Ports:
    """Counts the connections its server sees."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def note(self, request: web.Request) -> None:
        assert request.transport is not None
        self.seen.append(request.transport.get_extra_info("peername")[1])

    async def prefill(self, request: web.Request) -> web.Response:
        self.note(request)
        return await locates(request)

    async def decode(self, request: web.Request) -> web.StreamResponse:
        self.note(request)
        return await streams((FrameKind.CONTENT, b"a"), (FrameKind.REPORT, b"{}"))(request)


async def test_a_connection_serves_one_job_after_the_other(client: HttpWorkerClient) -> None:
    """Prefill, aborts and streams that were read to their end."""
    ports = Ports()
    async with a_worker(prefill=ports.prefill, decode=ports.decode) as url:
        for _ in range(3):
            await client.prefill(url, a_prefill_job(), a_prompt())
            stream = await client.decode(url, a_decode_job(), a_prompt())
            await read_all(stream)
            stream.close()

    assert len(ports.seen) == 6
    assert len(set(ports.seen)) == 1


async def test_a_refusal_costs_no_connection(client: HttpWorkerClient) -> None:
    """A full worker is asked again soon."""
    ports = Ports()

    async def handle(request: web.Request) -> web.Response:
        ports.note(request)
        await request.read()
        return web.json_response({"code": "worker_refused", "message": "full"}, status=503)

    async with a_worker(prefill=handle) as url:
        for _ in range(3):
            with pytest.raises(WorkerRefused):
                await client.prefill(url, a_prefill_job(), a_prompt())

    assert len(set(ports.seen)) == 1


async def test_a_stream_that_was_closed_early_is_never_mixed_with_the_next(
    client: HttpWorkerClient,
) -> None:
    """A cancelled answer must not reach another request."""
    ports = Ports()
    gate = asyncio.Event()

    async def handle(request: web.Request) -> web.StreamResponse:
        ports.note(request)
        head, _ = unpack_parcel(await request.read())
        name = DecodeJob.model_validate_json(head).request_id.encode()
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(pack_frame(FrameKind.CONTENT, name))
        if name == b"first":
            await gate.wait()
        await response.write(pack_frame(FrameKind.CONTENT, name))
        await response.write_eof()
        return response

    async with a_worker(decode=handle) as url:
        first = await client.decode(url, a_decode_job(request_id="first"), a_prompt())
        await first.frames()
        first.close()
        second = await client.decode(url, a_decode_job(request_id="second"), a_prompt())
        gate.set()
        found = await read_all(second)

    assert {payload for _, payload in found} == {b"second"}
    assert len(set(ports.seen)) == 2


async def test_cancelled_calls_are_never_mixed_with_the_next(client: HttpWorkerClient) -> None:
    """Each answer goes to the call that asked for it, however many gave up before."""

    async def handle(request: web.Request) -> web.Response:
        head, _ = unpack_parcel(await request.read())
        name = PrefillJob.model_validate_json(head).request_id
        location = a_location().model_copy(update={"segment_id": name})
        await asyncio.sleep(0)
        return web.Response(body=location.model_dump_json())

    async with a_worker(prefill=handle) as url:
        for number in range(100):
            doomed = asyncio.ensure_future(
                client.prefill(url, a_prefill_job(request_id=f"doomed-{number}"), a_prompt())
            )
            for _ in range(number % 20):
                await asyncio.sleep(0)
            doomed.cancel()
            location = await client.prefill(
                url, a_prefill_job(request_id=f"wanted-{number}"), a_prompt()
            )
            assert location.segment_id == f"wanted-{number}"
            await asyncio.gather(doomed, return_exceptions=True)


async def test_a_worker_that_restarted_is_reached_again() -> None:
    """A kept connection to its old life fails at most the request that finds it."""
    client = HttpWorkerClient(LimitsConfig())
    async with a_worker(prefill=locates) as url:
        await client.prefill(url, a_prefill_job(), a_prompt())
    port = int(url.rpartition(":")[2])

    app = web.Application()
    app.router.add_post(PREFILL, locates)
    async with AsyncExitStack() as stack:
        await listen(stack, app, HOST, port)
        try:
            await client.prefill(url, a_prefill_job(), a_prompt())
        except WorkerLost:
            await client.prefill(url, a_prefill_job(), a_prompt())
    await client.close()


async def test_after_closing_there_are_no_more_connections(client: HttpWorkerClient) -> None:
    """Streams that are open end."""

    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(FRAME)
        await asyncio.Event().wait()
        return response

    async with a_worker(decode=handle) as url:
        stream = await client.decode(url, a_decode_job(), a_prompt())
        await stream.frames()

        await client.close()

        with pytest.raises(WorkerLost):
            await stream.frames()


# --- Whether a worker has died ----------------------------------------------------------------


async def beats(_: web.Request) -> web.Response:
    """A worker that lives."""
    return web.Response(body=a_beat(incarnation="i1").model_dump_json())


@pytest.mark.parametrize(("incarnation", "has_died"), [("i1", False), ("i0", True)])
async def test_a_worker_that_answers_says_which_life_it_is(
    client: HttpWorkerClient, incarnation: str, *, has_died: bool
) -> None:
    async with a_worker(beat=beats) as url:
        assert await client.has_died(url, incarnation) == has_died


async def test_nobody_listens_where_a_process_has_ended(client: HttpWorkerClient) -> None:
    assert await client.has_died(await nowhere(), "i1")


@pytest.mark.parametrize(
    "peer",
    [
        silence,
        says(b""),
        says(b"no http"),
        says(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nno json"),
        says(b"HTTP/1.1 200 OK\r\nContent-Length: 70\r\n\r\nno"),
        says(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"),
    ],
    ids=["silent", "closed", "no http", "no beat", "cut", "an error"],
)
async def test_a_worker_of_which_nobody_can_tell_has_not_died(
    client: HttpWorkerClient, peer: Peer
) -> None:
    """Somebody is there; and a link that is cut looks like silence. Known within a second."""
    async with a_peer(peer) as url, asyncio.timeout(20):
        assert not await client.has_died(url, "i1")


@pytest.mark.parametrize("rest", [b"", b"HTTP/1.1 200 OK\r\nContent-Le"], ids=["closed", "cut"])
async def test_a_worker_whose_relay_drops_connections_has_died_where_a_neighbour_answers(
    client: HttpWorkerClient, rest: bytes
) -> None:
    async with a_peer(says(rest)) as url, a_worker(beat=beats) as neighbour:
        assert await client.has_died(url, "i1", neighbours=[await nowhere(), neighbour])


@pytest.mark.parametrize(
    "neighbour",
    [says(b""), silence, says(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")],
    ids=["closed", "silent", "an error"],
)
async def test_a_link_that_is_cut_for_neighbours_too_kills_nobody(
    client: HttpWorkerClient, neighbour: Peer
) -> None:
    async with a_peer(says(b"")) as url, a_peer(neighbour) as other:
        assert not await client.has_died(url, "i1", neighbours=[other])


async def test_a_worker_that_is_silent_has_not_died_whatever_its_neighbours_do(
    client: HttpWorkerClient,
) -> None:
    """It may be paused, or its own wire be cut."""
    async with a_peer(silence) as url, a_worker(beat=beats) as neighbour:
        assert not await client.has_died(url, "i1", neighbours=[neighbour])


async def test_an_address_that_nobody_knows_is_no_proof_of_death(client: HttpWorkerClient) -> None:
    async with asyncio.timeout(5):
        assert not await client.has_died("http://nowhere.invalid:1", "i1")


async def test_a_client_that_was_closed_cannot_tell() -> None:
    client = HttpWorkerClient(LimitsConfig())
    await client.close()

    assert not await client.has_died("http://127.0.0.1:1", "i1")


async def nowhere() -> str:
    """A URL where nobody listens."""
    async with a_worker() as url:
        return url


async def test_a_job_that_finds_nobody_was_seen_by_nobody(client: HttpWorkerClient) -> None:
    """Unlike one whose connection broke: that one may have been begun."""
    url = await nowhere()

    with pytest.raises(WorkerUnreached):
        await client.prefill(url, a_prefill_job(), a_prompt())
    with pytest.raises(WorkerUnreached):
        await client.decode(url, a_decode_job(), a_prompt())


async def test_a_job_whose_connection_breaks_may_have_been_seen(client: HttpWorkerClient) -> None:
    async with a_peer(says(b"")) as url:
        with pytest.raises(WorkerLost) as prefill:
            await client.prefill(url, a_prefill_job(), a_prompt())
        with pytest.raises(WorkerLost) as decode:
            await client.decode(url, a_decode_job(), a_prompt())

    assert not isinstance(prefill.value, WorkerUnreached)
    assert not isinstance(decode.value, WorkerUnreached)
