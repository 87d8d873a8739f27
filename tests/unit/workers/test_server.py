"""A worker's HTTP side, on the production runner, with router clients and raw connections."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import aiohttp
import pytest
from builders import a_beat
from router_builders import LogBook, a_few_turns
from worker_builders import (
    FakeEngine,
    PrefillSide,
    a_decode_job_for,
    a_prefill_side,
    a_prompt,
    an_identity,
    until,
    words,
)

from controlplane.config import KvConfig, LimitsConfig
from controlplane.errors import Draining, PrfaasError, WorkerRefused, WorkerTimeout
from controlplane.router.http_workers import HttpDecodeStream, HttpWorkerClient
from controlplane.router.memory_workers import Gate
from controlplane.serving import listen
from controlplane.wire import FrameKind, KvLocation, WorkerBeat, pack_parcel
from workers import server as server_module
from workers.decode_service import DecodeService
from workers.links import LinkMeters
from workers.metrics import WorkerMetrics
from workers.server import Desk, WorkerServer

PROMPT = a_prompt(40)


class Workers:
    """A prefill and a decode worker behind real listeners, and a router's client."""

    def __init__(self, prefill: PrefillSide, decode_engine: FakeEngine) -> None:
        self.prefill = prefill
        self.engine = decode_engine
        self.metrics = WorkerMetrics()
        self.decode = DecodeService(
            decode_engine,
            an_identity("decode", datacenter="east"),
            KvConfig(),
            self.metrics,
            requests_max=2,
            links=LinkMeters("east"),
        )
        self.client = HttpWorkerClient(LimitsConfig())
        self.refreshed = 0
        self.prefill_url = ""
        self.decode_url = ""

    async def start(self, stack: AsyncExitStack, *, alive_interval_s: float) -> None:
        def refresh() -> None:
            self.refreshed += 1

        prefill = WorkerServer(
            desk=partial(Desk, beat=a_beat, prefill=self.prefill.service, decode=None),
            metrics=self.prefill.metrics,
            refresh_metrics=refresh,
            alive_interval_s=alive_interval_s,
        )
        decode = WorkerServer(
            desk=partial(Desk, beat=a_beat, prefill=None, decode=self.decode),
            metrics=self.metrics,
            refresh_metrics=refresh,
            alive_interval_s=alive_interval_s,
        )
        self.prefill_url = await listen(stack, prefill.application(), "127.0.0.1", 0)
        self.decode_url = await listen(stack, decode.application(), "127.0.0.1", 0)
        stack.push_async_callback(self.client.close)

    async def locate(self, request_id: str = "req-1.1") -> KvLocation:
        """A prefill job over HTTP."""
        return await self.client.prefill(self.prefill_url, self.prefill.job(request_id), PROMPT)

    async def stream(self, location: KvLocation | None = None, **job: Any) -> HttpDecodeStream:
        """A decode job over HTTP."""
        location = location or await self.locate()
        return await self.client.decode(self.decode_url, a_decode_job_for(location, **job), PROMPT)

    def jobs(self, role: str, code: str) -> float | None:
        """How many jobs ended like this."""
        metrics = self.prefill.metrics if role == "prefill" else self.metrics
        return metrics.registry.get_sample_value("prfaas_jobs_total", {"role": role, "code": code})


@asynccontextmanager
async def both_workers(*, alive_interval_s: float = 60.0) -> AsyncIterator[Workers]:
    """At the end neither side may hold anything."""
    engine = FakeEngine()
    async with a_prefill_side() as prefill, AsyncExitStack() as stack:
        workers = Workers(prefill, engine)
        await workers.start(stack, alive_interval_s=alive_interval_s)
        yield workers
        await until(lambda: workers.decode.jobs == 0)
        engine.check_integrity()


@pytest.fixture
async def workers() -> AsyncIterator[Workers]:
    """Both workers; signs of life are far apart."""
    async with both_workers() as workers:
        yield workers


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> LogBook:
    """What the server logs."""
    book = LogBook()
    monkeypatch.setattr(server_module, "_log", book)
    return book


