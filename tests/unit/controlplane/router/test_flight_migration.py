"""A stream whose decode worker fails goes on at another one: never a token twice, never a gap."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from builders import an_output
from output_builders import (
    ALIVE,
    DONE,
    a_failure,
    a_telling,
    an_answer,
    report,
    text_of,
    the_end,
    told,
)
from router_builders import (
    DECODE_1,
    DECODE_2,
    EAST_1,
    EAST_2,
    LogBook,
    MemoryRouter,
    MemorySink,
    a_busy_beat,
    a_few_turns,
    a_router,
    url_of,
)

from controlplane.config import LimitsConfig
from controlplane.domain.byte_tokenizer import encode_text
from controlplane.edge.sink import WholeSink
from controlplane.errors import NoCandidate, WorkerLost, WorkerRefused, WorkerTimeout
from controlplane.observe.logs import FIELDS
from controlplane.router import services as services_module
from controlplane.router.memory_workers import Frame, Gate, a_stream
from controlplane.router.records import DecisionRecord
from controlplane.store.api import WorkerSeen
from controlplane.wire import DecodeJob, FrameKind, Sampling

PROMPT = "x" * 101
TOKENS = (11, 12, 13, 14)
#: Frames of the unbroken answer, one batch each: four tokens, the end, the report.
WHOLE = a_telling(TOKENS)


@pytest.fixture
async def router() -> AsyncIterator[MemoryRouter]:
    """A router whose decode workers tell their tokens."""
    async with a_router(can_resume=True) as router:
        yield router


def batches(frames: list[Frame]) -> list[list[Frame]]:
    """Each frame arrives by itself."""
    return [[frame] for frame in frames]


def ends(record: DecisionRecord) -> list[str]:
    return [attempt.ended_by for attempt in record.attempts]


def decodes(record: DecisionRecord) -> list[str | None]:
    placements = [attempt.decision.placement for attempt in record.attempts]
    return [placement and placement.decode_worker for placement in placements]


def decode_jobs(router: MemoryRouter) -> list[DecodeJob]:
    """Headers of the decode jobs, in order."""
    jobs = [call.job for call in router.workers.of_kind("decode")]
    assert all(isinstance(job, DecodeJob) for job in jobs)
    return jobs  # type: ignore[return-value]


def payloads(router: MemoryRouter, kind: Any) -> list[list[int]]:
    """Tokens that came with the jobs of a kind."""
    return [(call.tokens or encode_text("")).to_list() for call in router.workers.of_kind(kind)]


def sample(router: MemoryRouter, name: str, **labels: str) -> float | None:
    return router.metrics.registry.get_sample_value(name, labels)


# --- At every place where a stream can break --------------------------------------------------


@pytest.mark.parametrize("together", [False, True], ids=["frame by frame", "in one batch"])
@pytest.mark.parametrize("arrived", range(len(WHOLE)))
@pytest.mark.parametrize(
    ("error", "end"),
    [
        (WorkerLost("reset"), "DecodeWorkerLost"),
        (WorkerTimeout("silent"), "DecodeTimedOut"),
        (None, "DecodeWorkerLost"),
        ("draining", "DecodeLeft"),
    ],
    ids=["cut", "silent", "ended", "leaving"],
)
async def test_a_broken_stream_goes_on_to_the_very_same_answer(
    router: MemoryRouter,
    arrived: int,
    error: Exception | str | None,
    end: str,
    *,
    together: bool,
) -> None:
    """After any frame but the report: the client cannot tell it from an unbroken one."""
    sink = MemorySink()
    known = min(arrived, len(TOKENS))
    first: list[Any] = [WHOLE[:arrived]] if together else batches(WHOLE[:arrived])
    last: list[Any] = [error] if isinstance(error, Exception) else []
    if isinstance(error, str):
        last = [[a_failure(error)]]
    router.workers.on_decode(url_of(DECODE_1), stream=[step for step in first if step] + last)
    router.workers.on_decode(url_of(DECODE_2), stream=batches(a_telling(TOKENS, resumed=known)))

    flight = await router.serve(sink)

    record = await router.record()
    assert flight.error is None
    assert sink.body == an_answer(TOKENS)
    assert not sink.errors
    assert ends(record) == [end, "ok"]
    assert decodes(record) == [DECODE_1, DECODE_2]
    assert [job.resumed_tokens for job in decode_jobs(router)] == [0, known]
    prompt = encode_text(PROMPT).to_list()
    assert payloads(router, "decode") == [prompt, [*prompt, *TOKENS[:known]]]
    assert payloads(router, "prefill") == payloads(router, "decode")
    assert record.report is not None
    assert record.report.output_tokens == len(TOKENS)


async def test_what_breaks_behind_the_report_breaks_nothing(router: MemoryRouter) -> None:
    sink = MemorySink()
    router.workers.on_decode(url_of(DECODE_1), stream=[*batches(WHOLE), WorkerLost("reset")])

    await router.serve(sink)

    assert sink.body == an_answer(TOKENS)
    assert ends(await router.record()) == ["ok"]


async def test_the_end_of_an_answer_waits_for_its_report(router: MemoryRouter) -> None:
    """Otherwise a stream that breaks between the two would end twice."""
    gate = Gate()
    sink = MemorySink()
    router.workers.on_decode(
        url_of(DECODE_1), stream=[[told(*TOKENS), the_end()], gate, [report(4)]]
    )
    running = router.send(sink)
    await gate.reached()

    before = sink.body
    gate.open()
    await running

    assert before == text_of(*TOKENS)
    assert sink.body == an_answer(TOKENS)


async def test_a_stream_may_break_again_and_again(router: MemoryRouter) -> None:
    """As often as migrations are allowed; each worker tells one more token."""
    await router.register(*(a_busy_beat(f"west/d{n}", requests=n, can_resume=True) for n in (3, 4)))
    sink = MemorySink()
    for number, worker_id in enumerate((DECODE_1, DECODE_2, "west/d3")):
        router.workers.on_decode(
            url_of(worker_id), stream=[[told(TOKENS[number])], WorkerLost("reset")]
        )
    router.workers.on_decode(url_of("west/d4"), stream=batches(a_telling(TOKENS, resumed=3)))

    flight = await router.serve(sink)

    record = await router.record()
    assert flight.error is None
    assert sink.body == an_answer(TOKENS)
    assert [job.resumed_tokens for job in decode_jobs(router)] == [0, 1, 2, 3]
    assert ends(record) == ["DecodeWorkerLost"] * 3 + ["ok"]
    assert sample(router, "prfaas_migrations_total", cause="DecodeWorkerLost") == 3
    assert sample(router, "prfaas_retries_total", cause="DecodeWorkerLost") is None


@pytest.mark.parametrize("migrations_max", [0, 1])
async def test_a_stream_that_breaks_once_too_often_ends_with_an_error_event(
    migrations_max: int,
) -> None:
    """The client has a part of the answer, and is told that it is a part."""
    limits = LimitsConfig(migrations_max=migrations_max)
    async with a_router(can_resume=True, limits=limits) as router:
        sink = MemorySink()
        for worker_id, token in ((DECODE_1, 11), (DECODE_2, 12)):
            router.workers.on_decode(url_of(worker_id), stream=[[told(token)], WorkerLost("reset")])

        flight = await router.serve(sink)

        record = await router.record()
        assert sink.body == text_of(*TOKENS[: migrations_max + 1])
        assert sink.errors == [flight.error]
        assert isinstance(flight.error, WorkerLost)
        assert ends(record) == ["DecodeWorkerLost"] * (migrations_max + 1)
        assert (record.outcome, record.code) == ("failed", "worker_lost")


# --- What a further worker is asked -----------------------------------------------------------


async def test_the_policy_is_asked_for_what_is_left(router: MemoryRouter) -> None:
    """Prompt and output are prefilled, what remains is decoded."""
    router.workers.on_decode(url_of(DECODE_1), stream=[[told(11, 12, 13)], WorkerLost("reset")])
    router.workers.on_decode(url_of(DECODE_2), stream=batches(a_telling(TOKENS, resumed=3)))

    await router.serve()

    first, second = (attempt.features for attempt in (await router.record()).attempts)
    assert (first.input_tokens, first.output_tokens_max, first.resumed_tokens) == (101, 16, 0)
    assert (second.input_tokens, second.output_tokens_max, second.resumed_tokens) == (104, 13, 3)
    assert second.excluded == (DECODE_1,)


async def test_output_that_is_complete_but_for_its_end_goes_on_too(router: MemoryRouter) -> None:
    """Nothing is left to decode; the next worker says how it ends."""
    sink = MemorySink()
    router.workers.on_decode(url_of(DECODE_1), stream=[[told(*TOKENS)], WorkerLost("reset")])
    router.workers.on_decode(url_of(DECODE_2), stream=[[the_end(), report(4)]])

    flight = await router.serve(sink, sampling=Sampling(output_tokens_max=4))

    record = await router.record()
    assert flight.error is None
    assert sink.body == an_answer(TOKENS)
    assert record.attempts[-1].features.output_tokens_max == 0


async def test_jobs_ask_for_tokens_and_keep_what_the_client_asked_for(router: MemoryRouter) -> None:
    """Sampling and form are the client's, also where its output goes on."""
    sampling = Sampling(temperature=0.5, output_tokens_max=9, stop=("end",))
    router.workers.on_decode(url_of(DECODE_1), stream=[[told(11)], WorkerLost("reset")])
    router.workers.on_decode(url_of(DECODE_2), stream=batches(a_telling(TOKENS, resumed=1)))

    await router.serve(sampling=sampling)

    first, second = decode_jobs(router)
    assert first.wants_tokens
    assert second.wants_tokens
    assert first.sampling == second.sampling == sampling
    assert first.output == second.output
    assert (first.request_id, second.request_id) == ("req-0.1", "req-0.2")
    assert second.location.segment_id == "segment-req-0.2"


