"""One request through the router: every way in which an attempt can fail, and what follows."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from builders import an_output
from router_builders import (
    DECODE_1,
    DECODE_2,
    EAST_1,
    EAST_2,
    WEST_1,
    MemoryRouter,
    MemorySink,
    a_busy_beat,
    a_router,
    url_of,
)
from store_builders import a_reservation

from controlplane.config import LimitsConfig
from controlplane.edge.sink import WholeSink
from controlplane.errors import (
    TRANSFER_ERRORS,
    DeadlineExceeded,
    NoCandidate,
    StoreTimeout,
    StoreUnavailable,
    WorkerLost,
    WorkerRefused,
    WorkerTimeout,
    WorkerUnreached,
)
from controlplane.router.memory_workers import Gate, a_report, a_stream
from controlplane.router.records import DecisionRecord
from controlplane.router.sink import ClientLeftError
from controlplane.wire import DecodeFailure, DecodeJob, FrameKind, PrefillJob, Reservation

CONTENT = b"data: hello\n\n"
DONE = b"data: [DONE]\n\n"


def a_failure(code: str) -> tuple[FrameKind, bytes]:
    """A decode worker's last words."""
    said = DecodeFailure(code=code, message=f"it was {code}")
    return FrameKind.FAILURE, said.model_dump_json().encode()


def content(data: bytes = CONTENT) -> tuple[FrameKind, bytes]:
    """A piece of the answer."""
    return FrameKind.CONTENT, data


REPORT = (FrameKind.REPORT, a_report().model_dump_json().encode())
ALIVE = (FrameKind.ALIVE, b"")


def ends(record: DecisionRecord) -> list[str]:
    """How each attempt ended."""
    return [attempt.ended_by for attempt in record.attempts]


def prefills(record: DecisionRecord) -> list[str | None]:
    """Where each attempt was to be prefilled."""
    placements = [attempt.decision.placement for attempt in record.attempts]
    return [placement and placement.prefill_worker for placement in placements]


def decodes(record: DecisionRecord) -> list[str | None]:
    """Where each attempt was to be decoded."""
    placements = [attempt.decision.placement for attempt in record.attempts]
    return [placement and placement.decode_worker for placement in placements]


def is_suspect(router: MemoryRouter, worker_id: str) -> bool:
    """Whether a worker gets no new work now."""
    worker = router.tracker.view().worker(worker_id)
    assert worker is not None
    return worker.is_suspect


# --- When nothing fails ----------------------------------------------------------------------


async def test_an_answer_reaches_the_client_byte_by_byte(router: MemoryRouter) -> None:
    """The router copies; what it adds are headers that say who served."""
    sink = MemorySink()
    router.workers.on_decode(
        url_of(DECODE_1),
        stream=[[ALIVE], [content(b"a"), content(b"b")], [ALIVE, content(b"c")], [REPORT]],
    )

    flight = await router.serve(sink, client_request_id="mine")

    assert flight.error is None
    assert sink.body == b"abc"
    assert sink.headers == {
        "x-request-id": "req-0",
        "x-client-request-id": "mine",
        "x-prfaas-decision": "dec-0",
        "x-prfaas-prefill": EAST_1,
        "x-prfaas-decode": DECODE_1,
    }


async def test_the_workers_are_told_all_they_need(router: MemoryRouter) -> None:
    """Both jobs name the attempt, the process life and what is left of the request's time."""
    await router.serve()

    prefill, decode = router.workers.calls
    assert isinstance(prefill.job, PrefillJob)
    assert isinstance(decode.job, DecodeJob)
    assert (prefill.url, decode.url) == (url_of(EAST_1), url_of(DECODE_1))
    assert prefill.request_id == decode.request_id == "req-0.1"
    assert prefill.job.destination == "west"
    assert 59 < decode.job.deadline_s <= prefill.job.deadline_s <= 60
    assert decode.job.location.segment_id == "segment-req-0.1"
    assert prefill.tokens == decode.tokens
    assert len(decode.tokens or ()) == 101