async def frames_of(stream: HttpDecodeStream) -> list[tuple[FrameKind, bytes]]:
    """Every frame to the end."""
    frames: list[tuple[FrameKind, bytes]] = []
    while batch := await stream.frames():
        frames += batch
    return frames


# --- Jobs ------------------------------------------------------------------------------------


async def test_a_request_goes_from_prefill_to_decode(workers: Workers) -> None:
    """Over both listeners and the KV port, as between two datacenters."""
    workers.engine.decodes.append(words("hi"))

    frames = await frames_of(await workers.stream())

    *content, (kind, report) = frames
    assert {kind for kind, _ in content} == {FrameKind.CONTENT}
    assert content[-1][1].endswith(b"data: [DONE]\n\n")
    assert kind is FrameKind.REPORT
    assert json.loads(report)["output_tokens"] == 2
    assert workers.jobs("prefill", "accepted") == 1
    assert workers.jobs("decode", "ok") == 1


async def test_the_last_content_the_report_and_the_end_come_together(workers: Workers) -> None:
    """A client may leave with its last byte: the router knows by then that it was served."""
    stream = await workers.stream()
    batch: list[tuple[FrameKind, bytes]] = []
    while not batch or batch[-1][0] is not FrameKind.REPORT:
        batch = await stream.frames()

    rest = asyncio.ensure_future(stream.frames())
    await a_few_turns(1)

    assert batch[-2][1].endswith(b"data: [DONE]\n\n")
    assert rest.done()
    assert await rest == []


async def test_an_abort_over_http_stops_the_job(workers: Workers) -> None:
    """Known or not, the answer is the same."""
    gate = Gate()
    workers.prefill.engine.prefills.append([gate])
    await workers.locate()
    await gate.reached()

    for _ in range(2):
        await workers.client.abort_prefill(workers.prefill_url, "req-1.1")

    assert workers.prefill.service.jobs == 0
    assert workers.prefill.segments.held_bytes == 0


@pytest.mark.parametrize(
    ("header", "code"), [({"incarnation": "i0"}, "worker_refused"), ({}, "draining")]
)
async def test_refusals_are_told_with_their_code(
    workers: Workers, header: dict[str, Any], code: str
) -> None:
    """Before a stream has begun, and counted."""
    location = await workers.locate()
    workers.prefill.service.is_draining = workers.decode.is_draining = code == "draining"
    job = workers.prefill.job("req-2.1", **header)

    with pytest.raises(WorkerRefused):
        await workers.client.prefill(workers.prefill_url, job, PROMPT)
    with pytest.raises(WorkerRefused):
        await workers.stream(location, **header)

    assert workers.jobs("prefill", code) == 1


@pytest.mark.parametrize("role", ["prefill", "decode"])
@pytest.mark.parametrize(
    "body",
    [b"", b"\x05\x00\x00\x00{}", b"\xff\xff\xff\xff", b"\x02\x00\x00\x00{}", b"\x02\x00\x00\x00[]"],
    ids=["empty", "cut", "a length without bound", "no fields", "no object"],
)
async def test_what_is_no_job_is_malformed(workers: Workers, role: str, body: bytes) -> None:
    """400 with a code, and never a 500."""
    url = workers.prefill_url if role == "prefill" else workers.decode_url
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/worker/v1/{role}", data=body) as answer,
    ):
        said = await answer.json()

    assert (answer.status, said["code"]) == (400, "malformed_request")


async def test_tokens_that_are_cut_are_malformed(workers: Workers) -> None:
    """Half a token is none."""
    body = pack_parcel(workers.prefill.job(), PROMPT.data[:-1])
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{workers.prefill_url}/worker/v1/prefill", data=body) as answer,
    ):
        said = await answer.json()

    assert (answer.status, said["code"]) == (400, "malformed_request")


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_a_worker_has_no_routes_of_the_other_role(workers: Workers, role: str) -> None:
    """A router that took it for another one is refused."""
    url = workers.decode_url if role == "prefill" else workers.prefill_url
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/worker/v1/{role}", data=b"") as answer,
    ):
        assert answer.status == 404