async def test_a_record_tells_of_a_migration(router: MemoryRouter) -> None:
    """One attempt each, the whole story, and the time of the very first token."""
    gate = Gate()
    router.workers.on_decode(url_of(DECODE_1), stream=[[told(11)], gate, WorkerLost("reset")])
    router.workers.on_decode(url_of(DECODE_2), stream=batches(a_telling(TOKENS, resumed=1)))
    running = router.send()
    await gate.reached()
    router.clock.advance(5)
    gate.open()
    await running

    record = await router.record()
    assert record.story == (
        *("Placed", "Reserved", "PrefillAccepted", "FirstToken", "DecodeWorkerLost"),
        *("RetryGranted", "Placed", "Reserved", "PrefillAccepted", "FirstToken", "StreamEnded"),
    )
    line = record.timeline
    assert line.first_token_s is not None
    assert line.decided_s is not None
    assert line.first_token_s < 5 < line.decided_s <= line.finished_s
    assert (record.outcome, record.code, record.detail) == ("done", "ok", "")
    assert record.attempts[0].decision != record.attempts[1].decision


async def test_a_migration_is_logged_with_what_was_kept(
    router: MemoryRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = LogBook()
    monkeypatch.setattr(services_module, "_log", book)
    router.workers.on_decode(url_of(DECODE_1), stream=[[told(11, 12)], WorkerLost("reset")])
    router.workers.on_decode(url_of(DECODE_2), stream=batches(a_telling(TOKENS, resumed=2)))

    await router.serve()

    (line,) = [fields for _, event, fields in book.events if event == "request.migrated"]
    assert line.keys() <= FIELDS
    assert (line["from_worker"], line["tokens_kept"]) == (DECODE_1, 2)
    assert not [event for _, event, _ in book.events if event == "request.redispatched"]


# --- Who can go on, and who cannot ------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampling", "goes_on"),
    [
        (Sampling(output_tokens_max=16), True),
        (Sampling(output_tokens_max=16, temperature=0), True),
        (Sampling(output_tokens_max=16, temperature=0, seed=7), True),
        (Sampling(output_tokens_max=16, temperature=0.5, seed=7), False),
    ],
    ids=["sampled", "greedy", "greedy with a seed", "sampled with a seed"],
)
async def test_only_output_that_depends_on_its_tokens_alone_goes_on(
    router: MemoryRouter, sampling: Sampling, *, goes_on: bool
) -> None:
    """A seeded draw depends on how many were drawn before it."""
    sink = MemorySink()
    router.workers.on_decode(url_of(DECODE_1), stream=[[told(11)], WorkerLost("reset")])
    router.workers.on_decode(url_of(DECODE_2), stream=batches(a_telling(TOKENS, resumed=1)))

    flight = await router.serve(sink, sampling=sampling)

    if goes_on:
        assert flight.error is None
        assert sink.body == an_answer(TOKENS)
    else:
        assert sink.errors == [flight.error]
        assert sink.body == text_of(11)
        assert len(router.workers.of_kind("decode")) == 1