async def test_a_record_has_the_whole_story(router: MemoryRouter) -> None:
    """Times in order, the worker's own report, the events by name."""
    await router.serve()

    record = await router.record()
    line = record.timeline
    times = (line.parsed_s, line.decided_s, line.reserved_s, line.prefill_accepted_s)
    assert [*times, line.first_token_s, line.finished_s] == sorted(
        one for one in (*times, line.first_token_s, line.finished_s) if one is not None
    )
    assert (record.outcome, record.code, record.detail) == ("done", "ok", "")
    assert record.report == a_report()
    assert ends(record) == ["ok"]
    assert record.story == (
        "Placed",
        "Reserved",
        "PrefillAccepted",
        "FirstToken",
        "StreamEnded",
    )


async def test_an_answer_that_is_not_streamed_is_given_whole(router: MemoryRouter) -> None:
    """Its first token is the one the decode worker reports, not the moment it was complete."""
    sink = WholeSink()
    router.workers.on_decode(url_of(DECODE_1), stream=[[content(b'{"a":1}'), REPORT]])

    await router.serve(sink, output=an_output(is_stream=False))

    record = await router.record()
    assert sink.body == b'{"a":1}'
    assert sink.headers["x-prfaas-decode"] == DECODE_1
    assert record.timeline.first_token_s == pytest.approx(a_report().first_token_s, abs=0.02)


async def test_while_it_runs_a_request_counts_at_its_workers(router: MemoryRouter) -> None:
    """Prefill and link until the first token, decode to the end."""
    first, second = Gate(), Gate()
    router.workers.on_decode(
        url_of(DECODE_1), stream=[first, [content()], second, [content(DONE), REPORT]]
    )
    running = router.send()

    await first.reached()
    while_prefilling = router.tracker.view()
    first.open()
    await second.reached()
    while_decoding = router.tracker.view()
    second.open()
    await running

    assert pending(while_prefilling, EAST_1) == (4, 200)
    assert pending(while_prefilling, DECODE_1) == (2, 0)
    assert while_prefilling.links[0].reserved_bytes == 100 * 1000 + 50_000
    assert pending(while_decoding, EAST_1) == (3, 100)
    assert pending(while_decoding, DECODE_1) == (2, 0)
    assert while_decoding.links[0].reserved_bytes == 0


def pending(view: Any, worker_id: str) -> tuple[int, int]:
    """Requests and tokens a worker has to do, as the router sees it."""
    worker = view.worker(worker_id)
    return worker.pending_requests, worker.pending_tokens


async def test_a_short_prompt_uses_no_link(router: MemoryRouter) -> None:
    """Prefill stays in the datacenter of decode."""
    router.workers.on_decode(url_of(DECODE_1), stream=[gate := Gate(), *a_stream()])
    running = router.send(text="short")

    await gate.reached()
    link = router.tracker.view().links[0]
    gate.open()
    await running

    assert link.reserved_bytes == 0
    assert prefills(await router.record()) == [WEST_1]


# --- Prefill fails ---------------------------------------------------------------------------


async def test_a_prefill_refused_goes_to_another_worker(router: MemoryRouter) -> None:
    """A worker that said no has no job to stop, and is no suspect."""
    router.workers.on_prefill(url_of(EAST_1), WorkerRefused("full"))

    flight = await router.serve()

    record = await router.record()
    assert flight.error is None
    assert prefills(record) == [EAST_1, EAST_2]
    assert ends(record) == ["PrefillRefused", "ok"]
    assert not router.workers.of_kind("abort")
    assert not is_suspect(router, EAST_1)


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (WorkerLost("reset"), "PrefillWorkerLost"),
        (WorkerUnreached("refused"), "PrefillWorkerLost"),
        (WorkerTimeout("silent"), "PrefillTimedOut"),
    ],
    ids=["lost", "unreached", "silent"],
)
async def test_a_prefill_worker_that_does_not_answer_may_have_the_job_all_the_same(
    router: MemoryRouter, error: Exception, end: str
) -> None:
    """So it is told to stop, gets no new work for a while, and another one prefills."""
    router.workers.on_prefill(url_of(EAST_1), error)

    await router.serve()

    record = await router.record()
    (abort,) = router.workers.of_kind("abort")
    assert prefills(record) == [EAST_1, EAST_2]
    assert ends(record) == [end, "ok"]
    assert (abort.url, abort.request_id) == (url_of(EAST_1), "req-0.1")
    assert router.workers.of_kind("decode")[-1].request_id == "req-0.2"
    assert is_suspect(router, EAST_1)


# --- The reservation is refused --------------------------------------------------------------