async def test_health_and_metrics_are_there_for_a_scrape(workers: Workers) -> None:
    """Gauges are read at that moment."""
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{workers.decode_url}/health") as health:
            assert (health.status, await health.json()) == (200, {"status": "ok"})
        async with session.get(f"{workers.decode_url}/metrics") as metrics:
            text = await metrics.text()

    assert "prfaas_queue_depth_requests" in text
    assert metrics.content_type == "text/plain"
    assert workers.refreshed == 1


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_a_worker_tells_a_router_how_it_does(workers: Workers, role: str) -> None:
    """While the store is away; as JSON of a heartbeat."""
    url = workers.decode_url if role == "decode" else workers.prefill_url
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{url}/worker/v1/beat") as answer,
    ):
        body = await answer.read()

    assert (answer.status, answer.content_type) == (200, "application/json")
    assert WorkerBeat.model_validate_json(body) == a_beat()


# --- Failures in the stream ------------------------------------------------------------------


async def test_a_failure_is_the_last_frame(workers: Workers, log: LogBook) -> None:
    """With the code the router's life cycle knows."""
    location = await workers.locate()
    workers.prefill.service.abort("req-1.1")

    ((kind, payload),) = await frames_of(await workers.stream(location))

    assert kind is FrameKind.FAILURE
    assert json.loads(payload)["code"] == "segment_stale"
    assert workers.jobs("decode", "segment_stale") == 1
    assert [(event, fields["code"]) for _, event, fields in log.events] == [
        ("decode.failed", "segment_stale")
    ]


async def test_an_answer_that_is_cut_ends_with_a_failure(workers: Workers) -> None:
    """Tokens that were sent stay sent; no report, no [DONE]."""
    workers.engine.decodes.append(words("ab", finish_reason=None))

    frames = await frames_of(await workers.stream())

    assert [kind for kind, _ in frames] == [
        FrameKind.CONTENT,
        FrameKind.CONTENT,
        FrameKind.FAILURE,
    ]
    assert json.loads(frames[-1][1])["code"] == "worker_lost"


@pytest.mark.parametrize("error", [Draining("leaving"), WorkerTimeout("the engine hangs")])
async def test_a_job_that_is_ended_says_why_in_its_last_frame(
    workers: Workers, error: PrfaasError
) -> None:
    """The router knows the code and goes on with the stream elsewhere."""
    gate = Gate()
    workers.engine.decodes.append([*words("ab", finish_reason=None), gate])
    stream = await workers.stream()
    await gate.reached()

    workers.decode.end_jobs(lambda: error)
    frames = await frames_of(stream)

    assert [kind for kind, _ in frames] == [FrameKind.CONTENT] * 2 + [FrameKind.FAILURE]
    assert json.loads(frames[-1][1])["code"] == error.code
    assert workers.jobs("decode", error.code) == 1


async def test_a_bug_in_the_engine_ends_with_a_failure(workers: Workers, log: LogBook) -> None:
    """The router hears a code, the log has the story, and the next job is served."""
    workers.engine.decodes.append([*words("a", finish_reason=None), ZeroDivisionError("secret")])

    frames = await frames_of(await workers.stream())
    again = await frames_of(await workers.stream(await workers.locate("req-2.1")))

    kind, payload = frames[-1]
    assert kind is FrameKind.FAILURE
    assert json.loads(payload)["code"] == "internal_error"
    assert b"secret" not in payload
    assert workers.jobs("decode", "internal_error") == 1
    assert [event for _, event, _ in log.events] == ["internal.error"]
    assert again[-1][0] is FrameKind.REPORT