async def test_a_stream_does_not_go_on_at_a_worker_of_before() -> None:
    """It would take the output for prompt; the client is told, and never gets a second beginning."""
    limits = LimitsConfig(redispatch_max=0)
    async with a_router(limits=limits) as router:
        await router.register(
            a_busy_beat(DECODE_1, requests=1, tokens=0, can_resume=True, sequence=2)
        )
        sink = MemorySink()
        router.workers.on_decode(url_of(DECODE_1), stream=[[told(11)], WorkerLost("reset")])

        flight = await router.serve(sink)

        assert isinstance(flight.error, NoCandidate)
        assert sink.errors == [flight.error]
        assert sink.body == text_of(11)
        assert len(router.workers.of_kind("decode")) == 1


async def test_a_stream_whose_other_workers_are_all_gone_waits_for_one(
    router: MemoryRouter,
) -> None:
    """After a pause everybody may be tried again, those that failed included."""
    sink = MemorySink()
    router.workers.on_decode(url_of(DECODE_1), stream=[[told(11)], WorkerLost("reset")])
    router.workers.on_decode(url_of(DECODE_2), WorkerRefused("full"))
    router.workers.on_decode(url_of(DECODE_1), stream=batches(a_telling(TOKENS, resumed=1)))
    running = router.send(sink)
    await a_few_turns(40)
    was_running = not running.done()

    router.clock.advance(3)
    flight = await running

    record = await router.record()
    assert was_running
    assert flight.error is None
    assert sink.body == an_answer(TOKENS)
    assert ends(record) == ["DecodeWorkerLost", "DecodeRefused", "NoPlacement", "ok"]
    assert record.attempts[-1].features.excluded == ()


