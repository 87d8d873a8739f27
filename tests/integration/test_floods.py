"""
Floods of clients that ask for nothing, take nothing or ask for too much, and what others notice.

`PRFAAS_FLOOD` times the numbers, for the full form. Times are printed. What is asserted of them is
a ratio of medians, or of the best of many, to a peer of the same run: a machine with other work may
be away at any moment, and says nothing of a router by that.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import pytest
from edge_builders import Edge, an_edge, raw_request, until
from router_builders import DECODE_1, DECODE_2, EAST_1, a_busy_beat, url_of

from controlplane.edge.requests import ParsedRequest, parse_request
from controlplane.router.memory_workers import Gate, a_report
from controlplane.wire import FrameKind

REPORT = (FrameKind.REPORT, a_report().model_dump_json().encode())
SCALE = int(os.environ.get("PRFAAS_FLOOD", "1"))

#: What nobody notices on a busy machine; a flood that hurts costs others hundreds of times as much.
SLOWER = 20


def an_address(edge: Edge) -> tuple[str, int]:
    host, _, port = edge.url.removeprefix("http://").partition(":")
    return host, int(port)


def resident_bytes() -> int:
    """Memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def p99(values: list[float]) -> float:
    return quantiles(values, n=100)[98] if len(values) > 1 else values[0]


@asynccontextmanager
async def lag_of_the_loop() -> AsyncIterator[list[float]]:
    """How late a timer of 5 ms was, again and again, in seconds."""
    late_s: list[float] = []

    async def measure() -> None:
        while True:
            began_s = time.perf_counter()
            await asyncio.sleep(0.005)
            late_s.append(time.perf_counter() - began_s - 0.005)

    measuring = asyncio.ensure_future(measure())
    try:
        yield late_s
    finally:
        measuring.cancel()


async def answer_times_s(edge: Edge, count: int) -> list[float]:
    """How long ordinary requests take, one after another."""
    took_s = []
    for _ in range(count):
        edge.router.workers.on_decode(
            url_of(DECODE_1), stream=[[(FrameKind.CONTENT, b"{}"), REPORT]]
        )
        began_s = time.perf_counter()
        async with edge.post() as answer:
            assert answer.status == 200, await answer.text()
            await answer.read()
        took_s.append(time.perf_counter() - began_s)
        await edge.router.recorder.flush()  # no recorder runs here, and workers have few places
    return took_s


async def make_room(edge: Edge) -> None:
    """Workers that take thousands of requests."""
    room: dict[str, Any] = {"requests_max": 10_000, "incarnation": "i2"}
    await edge.router.register(
        a_busy_beat(EAST_1, tokens=100, **room),
        a_busy_beat(DECODE_1, tokens=0, requests=0, **room),
        a_busy_beat(DECODE_2, tokens=0, requests=9_000, **room),
    )


