"""Prefill jobs: taken or refused at once, filled piece by piece, stopped when nobody needs them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from router_builders import LogBook, LoopClock, a_few_turns
from worker_builders import (
    BLOCK,
    STATE_BYTES,
    TOKEN_BYTES,
    PrefillSide,
    a_prefill_side,
    a_prompt,
    until,
)

from controlplane.config import KvConfig
from controlplane.errors import (
    Draining,
    MalformedRequest,
    SegmentFailed,
    SegmentStale,
    WorkerRefused,
    WorkerTimeout,
)
from controlplane.router.memory_workers import Gate
from controlplane.wire import KvLocation
from workers import prefill_service as prefill_service_module
from workers.kv.requests import ReportRequest
from workers.kv.segment import Segment


@pytest.fixture
async def side() -> AsyncIterator[PrefillSide]:
    """A prefill side that takes four jobs; each test ends with the proof that all was let go."""
    async with a_prefill_side() as side:
        yield side


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> LogBook:
    """What the service logs."""
    book = LogBook()
    monkeypatch.setattr(prefill_service_module, "_log", book)
    return book


def segment_of(side: PrefillSide, location: KvLocation) -> Segment:
    """The segment at a location, as a reader finds it."""
    manifest = location.manifest
    return side.segments.find(
        ReportRequest(
            incarnation=location.incarnation,
            segment_id=location.segment_id,
            generation=location.generation,
            fingerprint=manifest.fingerprint,
            scope=manifest.scope,
        )
    )


async def until_idle(side: PrefillSide) -> None:
    """Wait until no job computes."""
    await until(lambda: side.service.jobs == 0)


# --- Accepted --------------------------------------------------------------------------------


async def test_a_job_is_answered_before_it_is_computed(side: PrefillSide) -> None:
    """The location names a segment that is still empty."""
    gate = Gate()
    side.engine.prefills.append([gate])

    location = await side.accept(a_prompt(40))

    manifest = location.manifest
    assert (location.worker_id, location.incarnation, location.port) == (
        "east/p1",
        "i1",
        side.kv.port,
    )
    assert (manifest.token_count, manifest.block_tokens, manifest.scope) == (39, BLOCK, "scope")
    assert segment_of(side, location).filled_chunks == 0
    assert side.service.jobs == 1
    gate.open()
    await until_idle(side)


async def test_a_segment_fills_with_all_tokens_but_the_last(side: PrefillSide) -> None:
    """And ends with a report of what the engine did."""
    location = await side.accept(a_prompt(40))
    segment = segment_of(side, location)

    report = await segment.report()
    await until_idle(side)

    assert [len(tokens) for tokens in side.engine.prefilled] == [39]
    assert segment.state == "complete"
    assert segment.total_bytes == 39 * TOKEN_BYTES + STATE_BYTES
    assert (report.queue_s, report.compute_s) == (0.25, 0.5)
    assert (report.cached_tokens, report.computed_tokens) == (0, 39)


async def test_a_prompt_of_one_token_has_a_segment_of_state_alone(side: PrefillSide) -> None:
    """Decode computes that token."""
    location = await side.accept(a_prompt(1))

    report = await segment_of(side, location).report()

    assert location.manifest.token_count == 0
    assert report.computed_tokens == 0


async def test_locations_are_published_and_withdrawn(side: PrefillSide) -> None:
    """For people, and for routers that did not start the prefill."""
    location = await side.accept()
    await until_idle(side)
    await a_few_turns()
    published = await side.store.segments(count=10)

    side.service.abort("req-1.1")
    await a_few_turns()

    assert published == [location]
    assert await side.store.segments(count=10) == []


async def test_jobs_beside_each_other_fill_their_own_segments(side: PrefillSide) -> None:
    """Each with its own id."""
    locations = [
        await side.accept(a_prompt(20 + number), request_id=f"req-{number}.1")
        for number in range(4)
    ]
    await until_idle(side)

    counts = [segment_of(side, location).manifest.token_count for location in locations]
    assert counts == [19, 20, 21, 22]
    assert len({location.segment_id for location in locations}) == 4


# --- Refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"incarnation": "i0"}, "another life"),
        ({"fingerprint": "g"}, "another fingerprint"),
    ],
)
async def test_a_job_for_somebody_else_is_refused(
    side: PrefillSide, header: dict[str, Any], said: str
) -> None:
    """A router's view may be of an earlier process, or of other weights."""
    with pytest.raises(WorkerRefused, match=said):
        await side.accept(**header)

    assert side.service.jobs == 0
    assert side.segments.held_bytes == 0