async def test_a_new_life_of_a_worker_that_failed_may_go_on_at_once(router: MemoryRouter) -> None:
    """It has failed nobody; only the life that is over has."""
    sink = MemorySink()
    gate = Gate()
    router.workers.on_decode(url_of(DECODE_1), stream=[[told(11)], gate, WorkerLost("reset")])
    router.workers.on_decode(url_of(DECODE_1), stream=batches(a_telling(TOKENS, resumed=1)))
    running = router.send(sink)
    await gate.reached()

    beat = a_busy_beat(DECODE_1, requests=1, tokens=0, can_resume=True, incarnation="i2")
    await router.store.heartbeat(beat, ttl_s=1e6)
    router.tracker.apply_events([WorkerSeen(beat)])
    gate.open()
    await running

    record = await router.record()
    assert sink.body == an_answer(TOKENS)
    assert record.attempts[-1].features.excluded == ()


async def test_a_prefill_that_fails_on_the_way_costs_an_attempt_and_no_output(
    router: MemoryRouter,
) -> None:
    sink = MemorySink()
    router.workers.on_decode(url_of(DECODE_1), stream=[[told(11)], WorkerLost("reset")])
    router.workers.on_decode(url_of(DECODE_2), stream=batches(a_telling(TOKENS, resumed=1)))
    router.workers.on_prefill(url_of(EAST_1))
    router.workers.on_prefill(url_of(EAST_1), WorkerRefused("full"))

    flight = await router.serve(sink)

    record = await router.record()
    assert flight.error is None
    assert sink.body == an_answer(TOKENS)
    assert ends(record) == ["DecodeWorkerLost", "PrefillRefused", "ok"]
    assert router.workers.of_kind("prefill")[-1].url == url_of(EAST_2)
    assert sample(router, "prfaas_migrations_total", cause="DecodeWorkerLost") == 1
    assert sample(router, "prfaas_retries_total", cause="PrefillRefused") == 1