async def test_half_open_connections_are_closed_in_time_and_harm_nobody() -> None:
    """By the default deadline of 5 s; others are served meanwhile as before."""
    count = 500 * SCALE
    async with an_edge() as edge, AsyncExitStack() as stack:
        before_s = await answer_times_s(edge, 50)
        began_s = time.monotonic()
        for _ in range(count):
            half_open = stack.enter_context(socket.create_connection(an_address(edge)))
            half_open.setblocking(False)
            half_open.send(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n")
            await asyncio.sleep(0)
        opened_s = time.monotonic()

        during_s = await answer_times_s(edge, 50)
        await until(lambda: edge.closed_on("head") == count, within_s=30)
        closed_s = time.monotonic()

        print(
            f"{count} half-open: opened in {opened_s - began_s:.2f} s, all closed "
            f"{closed_s - opened_s:.2f} s later; others p99 {p99(before_s) * 1e3:.1f} ms before, "
            f"{p99(during_s) * 1e3:.1f} ms during"
        )
        assert median(during_s) < SLOWER * median(before_s)


async def test_clients_that_stop_reading_hold_little_and_harm_nobody() -> None:
    """256 KiB each at most above their socket buffers, until they are cut off."""
    count = 200 * SCALE
    async with (
        an_edge(client_write_timeout_s=15 * SCALE - 10, requests_max=4096) as edge,
        AsyncExitStack() as stack,
    ):
        much = (FrameKind.CONTENT, b"data: " + b"x" * (32 << 10) + b"\n\n")
        before_s = await answer_times_s(edge, 50)
        await make_room(edge)
        before_bytes = resident_bytes()
        for _ in range(count):
            edge.router.workers.on_decode(url_of(DECODE_1), stream=[[much]] * 400)
            edge.router.taken += 1
            deaf = stack.enter_context(socket.socket())
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect(an_address(edge))
            deaf.setblocking(False)
            deaf.send(raw_request(stream=True))
            await asyncio.sleep(0)
        await until(lambda: edge.router.dispatcher.in_flight == count, within_s=30 * SCALE)
        await asyncio.sleep(1)

        held_bytes = (resident_bytes() - before_bytes) / count
        during_s = await answer_times_s(edge, 50)
        cut_s = time.monotonic()
        await until(lambda: edge.router.dispatcher.in_flight == 0, within_s=40 * SCALE)
        cut_s = time.monotonic() - cut_s

        print(
            f"{count} stalled readers: {held_bytes / 1024:.0f} KiB each; others p99 "
            f"{p99(before_s) * 1e3:.1f} ms before, {p99(during_s) * 1e3:.1f} ms during; "
            f"all cut off {cut_s:.1f} s later"
        )
        assert held_bytes <= 256 << 10
        assert median(during_s) < SLOWER * median(before_s)


async def test_refusals_are_fast_under_load() -> None:
    """A client that cannot be served is told so at once, and when to come back."""
    async with an_edge(requests_max=1, queue_requests_max=1) as edge:
        gate = Gate()
        edge.router.workers.on_prefill(url_of(EAST_1), gate)
        holding = [asyncio.ensure_future(edge.post().__aenter__())]
        await gate.reached()
        holding.append(asyncio.ensure_future(edge.ask().__aenter__()))
        await until(lambda: edge.router.dispatcher.in_flight == 2)
        took_s: list[float] = []
        nothing_s: list[float] = []
        waits_ms: set[int] = set()

        async def client() -> None:
            for _ in range(100):
                began_s = time.perf_counter()
                async with edge.ask() as answer:
                    assert answer.status == 429
                    await answer.read()
                took_s.append(time.perf_counter() - began_s)
                waits_ms.add(int(answer.headers["retry-after-ms"]))
                assert "retry-after" in answer.headers
                began_s = time.perf_counter()
                async with edge.session.get(f"{edge.url}/health") as nothing:
                    await nothing.read()
                nothing_s.append(time.perf_counter() - began_s)
                await asyncio.sleep(0.005)

        await asyncio.gather(*(client() for _ in range(4)))

        print(
            f"refusals: p99 {p99(took_s) * 1e3:.1f} ms beside {p99(nothing_s) * 1e3:.1f} ms for an "
            f"empty request; {len(waits_ms)} different waits of 400"
        )
        assert median(took_s) <= SLOWER * median(nothing_s)
        assert len(waits_ms) > 300
        for task in holding:
            task.cancel()


#: Hostile bodies, one after another.
ASKED = 20

#: A body may cost as much as parsing so many: what is slow in it shows as a hundred.
PARSES_MAX = 10

#: What a body of a context of 16,384 tokens may have.
_BYTES = 320_000

HOSTILE = {
    "arrays": b"[" + b"[]," * (_BYTES // 3) + b"[]]",
    "objects": b"[" + b"{}," * (_BYTES // 3) + b"{}]",
    "numbers": b"[" + b"1," * (_BYTES // 2) + b"1]",
    "long text": b'"' + b"x" * _BYTES + b'"',
    "escapes": b'"' + b"\\u0041" * (_BYTES // 6) + b'"',
    "keys": b"{" + b",".join(b'"k%d":1' % number for number in range(_BYTES // 12)) + b"}",
    "brackets": b"[" * _BYTES,
    "digits": b"9" * _BYTES,
}


@pytest.fixture
def quiet_gc() -> Iterator[None]:
    """Garbage as a router collects it: what was there before is not looked through each time."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000)
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


@pytest.fixture(scope="module")
def parsing_s() -> float:
    """CPU seconds to parse the worst of these bodies once, and nothing else: the best of five."""
    return max(min(cpu_of_parsing_s(body) for _ in range(5)) for body in HOSTILE.values())


def cpu_of_parsing_s(body: bytes) -> float:
    gc.disable()
    try:
        began_s = time.thread_time()
        with suppress(ValueError, RecursionError):
            json.loads(body)
        return time.thread_time() - began_s
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", HOSTILE)
async def test_a_hostile_body_costs_about_what_it_costs_to_parse(
    kind: str, quiet_gc: None, parsing_s: float
) -> None:
    """The largest that is read at all with a context of 16,384 tokens, again and again."""
    del quiet_gc
    body = b'{"model":"m","prompt":' + HOSTILE[kind] + b"}"
    async with an_edge(context_tokens_max=16_384) as edge:
        costs = [await cost_of(edge, body) for _ in range(ASKED)]
    cpu_s, lag_s = (min(one) for one in zip(*costs, strict=True))

    print(
        f"{kind}: {len(body) >> 10} KiB, at best {cpu_s * 1e3:.1f} ms of CPU and a loop "
        f"{lag_s * 1e3:.1f} ms late at most; {parsing_s * 1e3:.1f} ms to parse the worst"
    )
    assert cpu_s <= PARSES_MAX * parsing_s
    assert lag_s <= PARSES_MAX * parsing_s


async def test_a_body_beyond_any_prompt_is_refused_unread() -> None:
    """However large: what hostile bodies cost is bounded by the context of the model."""
    async with an_edge(context_tokens_max=16_384) as edge:
        reader, writer = await edge.connect()
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (4 * _BYTES)
        )
        assert b" 413 " in await reader.readline()
        writer.close()


@pytest.mark.parametrize(("length", "is_elsewhere"), [(1_000, False), (200_000, True)])
async def test_a_long_body_is_parsed_in_another_thread(
    monkeypatch: pytest.MonkeyPatch, *, length: int, is_elsewhere: bool
) -> None:
    """A short one is done sooner than it would be handed over."""
    threads = []

    def noted(*arguments: Any) -> ParsedRequest:
        threads.append(threading.get_ident())
        return parse_request(*arguments)

    monkeypatch.setattr("controlplane.edge.server.parse_request", noted)
    body = b'{"model":"m","prompt":5,"stop":"' + b"x" * length + b'"}'
    async with an_edge(context_tokens_max=16_384) as edge:
        await cost_of(edge, body)

    assert [thread != threading.get_ident() for thread in threads] == [is_elsewhere]


async def cost_of(edge: Edge, body: bytes) -> tuple[float, float]:
    """CPU seconds of this process for a bad body, and how late its loop was at worst, in seconds."""
    cpu_s = time.process_time()
    async with lag_of_the_loop() as late_s:
        async with edge.session.post(f"{edge.url}/v1/completions", data=body) as answer:
            error = json.loads(await answer.read())["error"]
        await asyncio.sleep(0.01)
    assert answer.status == 400, error["message"][:200]
    return time.process_time() - cpu_s, max(late_s)


async def test_a_body_that_is_too_large_is_refused_at_once() -> None:
    """By its length: nothing of it is ever sent."""
    async with an_edge() as edge:
        took_s = []
        for _ in range(50):
            began_s = time.perf_counter()
            reader, writer = await edge.connect()
            writer.write(
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 33000000\r\n\r\n"
            )
            assert b" 413 " in await reader.readline()
            took_s.append(time.perf_counter() - began_s)
            writer.close()

        print(f"413: median {median(took_s) * 1e3:.1f} ms, p99 {p99(took_s) * 1e3:.1f} ms")
        assert min(took_s) <= 0.05
