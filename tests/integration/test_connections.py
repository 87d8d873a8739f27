"""Connections within bounds, on real sockets and the production runner."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

import pytest
from edge_builders import LONG, Edge, an_edge, raw_request, until, until_idle
from router_builders import DECODE_1, EAST_1, url_of

from controlplane.router.memory_workers import Gate, a_report
from controlplane.wire import FrameKind

REPORT = (FrameKind.REPORT, a_report().model_dump_json().encode())
HALF_A_HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"


async def ends(reader: asyncio.StreamReader) -> bytes:
    """What still comes before the connection ends."""
    data = b""
    async with asyncio.timeout(5):
        with suppress(ConnectionError):
            while part := await reader.read(1 << 20):
                data += part
    return data


async def answered(reader: asyncio.StreamReader) -> bytes:
    """The head of the next answer; its body, which has a length, is read away."""
    async with asyncio.timeout(5):
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1])
            for line in head.lower().splitlines()
            if line.startswith(b"content-length")
        )
        await reader.readexactly(length)
    return head


# --- Heads ------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [b"", b"P", HALF_A_HEAD], ids=["silent", "a letter", "half"])
async def test_a_head_that_does_not_come_closes_its_connection(head: bytes) -> None:
    """In the time that a head has, and without an answer: nobody asked anything."""
    async with an_edge(header_timeout_s=0.05) as edge:
        reader, writer = await edge.connect()
        writer.write(head)

        assert await ends(reader) == b""

        assert edge.closed_on("head") == 1
        writer.close()


async def test_a_head_that_drips_has_no_more_time() -> None:
    """A byte now and then is no progress."""
    async with an_edge(header_timeout_s=0.2) as edge:
        reader, writer = await edge.connect()

        async def drip() -> None:
            with suppress(ConnectionError):
                for byte in HALF_A_HEAD * 100:
                    writer.write(bytes((byte,)))
                    await asyncio.sleep(0.01)

        dripping = asyncio.ensure_future(drip())

        assert await ends(reader) == b""

        dripping.cancel()
        writer.close()


async def test_the_second_head_of_a_connection_has_its_time_as_well() -> None:
    """Also when the first request was in order."""
    async with an_edge(header_timeout_s=0.1) as edge:
        reader, writer = await edge.connect()
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 200 " in await answered(reader)

        await asyncio.sleep(0.2)
        writer.write(HALF_A_HEAD)

        assert await ends(reader) == b""
        assert edge.closed_on("head") == 1
        writer.close()


async def test_a_connection_between_two_requests_is_not_a_late_head() -> None:
    """It is bounded by the time that idle connections are kept."""
    async with an_edge(header_timeout_s=0.05, keepalive_timeout_s=0.4) as edge:
        reader, writer = await edge.connect()
        for _ in range(2):
            writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b" 200 " in await answered(reader)
            await asyncio.sleep(0.15)

        assert await ends(reader) == b""

        assert edge.closed_on("head") == 0
        writer.close()


async def test_a_body_that_takes_its_time_is_not_a_late_head() -> None:
    """It has a bound of its own."""
    async with an_edge(header_timeout_s=0.05) as edge:
        edge.router.workers.on_decode(
            url_of(DECODE_1), stream=[[(FrameKind.CONTENT, b"{}"), REPORT]]
        )
        edge.router.taken += 1
        reader, writer = await edge.connect()
        request = raw_request()
        for start in range(0, len(request), 40):
            writer.write(request[start : start + 40])
            await asyncio.sleep(0.02 if start > 120 else 0)

        assert b" 200 " in await answered(reader)
        writer.close()


async def test_half_a_head_behind_a_running_request_does_not_harm_it() -> None:
    """Its answer comes first."""
    async with an_edge(header_timeout_s=0.05) as edge:
        gate = Gate()
        edge.router.workers.on_prefill(url_of(EAST_1), gate)
        edge.router.workers.on_decode(
            url_of(DECODE_1), stream=[[(FrameKind.CONTENT, b"{}"), REPORT]]
        )
        edge.router.taken += 1
        reader, writer = await edge.connect()
        writer.write(raw_request())
        await gate.reached()
        writer.write(HALF_A_HEAD)
        await asyncio.sleep(0.15)

        gate.open()

        assert b" 200 " in await answered(reader)
        assert await ends(reader) == b"", "then the half-sent one is too late"
        writer.close()


# --- Numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "cause"),
    [({"connections_max": 2}, "connections"), ({"peer_connections_max": 2}, "peer")],
)
async def test_one_connection_too_many_is_closed_and_the_others_stay(
    limits: dict[str, int], cause: str
) -> None:
    """And its place is free again when one of the others leaves."""
    async with an_edge(**limits) as edge:
        first, second = await edge.connect(), await edge.connect()
        reader, writer = await edge.connect()

        assert await ends(reader) == b""

        assert edge.closed_on(cause) == 1
        second[1].write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 200 " in await answered(second[0])
        first[1].close()
        await first[1].wait_closed()
        await asyncio.sleep(0.05)
        third = await edge.connect()
        third[1].write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 200 " in await answered(third[0])
        for one in (writer, second[1], third[1]):
            one.close()


# --- Clients that do not read -----------------------------------------------------------------


def a_deaf_socket(edge: Edge) -> socket.socket:
    """A client that takes a few kilobytes and no more."""
    host, _, port = edge.url.removeprefix("http://").partition(":")
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.connect((host, int(port)))
    deaf.setblocking(False)
    return deaf


async def test_a_whole_answer_that_nobody_takes_is_cut_off() -> None:
    """It was handed over at once, so nothing of the request waits for it any more."""
    async with an_edge(client_write_timeout_s=0.2) as edge:
        much = (FrameKind.CONTENT, b"x" * (8 << 20))
        edge.router.workers.on_decode(url_of(DECODE_1), stream=[[much, REPORT]])
        edge.router.taken += 1
        with a_deaf_socket(edge) as deaf:
            deaf.send(raw_request())

            await until(lambda: edge.closed_on("stalled") == 1)

            await until_idle(edge.router)


async def test_a_client_that_reads_slowly_gets_everything() -> None:
    """Slow is not stalled."""
    async with an_edge(client_write_timeout_s=1.5) as edge:
        much = (FrameKind.CONTENT, b"x" * (4 << 20))
        edge.router.workers.on_decode(url_of(DECODE_1), stream=[[much, REPORT]])
        edge.router.taken += 1
        reader, writer = await edge.connect()
        writer.write(raw_request())

        length = 0
        async with asyncio.timeout(20):
            while length < 4 << 20:
                length += len(await reader.read(64 << 10))
                await asyncio.sleep(0.04)

        assert edge.closed_on("stalled") == 0
        writer.close()


# --- Leaving ----------------------------------------------------------------------------------


async def test_a_listener_that_leaves_closes_what_is_idle_and_finishes_what_is_not() -> None:
    """New connections are still answered, so that readiness and refusals can be told."""
    async with an_edge() as edge:
        gate = Gate()
        edge.router.workers.on_prefill(url_of(EAST_1), gate)
        edge.router.workers.on_decode(
            url_of(DECODE_1), stream=[[(FrameKind.CONTENT, b"{}"), REPORT]]
        )
        idle_reader, idle_writer = await edge.connect()
        idle_writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        await answered(idle_reader)
        late_reader, late_writer = await edge.connect()
        late_writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        await answered(late_reader)
        edge.router.taken += 1
        reader, writer = await edge.connect()
        writer.write(raw_request())
        await gate.reached()
        half_reader, half_writer = await edge.connect()
        half_writer.write(HALF_A_HEAD)
        await asyncio.sleep(0.05)

        edge.router.dispatcher.is_draining = True
        leaving = asyncio.ensure_future(edge.listener.leave(0.3))
        await asyncio.sleep(0.05)
        late_writer.write(b"GET /ready HTTP/1.1\r\nHost: x\r\n\r\n")
        told = await ends(late_reader)
        draining = asyncio.ensure_future(edge.router.dispatcher.drain(5))
        await leaving

        assert b"connection: close" in told.lower(), "a request on its way is answered"

        assert await ends(idle_reader) == b""
        half_writer.write(b"Content-Length: 2\r\n\r\n{}")
        refused = await ends(half_reader)
        assert refused.startswith((b"HTTP/1.1 4", b"HTTP/1.1 503"))
        assert b"connection: close" in refused.lower()
        gate.open()
        answer = await ends(reader)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in answer.lower()
        assert answer.endswith(b"\r\n\r\n{}")
        assert await draining
        for one in (idle_writer, late_writer, writer, half_writer):
            one.close()


async def test_a_request_that_comes_in_the_very_moment_of_leaving_is_answered() -> None:
    """It is here, although nobody has begun to answer it yet: its connection is not idle."""
    async with an_edge() as edge:
        reader, writer = await edge.connect()
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        await answered(reader)
        server = edge.listener._server
        (connection,) = server._open
        await until(lambda: connection.is_idle)  # type: ignore[attr-defined]

        connection.data_received(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        server.close_idle()

        assert b" 200 " in await answered(reader)
        writer.close()


async def test_what_was_written_before_the_end_is_still_delivered() -> None:
    """Also to a client that had not read it yet."""
    much = (FrameKind.CONTENT, b"x" * (3 << 20))
    async with an_edge() as edge:
        edge.router.workers.on_decode(url_of(DECODE_1), stream=[[much, REPORT]])
        edge.router.taken += 1
        reader, writer = await edge.connect()
        writer.write(raw_request(prompt=LONG))
        await until(lambda: bool(edge.router.recorder.recent()))
        reading = asyncio.ensure_future(ends(reader))

    assert len(await reading) > 3 << 20
    writer.close()