async def test_attempts_that_are_used_up_on_the_way_end_with_an_error_event() -> None:
    async with a_router(can_resume=True, limits=LimitsConfig(redispatch_max=1)) as router:
        sink = MemorySink()
        router.workers.on_decode(url_of(DECODE_1), stream=[[told(11)], WorkerLost("reset")])
        router.workers.on_prefill(url_of(EAST_1))
        for worker_id in (EAST_1, EAST_2):
            router.workers.on_prefill(url_of(worker_id), WorkerRefused("full"))

        flight = await router.serve(sink)

        assert isinstance(flight.error, WorkerRefused)
        assert sink.errors == [flight.error]
        assert sink.body == text_of(11)


# --- Answers that are not streamed ------------------------------------------------------------

JSON = (b'{"a":1}', b'{"b":2}')


async def test_a_whole_answer_goes_on_from_its_tokens(router: MemoryRouter) -> None:
    """Frames with tokens and no bytes keep it resumable; its bytes come once."""
    sink = WholeSink()
    tokens = (FrameKind.OUTPUT, told(11, 12)[1][:12])
    router.workers.on_decode(url_of(DECODE_1), stream=[[tokens], WorkerLost("reset")])
    router.workers.on_decode(url_of(DECODE_2), stream=[[the_end(JSON[1]), report(4)]])

    flight = await router.serve(sink, output=an_output(is_stream=False))

    record = await router.record()
    assert flight.error is None
    assert sink.body == JSON[1]
    assert decode_jobs(router)[1].resumed_tokens == 2
    assert sink.headers["x-prfaas-decode"] == DECODE_2
    assert ends(record) == ["DecodeWorkerLost", "ok"]


@pytest.mark.parametrize("can_resume", [False, True])
async def test_a_whole_answer_that_cannot_go_on_begins_anew_and_is_given_once(
    *, can_resume: bool
) -> None:
    """Also where the bytes had come and only the report had not."""
    async with a_router(can_resume=can_resume) as router:
        sink = WholeSink()
        router.workers.on_decode(
            url_of(DECODE_1),
            stream=[[(FrameKind.OUTPUT, told(11)[1][:8])], [the_end(JSON[0])], WorkerLost("reset")],
        )
        router.workers.on_decode(url_of(DECODE_2), stream=[[the_end(JSON[1]), report(4)]])

        flight = await router.serve(
            sink,
            output=an_output(is_stream=False),
            sampling=Sampling(output_tokens_max=16, temperature=0.5, seed=7),
        )

        record = await router.record()
        assert flight.error is None
        assert sink.body == JSON[1]
        assert [job.resumed_tokens for job in decode_jobs(router)] == [0, 0]
        assert payloads(router, "decode")[1] == encode_text(PROMPT).to_list()
        assert ends(record) == ["DecodeWorkerLost", "ok"]
        assert sample(router, "prfaas_retries_total", cause="DecodeWorkerLost") == 1