async def test_a_worker_that_is_full_refuses(side: PrefillSide) -> None:
    """Until one of its jobs has ended."""
    gate = Gate()
    side.engine.prefills.extend([gate] for _ in range(4))
    for number in range(4):
        await side.accept(request_id=f"req-{number}.1")

    with pytest.raises(WorkerRefused, match="4 jobs"):
        await side.accept(request_id="req-4.1")
    gate.open()
    await until_idle(side)

    assert await side.accept(request_id="req-5.1")
    await until_idle(side)


async def test_the_same_job_twice_is_refused(side: PrefillSide) -> None:
    """A repeated call must not compute twice."""
    gate = Gate()
    side.engine.prefills.append([gate])
    await side.accept()

    with pytest.raises(WorkerRefused, match="running already"):
        await side.accept()

    gate.open()
    await until_idle(side)
    assert len(side.engine.prefilled) == 1


@pytest.mark.parametrize("length", [0, 512])
async def test_a_prompt_of_the_wrong_length_is_malformed(side: PrefillSide, length: int) -> None:
    """The edge has checked it; a worker does not rely on that."""
    with pytest.raises(MalformedRequest, match=f"this one {length}"):
        await side.accept(a_prompt(length))


async def test_the_longest_prompt_is_taken(side: PrefillSide) -> None:
    """With room for one token of output in the context."""
    assert await side.accept(a_prompt(511))
    await until_idle(side)


async def test_a_segment_that_does_not_fit_is_refused() -> None:
    """Its bytes are bounded, whoever asks."""
    async with a_prefill_side(config=KvConfig(segment_bytes_max=1 << 20)) as side:
        side.segments._config = KvConfig.model_construct(
            **{**KvConfig().model_dump(), "segment_bytes_max": 400}
        )
        await side.accept(a_prompt(40))

        with pytest.raises(WorkerRefused, match="does not fit"):
            await side.accept(a_prompt(40), request_id="req-2.1")

        assert side.service.jobs == 1
        await until_idle(side)


async def test_a_worker_that_drains_refuses_what_is_new(side: PrefillSide) -> None:
    """With a code of its own; what runs goes on."""
    gate = Gate()
    side.engine.prefills.append([gate])
    location = await side.accept()
    side.service.is_draining = True

    with pytest.raises(Draining):
        await side.accept(request_id="req-2.1")
    gate.open()

    assert await segment_of(side, location).report()


# --- Stopped ---------------------------------------------------------------------------------


async def test_an_abort_stops_the_engine_and_frees_the_segment(side: PrefillSide) -> None:
    """Its readers are told; twice is once."""
    gate = Gate()
    side.engine.prefills.append([gate])
    location = await side.accept()
    segment = segment_of(side, location)
    reading = asyncio.ensure_future(segment.chunk(0))
    await gate.reached()

    was_known = side.service.abort("req-1.1")
    again = side.service.abort("req-1.1")
    await until_idle(side)

    assert (was_known, again) == (True, True)
    assert not side.service.abort("req-1.1")
    assert side.segments.held_bytes == 0
    side.engine.check_integrity()
    with pytest.raises(SegmentStale):
        await reading


async def test_an_abort_before_the_first_step_is_one(side: PrefillSide) -> None:
    """The job's task has not run yet."""
    await side.accept()

    side.service.abort("req-1.1")
    await until_idle(side)

    assert side.segments.held_bytes == 0


async def test_an_abort_frees_a_segment_that_is_complete(side: PrefillSide) -> None:
    """The decode worker never came for it."""
    await side.accept()
    await until_idle(side)
    held_before = side.segments.held_bytes

    was_known = side.service.abort("req-1.1")

    assert held_before > 0
    assert was_known
    assert side.segments.held_bytes == 0


async def test_a_job_that_comes_after_its_abort_is_refused(side: PrefillSide) -> None:
    """They come over different connections, and the later one may be the faster."""
    side.service.abort("req-1.1")

    with pytest.raises(WorkerRefused, match="aborted before it came"):
        await side.accept()

    assert side.segments.held_bytes == 0


async def test_aborts_of_unknown_jobs_are_remembered_within_a_bound(side: PrefillSide) -> None:
    """Nobody fills a worker's memory with them."""
    for number in range(1025):
        side.service.abort(f"req-{number}.1")

    await side.accept(request_id="req-0.1")
    with pytest.raises(WorkerRefused, match="aborted before it came"):
        await side.accept(request_id="req-1024.1")


async def test_an_abort_of_an_unknown_job_does_nothing(side: PrefillSide) -> None:
    """It may have ended before, or it never arrived."""
    assert not side.service.abort("req-9.1")


async def test_a_release_by_the_reader_stops_a_job_that_still_computes(side: PrefillSide) -> None:
    """Nobody else has the location."""
    gate = Gate()
    side.engine.prefills.append([gate])
    location = await side.accept()
    await gate.reached()

    side.segments.release(segment_of(side, location))
    await until_idle(side)

    assert side.segments.held_bytes == 0
    assert not side.service.abort("req-1.1")