def a_claim(number: int, **overrides: Any) -> Reservation:
    """What another router has claimed at the first prefill and the last decode worker."""
    values = {
        "prefill_worker": EAST_1,
        "prefill_incarnation": "i1",
        "decode_worker": DECODE_2,
        "decode_incarnation": "i1",
    }
    return a_reservation(f"other-{number}", **(values | overrides))


@pytest.mark.parametrize(
    ("refused", "claim", "expected"),
    [
        (EAST_1, {}, [(EAST_1, DECODE_1), (EAST_2, DECODE_1)]),
        (
            DECODE_1,
            {"prefill_worker": EAST_2, "decode_worker": DECODE_1},
            [(EAST_1, DECODE_1), (EAST_1, DECODE_2)],
        ),
    ],
    ids=["prefill", "decode"],
)
async def test_a_worker_that_others_have_filled_is_left_out(
    router: MemoryRouter, refused: str, claim: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    """The store knows what other routers have claimed, and no job is sent for nothing."""
    await router.register(a_busy_beat(refused, requests=1, tokens=0, requests_max=4, sequence=2))
    others = [a_claim(number, **claim) for number in range(4)]
    for other in others:
        assert (await router.store.reserve(other)).refused_by is None

    flight = await router.serve()

    record = await router.record()
    assert flight.error is None
    assert list(zip(prefills(record), decodes(record), strict=True)) == expected
    assert ends(record) == ["ReservationRefused", "ok"]
    assert len(router.workers.of_kind("prefill")) == 1
    for other in others:
        await router.store.release(other)


@pytest.mark.parametrize("gone", [EAST_1, DECODE_1])
async def test_a_worker_that_is_gone_leaves_the_view_at_once(
    router: MemoryRouter, gone: str
) -> None:
    """Its next life, if there is one, is not taken for it."""
    await router.store.deregister(gone, "i1")

    await router.serve()

    record = await router.record()
    assert ends(record) == ["ReservationRefused", "ok"]
    assert router.tracker.view().worker(gone) is None


async def test_a_request_that_everybody_refuses_ends_as_no_candidate() -> None:
    """After as many attempts as the limit allows, with the last reason in words."""
    async with a_router(limits=LimitsConfig(redispatch_max=1)) as router:
        for worker_id in (EAST_1, EAST_2, WEST_1):
            await router.store.deregister(worker_id, "i1")

        flight = await router.serve()

        record = await router.record()
        assert ends(record) == ["ReservationRefused", "ReservationRefused"]
        assert isinstance(flight.error, NoCandidate)
        assert f"after 2 attempts: {EAST_2} refused the reservation" in flight.error.message
        assert (record.outcome, record.code) == ("failed", "no_candidate")


# --- The store is away or slow ---------------------------------------------------------------


@pytest.mark.parametrize("error", [StoreUnavailable("away"), StoreTimeout("slow")])
async def test_without_the_store_a_request_goes_on(router: MemoryRouter, error: Exception) -> None:
    """Reservations are soft state; the workers themselves refuse what is too much."""
    router.store.before["reserve"].append(error)

    flight = await router.serve()

    record = await router.record()
    assert flight.error is None
    assert record.outcome == "done"
    assert record.timeline.reserved_s is not None, "it was asked, and prefill waited for the answer"
    assert router.tracker.is_store_away
    assert sample(router, "prfaas_store_errors_total", op="reserve") == 1


async def test_a_reservation_that_was_granted_unheard_is_released(router: MemoryRouter) -> None:
    """A call that timed out may have been done: its reservation is given back all the same."""
    router.store.after["reserve"].append(StoreTimeout("done, but nobody heard"))

    await router.serve()

    record = await router.record()
    assert record.outcome == "done"
    assert "<Ledger 0 claims>" in repr(router.store)


def sample(router: MemoryRouter, name: str, **labels: str) -> float | None:
    """One of the router's metrics."""
    return router.metrics.registry.get_sample_value(name, labels)


# --- Decode fails before the first token -----------------------------------------------------


#: One event for each way in which the KV does not come.
KV_EVENTS = {
    "link_down": "LinkDown",
    "link_stalled": "LinkStalled",
    "chunk_corrupt": "KvChunkCorrupt",
    "segment_stale": "LeaseExpired",
    "segment_failed": "SegmentFailed",
}


def test_every_transfer_error_has_an_event() -> None:
    assert set(KV_EVENTS) == set(TRANSFER_ERRORS)


@pytest.mark.parametrize("code", sorted(TRANSFER_ERRORS))
async def test_kv_that_cannot_be_fetched_is_prefilled_elsewhere(
    router: MemoryRouter, code: str
) -> None:
    """The prefill worker is left out; nothing speaks against the decode worker."""
    router.workers.on_decode(url_of(DECODE_1), stream=[[ALIVE], [a_failure(code)]])

    flight = await router.serve()

    record = await router.record()
    assert flight.error is None
    assert ends(record) == [KV_EVENTS[code], "ok"]
    assert prefills(record) == [EAST_1, EAST_2]
    assert decodes(record) == [DECODE_1, DECODE_1]
    assert [call.url for call in router.workers.of_kind("abort")] == [url_of(EAST_1)]
    if code in {"segment_stale", "segment_failed"}:
        assert not is_suspect(router, EAST_1)
    assert not is_suspect(router, DECODE_1)


async def test_a_decode_refused_goes_to_another_worker(router: MemoryRouter) -> None:
    """The segment of the first attempt is given up with it."""
    router.workers.on_decode(url_of(DECODE_1), WorkerRefused("full"))

    await router.serve()

    record = await router.record()
    assert ends(record) == ["DecodeRefused", "ok"]
    assert decodes(record) == [DECODE_1, DECODE_2]
    assert [call.request_id for call in router.workers.of_kind("abort")] == ["req-0.1"]
    assert not is_suspect(router, DECODE_1)


async def test_a_decode_refused_in_the_stream_is_a_refusal_too(router: MemoryRouter) -> None:
    """Some refusals come only after the answer has begun."""
    router.workers.on_decode(url_of(DECODE_1), stream=[[a_failure("worker_refused")]])

    await router.serve()

    record = await router.record()
    assert ends(record) == ["DecodeRefused", "ok"]
    assert not is_suspect(router, DECODE_1)


@pytest.mark.parametrize(
    "script",
    [
        {"steps": [WorkerLost("reset")]},
        {"stream": [WorkerLost("reset")]},
        {"stream": []},
        {"stream": [[ALIVE]]},
        {"stream": [[a_failure("internal_error")]]},
        {"stream": [[(FrameKind.FAILURE, b"no json")]]},
        {"stream": [[REPORT]]},
    ],
    ids=[
        "no connection",
        "cut",
        "ended at once",
        "ended after a sign of life",
        "a failure of its own",
        "a failure that cannot be read",
        "a report without an answer",
    ],
)
async def test_a_decode_worker_lost_before_its_first_token_is_replaced(
    router: MemoryRouter, script: dict[str, Any]
) -> None:
    """The client has seen nothing, so another worker may start over."""
    sink = MemorySink()
    router.workers.on_decode(
        url_of(DECODE_1), *script.get("steps", ()), stream=script.get("stream")
    )

    flight = await router.serve(sink)

    record = await router.record()
    assert flight.error is None
    assert ends(record) == ["DecodeWorkerLost", "ok"]
    assert decodes(record) == [DECODE_1, DECODE_2]
    assert is_suspect(router, DECODE_1)
    assert sink.body == CONTENT + DONE


@pytest.mark.parametrize(
    ("script", "ended_by"),
    [
        ({"steps": [WorkerTimeout("silent")]}, "DecodeTimedOut"),
        ({"stream": [[ALIVE], WorkerTimeout("silent")]}, "DecodeTimedOut"),
        ({"stream": [[ALIVE], [a_failure("worker_timeout")]]}, "EngineStalled"),
    ],
    ids=["no answer", "silent after a sign of life", "says so itself"],
)
async def test_a_decode_worker_that_falls_silent_before_its_first_token_is_replaced(
    router: MemoryRouter, script: dict[str, Any], ended_by: str
) -> None:
    sink = MemorySink()
    router.workers.on_decode(
        url_of(DECODE_1), *script.get("steps", ()), stream=script.get("stream")
    )

    flight = await router.serve(sink)

    record = await router.record()
    assert flight.error is None
    assert ends(record) == [ended_by, "ok"]
    assert decodes(record) == [DECODE_1, DECODE_2]
    assert sink.body == CONTENT + DONE


async def test_a_decode_worker_that_leaves_before_its_first_token_is_replaced(
    router: MemoryRouter,
) -> None:
    """It said so, which speaks for it."""
    router.workers.on_decode(url_of(DECODE_1), stream=[[ALIVE], [a_failure("draining")]])

    flight = await router.serve()

    record = await router.record()
    assert flight.error is None
    assert ends(record) == ["DecodeLeft", "ok"]
    assert decodes(record) == [DECODE_1, DECODE_2]
    assert not is_suspect(router, DECODE_1)


async def test_a_worker_that_finds_the_time_over_ends_the_request(router: MemoryRouter) -> None:
    """Its clock for the request may be a little ahead; another attempt has no time either."""
    router.workers.on_decode(url_of(DECODE_1), stream=[[a_failure("deadline_exceeded")]])

    flight = await router.serve()

    assert isinstance(flight.error, DeadlineExceeded)
    assert ends(await router.record()) == ["DeadlinePassed"]


async def test_attempts_are_counted(router: MemoryRouter) -> None:
    """At most `redispatch_max` after the first, whatever fails; the error says how many."""
    for worker_id in (EAST_1, EAST_2, WEST_1):
        router.workers.on_prefill(url_of(worker_id), WorkerRefused("full"))

    flight = await router.serve()

    record = await router.record()
    assert ends(record) == ["PrefillRefused"] * 3
    assert prefills(record) == [EAST_1, EAST_2, WEST_1]
    assert isinstance(flight.error, WorkerRefused)
    assert flight.error.message == "the workers refused the request after 3 attempts: full"
    assert flight.error.retry_after_s == 1
    assert (record.outcome, record.code, record.detail) == ("failed", "worker_refused", "full")
    assert sample(router, "prfaas_retries_total", cause="PrefillRefused") == 2


async def test_a_later_attempt_without_candidates_is_a_request_that_failed(
    router: MemoryRouter,
) -> None:
    """Both decode workers have failed it: there is nobody left to ask."""
    for worker_id in (DECODE_1, DECODE_2):
        router.workers.on_decode(url_of(worker_id), WorkerLost("reset"))

    flight = await router.serve()

    record = await router.record()
    assert ends(record) == ["DecodeWorkerLost", "DecodeWorkerLost", "NoPlacement"]
    assert (record.outcome, record.code) == ("failed", "no_candidate")
    assert isinstance(flight.error, NoCandidate)


async def test_without_workers_a_request_is_rejected() -> None:
    """It never ran, so it is refused and not failed; the reason is the policy's."""
    async with a_router() as router:
        for worker in router.tracker.view().workers:
            router.tracker.forget_incarnation(worker.worker_id, "i1")

        flight = await router.serve()

        record = await router.record()
        assert isinstance(flight.error, NoCandidate)
        assert "no decode worker is known" in flight.error.message
        assert (record.outcome, record.code) == ("rejected", "no_candidate")
        assert not router.workers.calls


# --- Decode fails after the first token ------------------------------------------------------


@pytest.mark.parametrize(
    ("rest", "end", "code"),
    [
        ([WorkerLost("reset")], "DecodeWorkerLost", "worker_lost"),
        ([[ALIVE], WorkerTimeout("silent")], "DecodeTimedOut", "worker_timeout"),
        ([], "DecodeWorkerLost", "worker_lost"),
        ([[a_failure("internal_error")]], "DecodeWorkerLost", "worker_lost"),
        ([[a_failure("link_down")]], "DecodeWorkerLost", "worker_lost"),
        ([[a_failure("worker_refused")]], "DecodeWorkerLost", "worker_lost"),
        ([[a_failure("draining")]], "DecodeLeft", "worker_lost"),
        (
            [[content(), a_failure("deadline_exceeded")]],
            "DeadlinePassed",
            "deadline_exceeded",
        ),
        ([[(FrameKind.REPORT, b"no json")]], "DecodeWorkerLost", "worker_lost"),
        ([[(FrameKind.OUTPUT, b"no")]], "DecodeWorkerLost", "worker_lost"),
    ],
    ids=[
        "cut",
        "silent",
        "ended",
        "failed",
        "kv is late news",
        "a refusal is late news",
        "leaving",
        "out of time, with content",
        "a report that is none",
        "an output that is none",
    ],
)
async def test_a_stream_without_tokens_that_breaks_ends_with_an_error_event(
    router: MemoryRouter, rest: list[Any], end: str, code: str
) -> None:
    """The client has seen text that a second attempt could contradict."""
    sink = MemorySink()
    router.workers.on_decode(url_of(DECODE_1), stream=[[content()], *rest])

    flight = await router.serve(sink)

    record = await router.record()
    (error,) = sink.errors
    assert error is flight.error
    assert error.code == code
    assert sink.body.startswith(CONTENT)
    assert DONE not in sink.body
    assert ends(record) == [end]
    assert (record.outcome, record.code) == ("failed", code)
    assert len(router.workers.of_kind("abort")) == 1


@pytest.mark.parametrize(
    "rest", [[WorkerLost("reset")], [WorkerTimeout("silent")], [[ALIVE], WorkerLost("reset")]]
)
async def test_what_breaks_after_the_report_breaks_nothing(
    router: MemoryRouter, rest: list[Any]
) -> None:
    """The answer is complete, [DONE] included: an error event behind it would be a lie."""
    sink = MemorySink()
    router.workers.on_decode(url_of(DECODE_1), stream=[[content()], [content(DONE), REPORT], *rest])

    flight = await router.serve(sink)

    record = await router.record()
    assert flight.error is None
    assert sink.body == CONTENT + DONE
    assert not sink.errors
    assert (record.outcome, ends(record)) == ("done", ["ok"])
    assert not is_suspect(router, DECODE_1)


async def test_a_worker_that_hangs_after_its_report_holds_nobody_up(router: MemoryRouter) -> None:
    """A whole answer must not wait for the end of a connection."""
    sink = MemorySink()
    gate = Gate()
    router.workers.on_decode(url_of(DECODE_1), stream=[[content()], [content(DONE), REPORT], gate])
    running = router.send(sink)

    await gate.reached()
    router.clock.advance(2)
    await running

    record = await router.record()
    assert record.outcome == "done"
    assert not sink.errors


# --- The client is gone ----------------------------------------------------------------------


@pytest.mark.parametrize("method", ["begin", "write"])
async def test_a_client_that_does_not_read_has_left(router: MemoryRouter, method: str) -> None:
    """Its request is cancelled: prefill and decode stop, nobody is a suspect."""
    sink = MemorySink()
    sink.steps[method].append(ClientLeftError())
    router.workers.on_decode(url_of(DECODE_1), stream=[[content()], Gate()])

    flight = await router.serve(sink)

    record = await router.record()
    assert flight.error is None
    assert (record.outcome, record.code) == ("cancelled", "client_gone")
    assert ends(record) == ["ClientGone"]
    assert not sink.errors
    assert len(router.workers.of_kind("abort")) == 1
    assert not is_suspect(router, DECODE_1)


async def test_a_client_that_left_before_it_could_be_told_changes_nothing(
    router: MemoryRouter,
) -> None:
    """The stream broke first: that is what the record says."""
    sink = MemorySink()
    sink.steps["fail"].append(ClientLeftError())
    router.workers.on_decode(url_of(DECODE_1), stream=[[content()], WorkerLost("reset")])

    flight = await router.serve(sink)

    record = await router.record()
    assert isinstance(flight.error, WorkerLost)
    assert (record.outcome, record.code, record.detail) == ("failed", "worker_lost", "reset")


# --- The view moves meanwhile ----------------------------------------------------------------


async def test_a_worker_that_restarts_meanwhile_owes_the_claim_to_its_old_life(
    router: MemoryRouter,
) -> None:
    """What a request gives back was never counted at the new life."""
    gate = Gate()
    router.workers.on_prefill(url_of(EAST_1), gate, WorkerRefused("another life"))
    running = router.send()

    await gate.reached()
    await router.register(a_busy_beat(EAST_1, incarnation="i2"))
    gate.open()
    await running

    worker = router.tracker.view().worker(EAST_1)
    assert worker is not None
    assert (worker.incarnation, worker.pending_requests) == ("i2", 3)


async def test_requests_beside_each_other_keep_their_own_books(router: MemoryRouter) -> None:
    """Twenty at once, every other one meeting a failure."""
    for number in range(10):
        router.workers.on_prefill(url_of(EAST_1), WorkerRefused(str(number)))
        router.workers.on_decode(url_of(DECODE_1), stream=[[content()], WorkerLost("reset")])

    flights = await asyncio.gather(*(router.serve() for _ in range(20)))

    records = await router.records()
    assert len(flights) == len(records) == 20
    assert {record.outcome for record in records} == {"done", "failed"}