# --- Time -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("silent_s", "moves"), [(9.0, False), (11.0, True)], ids=["a slow one", "a hung one"]
)
async def test_an_engine_that_hangs_loses_its_stream(
    router: MemoryRouter, silent_s: float, *, moves: bool
) -> None:
    """However alive its worker says it is: signs of life are no tokens."""
    sink = MemorySink()
    gate = Gate()
    router.workers.on_decode(
        url_of(DECODE_1), stream=[[told(11)], [ALIVE], gate, [ALIVE], *batches(WHOLE[1:])]
    )
    router.workers.on_decode(url_of(DECODE_2), stream=batches(a_telling(TOKENS, resumed=1)))
    running = router.send(sink)
    await gate.reached()

    router.clock.advance(silent_s)
    gate.open()
    await running

    record = await router.record()
    assert sink.body == an_answer(TOKENS)
    assert ends(record) == (["DecodeTimedOut", "ok"] if moves else ["ok"])


async def test_a_slow_client_is_no_hung_engine(router: MemoryRouter) -> None:
    """Time in which the router itself did not read is not held against the worker."""
    sink = MemorySink()
    sink.steps["write"].append(gate := Gate())
    router.workers.on_decode(url_of(DECODE_1), stream=[[told(11)], [ALIVE], *batches(WHOLE[1:])])
    running = router.send(sink)
    await gate.reached()

    router.clock.advance(20)
    gate.open()
    await running

    assert ends(await router.record()) == ["ok"]


async def test_a_stream_migrates_behind_a_slow_client(router: MemoryRouter) -> None:
    """What it has not read yet is not told again."""
    sink = MemorySink()
    sink.steps["write"].append(gate := Gate())
    router.workers.on_decode(url_of(DECODE_1), stream=[[told(11, 12)], WorkerLost("reset")])
    router.workers.on_decode(url_of(DECODE_2), stream=batches(a_telling(TOKENS, resumed=2)))
    running = router.send(sink)
    await gate.reached()
    await a_few_turns()

    gate.open()
    await running

    assert sink.body == an_answer(TOKENS)
    assert DONE not in sink.body[: -len(DONE)]


async def test_twenty_streams_of_one_worker_all_go_on(router: MemoryRouter) -> None:
    """One after the other as the retry budget has room; none of them is lost."""
    cut = Gate()
    sinks = [MemorySink() for _ in range(20)]
    for _ in sinks:
        router.workers.on_decode(
            url_of(DECODE_1), stream=[[told(11, 12)], cut, WorkerLost("reset")]
        )
        router.workers.on_decode(url_of(DECODE_2), stream=[[ALIVE], *batches(WHOLE[2:])])
    await router.register(
        a_busy_beat(DECODE_1, requests=0, tokens=0, can_resume=True, sequence=2, requests_max=64),
        a_busy_beat(DECODE_2, requests=99, tokens=0, can_resume=True, sequence=2, requests_max=256),
    )
    running = [router.send(sink) for sink in sinks]
    await a_few_turns(60)
    assert [sink.body for sink in sinks] == [text_of(11, 12)] * 20

    cut.open()
    flights = await asyncio.gather(*running)

    assert [flight.error for flight in flights] == [None] * 20
    assert [sink.body for sink in sinks] == [an_answer(TOKENS)] * 20


async def test_a_worker_without_tokens_still_serves(router: MemoryRouter) -> None:
    """Its beat promises more than it sends: the answer comes, at its end."""
    sink = MemorySink()
    router.workers.on_decode(url_of(DECODE_1), stream=a_stream())

    flight = await router.serve(sink)

    assert flight.error is None
    assert sink.body.endswith(DONE)