async def test_a_lease_that_ends_stops_a_job_that_still_computes() -> None:
    """A router and a decode worker that died leave nothing running."""
    now_s = 0.0
    async with a_prefill_side(clock=lambda: now_s) as side:
        gate = Gate()
        side.engine.prefills.append([gate])
        await side.accept()
        await gate.reached()

        now_s = 31.0
        side.segments.sweep()
        await until_idle(side)

        assert side.segments.held_bytes == 0


async def test_the_deadline_of_the_request_ends_its_prefill() -> None:
    """Its readers are told why, and the engine stops."""
    clock = LoopClock()
    async with a_prefill_side() as side:
        gate = Gate()
        side.engine.prefills.append([gate])
        location = await side.accept(deadline_s=5)
        segment = segment_of(side, location)
        reading = asyncio.ensure_future(segment.report())
        await gate.reached()

        clock.advance(6)

        with pytest.raises(SegmentFailed, match="time was over"):
            await reading
        await until_idle(side)
        side.engine.check_integrity()


async def test_closing_stops_all_jobs(side: PrefillSide) -> None:
    """At the end of the process."""
    gates = [Gate(), Gate()]
    for number, gate in enumerate(gates):
        side.engine.prefills.append([gate])
        await side.accept(request_id=f"req-{number}.1")
        await gate.reached()

    await side.service.close()

    assert side.service.jobs == 0
    assert repr(side.service) == "<PrefillService 0 jobs>"


async def test_all_jobs_can_be_ended_with_a_reason(side: PrefillSide) -> None:
    """Readers are told at once, and what is complete can still be read."""
    done = segment_of(side, await side.accept(request_id="req-0.1"))
    await until_idle(side)
    side.engine.prefills.append([Gate()])
    segment = segment_of(side, await side.accept())
    reading = asyncio.ensure_future(segment.report())
    await a_few_turns()

    side.service.end_jobs(WorkerTimeout("the engine hangs"))

    with pytest.raises(SegmentFailed, match="worker_timeout: the engine hangs"):
        await reading
    await until_idle(side)
    assert done.state == "complete"
    assert side.segments.held_bytes == done.total_bytes


async def test_a_worker_whose_engine_hangs_refuses_what_is_new(side: PrefillSide) -> None:
    """Until it moves again."""
    side.service.is_stalled = True
    with pytest.raises(WorkerRefused, match="hangs"):
        await side.accept()
    side.service.is_stalled = False

    await side.accept()
    await until_idle(side)


# --- The engine fails ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [ValueError("unknown token"), RuntimeError("out of memory"), MemoryError()]
)
async def test_an_engine_that_fails_ends_one_job(
    side: PrefillSide, log: LogBook, error: Exception
) -> None:
    """Its readers are told, the log has it without its text, the next job is served."""
    gate = Gate()
    side.engine.prefills.append([gate, error])
    location = await side.accept()
    segment = segment_of(side, location)
    reading = asyncio.ensure_future(segment.report())
    await gate.reached()

    gate.open()

    with pytest.raises(SegmentFailed, match="could not compute it"):
        await reading
    await until_idle(side)
    ((level, event, fields),) = log.events
    assert (level, event) == ("error", "prefill.failed")
    assert (fields["request_id"], fields["cause"]) == ("req-1.1", type(error).__name__)
    assert await segment_of(side, await side.accept(request_id="req-2.1")).report()
    await until_idle(side)


async def test_an_engine_that_ends_early_is_no_complete_prefill(
    side: PrefillSide, log: LogBook
) -> None:
    """Closing an engine ends its iterators without an error; the segment lacks chunks."""
    gate = Gate()
    side.engine.prefills.append([gate])
    location = await side.accept()
    segment = segment_of(side, location)
    reading = asyncio.ensure_future(segment.report())
    await gate.reached()

    side.engine.is_closed = True
    gate.open()

    with pytest.raises(SegmentFailed):
        await reading
    await until_idle(side)
    assert [event for _, event, _ in log.events] == ["prefill.failed"]


async def test_only_complete_prefills_are_measured(side: PrefillSide) -> None:
    """An aborted one says nothing of the engine's speed."""
    side.engine.prefills.append([Gate()])
    await side.accept()
    await a_few_turns()
    side.service.abort("req-1.1")
    await until_idle(side)
    await side.accept(request_id="req-2.1")
    await until_idle(side)

    samples = side.metrics.registry.get_sample_value
    assert samples("prfaas_prefill_seconds_count") == 1
    assert samples("prfaas_prefill_seconds_sum") == 0.5