async def test_a_bug_before_the_stream_is_a_500_with_a_code(
    workers: Workers, log: LogBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every answer of a worker that is not 2xx has the same shape."""

    def broken(*_: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(workers.prefill.service, "_check", broken)
    body = pack_parcel(workers.prefill.job(), PROMPT.data)
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{workers.prefill_url}/worker/v1/prefill", data=body) as answer,
    ):
        said = await answer.json()

    assert (answer.status, said["code"]) == (500, "internal_error")
    assert "secret" not in said["message"]
    assert [event for _, event, _ in log.events] == ["internal.error"]


# --- Silence and departure -------------------------------------------------------------------


async def test_silence_is_broken_by_signs_of_life() -> None:
    """While it waits for KV and while it computes; a router can tell working from hanging."""
    async with both_workers(alive_interval_s=0.01) as workers:
        fetching, computing = Gate(), Gate()
        workers.prefill.engine.prefills.append([fetching])
        workers.engine.decodes.append([*words("a", finish_reason=None), computing, *words("b")])
        stream = await workers.stream()

        waiting = await stream.frames()
        fetching.open()
        await computing.reached()
        between: list[tuple[FrameKind, bytes]] = []
        while [kind for kind, _ in between[-2:]] != [FrameKind.CONTENT, FrameKind.ALIVE]:
            between += await stream.frames()
        computing.open()
        rest = await frames_of(stream)

    assert {kind for kind, _ in waiting} == {FrameKind.ALIVE}
    assert rest[-1][0] is FrameKind.REPORT


async def test_who_speaks_gives_no_other_signs_of_life(workers: Workers) -> None:
    """Tokens are enough."""
    workers.engine.decodes.append(words("hello"))

    frames = await frames_of(await workers.stream())

    assert FrameKind.ALIVE not in {kind for kind, _ in frames}


@pytest.mark.parametrize("stage", ["fetching", "computing", "between tokens"])
async def test_a_router_that_hangs_up_stops_the_job(workers: Workers, stage: str) -> None:
    """At once, wherever it is: the engine and the sequence are free."""
    gate = Gate()
    if stage == "fetching":
        workers.prefill.engine.prefills.append([gate])
    elif stage == "computing":
        workers.engine.decodes.append([gate, *words("a")])
    else:
        workers.engine.decodes.append([*words("a", finish_reason=None), gate, *words("b")])
    stream = await workers.stream()
    await gate.reached()
    await until(lambda: workers.decode.jobs == 1)

    stream.close()

    await until(lambda: workers.decode.jobs == 0)
    workers.engine.check_integrity()
    assert workers.jobs("decode", "cancelled") == 1
    await workers.client.abort_prefill(workers.prefill_url, "req-1.1")


async def test_a_sign_of_life_that_finds_nobody_is_no_error() -> None:
    """The handler is told by its own next frame, or cancelled; this task would only complain."""

    class Gone:
        async def write(self, _: bytes) -> None:
            raise ConnectionResetError

    stream = server_module._FrameStream(Gone())  # type: ignore[arg-type]

    async with asyncio.timeout(5):
        await stream.keep_alive(0)


async def test_a_router_that_does_not_read_the_end_has_gone_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is no bug of the worker, and nothing else can be sent on the connection."""
    monkeypatch.setattr(server_module, "_WRITE_TIMEOUT_S", 0)

    class Deaf:
        async def write_eof(self, _: bytes) -> None:
            await asyncio.Event().wait()

    stream = server_module._FrameStream(Deaf())  # type: ignore[arg-type]

    with pytest.raises(ConnectionError):
        await stream.finish()


async def test_a_router_that_does_not_read_is_cut_off(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sequence must not hold a slot for ever."""
    monkeypatch.setattr(server_module, "_WRITE_TIMEOUT_S", 0.05)
    much = words("x" * 60, finish_reason=None)
    workers.engine.decodes.append([*much * 2000, Gate()])
    location = await workers.locate()
    body = pack_parcel(a_decode_job_for(location), PROMPT.data)
    host, _, port = workers.decode_url.removeprefix("http://").partition(":")
    _, writer = await asyncio.open_connection(host, int(port), limit=1024)
    writer.write(
        b"POST /worker/v1/decode HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b"
        % (len(body), body)
    )
    await until(lambda: workers.decode.jobs == 1)

    await until(lambda: workers.decode.jobs == 0)

    workers.engine.check_integrity()
    writer.close()
