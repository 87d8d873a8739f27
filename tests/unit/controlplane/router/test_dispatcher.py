"""Every request ends once and gives everything back, whenever and however it is interrupted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
from router_builders import (
    DECODE_1,
    EAST_1,
    EAST_2,
    LogBook,
    MemoryRouter,
    MemorySink,
    a_few_turns,
    a_router,
    at_the_decode_worker,
    at_the_prefill_worker,
    on_the_way_from_the_store,
    on_the_way_to_the_store,
    url_of,
)

from controlplane.config import LimitsConfig
from controlplane.edge.sink import WholeSink
from controlplane.errors import (
    DeadlineExceeded,
    Draining,
    InternalError,
    KeyInUse,
    KeyMismatch,
    RequestQuarantined,
    Shed,
    WorkerLost,
    WorkerRefused,
)
from controlplane.observe.logs import FIELDS
from controlplane.router import dispatcher as dispatcher_module
from controlplane.router import services as services_module
from controlplane.router.memory_workers import Gate, a_report, a_stream
from controlplane.router.sink import ClientLeftError
from controlplane.wire import FrameKind

#: Sets up where a request is held, and returns the gate.
Hold: TypeAlias = Callable[[MemoryRouter, MemorySink], Gate]

CONTENT = (FrameKind.CONTENT, b"data: hello\n\n")
DONE = (FrameKind.CONTENT, b"data: [DONE]\n\n")
REPORT = (FrameKind.REPORT, a_report().model_dump_json().encode())


def at_the_second_prefill_worker(router: MemoryRouter, _: MemorySink) -> Gate:
    router.workers.on_prefill(url_of(EAST_1), WorkerRefused("full"))
    router.workers.on_prefill(url_of(EAST_2), gate := Gate())
    return gate


def before_the_first_token(router: MemoryRouter, _: MemorySink) -> Gate:
    gate = Gate()
    router.workers.on_decode(url_of(DECODE_1), stream=[[(FrameKind.ALIVE, b"")], gate, *a_stream()])
    return gate


def sending_headers(_: MemoryRouter, sink: MemorySink) -> Gate:
    sink.steps["begin"].append(gate := Gate())
    return gate


def sending_the_first_token(_: MemoryRouter, sink: MemorySink) -> Gate:
    sink.steps["write"].append(gate := Gate())
    return gate


def between_tokens(router: MemoryRouter, _: MemorySink) -> Gate:
    gate = Gate()
    router.workers.on_decode(url_of(DECODE_1), stream=[[CONTENT], gate, *a_stream()])
    return gate


def telling_of_a_failure(router: MemoryRouter, sink: MemorySink) -> Gate:
    router.workers.on_decode(url_of(DECODE_1), stream=[[CONTENT], WorkerLost("reset")])
    sink.steps["fail"].append(gate := Gate())
    return gate


def after_the_whole_answer(router: MemoryRouter, _: MemorySink) -> Gate:
    gate = Gate()
    router.workers.on_decode(url_of(DECODE_1), stream=[[CONTENT], [DONE, REPORT], gate])
    return gate


#: Where a request waits, in order; how many prefill jobs may be left to stop; tokens were shown.
WAITS: list[tuple[Hold, int, bool]] = [
    (on_the_way_to_the_store, 0, False),
    (on_the_way_from_the_store, 0, False),
    (at_the_prefill_worker, 1, False),
    (at_the_second_prefill_worker, 1, False),
    (at_the_decode_worker, 1, False),
    (before_the_first_token, 1, False),
    (sending_headers, 1, False),
    (sending_the_first_token, 1, True),
    (between_tokens, 1, True),
]
waits = pytest.mark.parametrize(
    ("hold", "jobs", "has_begun"), WAITS, ids=[hold.__name__ for hold, _, _ in WAITS]
)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> LogBook:
    """What the dispatcher logs."""
    book = LogBook()
    monkeypatch.setattr(dispatcher_module, "_log", book)
    return book


# --- The client leaves -----------------------------------------------------------------------


@waits
async def test_a_client_that_leaves_cancels_everything(
    router: MemoryRouter, hold: Hold, jobs: int, *, has_begun: bool
) -> None:
    """Wherever its request waits; one record says so, and no error is told to nobody."""
    sink = MemorySink()
    gate = hold(router, sink)
    running = router.send(sink)
    await gate.reached()

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    record = await router.record()
    assert (record.outcome, record.code) == ("cancelled", "client_gone")
    assert record.attempts[-1].ended_by == "ClientGone"
    assert len(router.workers.of_kind("abort")) == jobs
    assert sink.is_begun == has_begun
    assert not sink.errors


async def test_a_client_that_leaves_while_it_is_told_of_a_failure_has_still_failed(
    router: MemoryRouter,
) -> None:
    """The stream broke before the client left."""
    sink = MemorySink()
    gate = telling_of_a_failure(router, sink)
    running = router.send(sink)
    await gate.reached()

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    record = await router.record()
    assert (record.outcome, record.code) == ("failed", "worker_lost")


async def test_a_client_that_leaves_with_its_whole_answer_was_served(router: MemoryRouter) -> None:
    """Clients close at [DONE], before the end of the worker's stream was read."""
    sink = MemorySink()
    gate = after_the_whole_answer(router, sink)
    running = router.send(sink)
    await gate.reached()

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    record = await router.record()
    assert (record.outcome, record.code) == ("done", "ok")
    assert record.report is not None


async def test_a_release_that_is_slow_holds_no_client_up(router: MemoryRouter) -> None:
    """Aborts and records go on behind the request."""
    abort, finish = Gate(), Gate()
    router.workers.on_prefill(url_of(EAST_1), WorkerLost("reset"))
    router.workers.on_abort(url_of(EAST_1), abort)
    router.store.before["finish"].append(finish)

    flight = await router.serve()
    await abort.reached()

    assert flight.error is None
    abort.open()
    finish.open()


async def test_aborts_under_way_are_bounded(
    router: MemoryRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A datacenter that answers no abort cannot fill the router; leases end what is left out."""
    monkeypatch.setattr("controlplane.router.services._ERRANDS_MAX", 1)
    gate = Gate()
    router.workers.on_abort(url_of(EAST_1), gate)
    router.services.abort_prefill(url_of(EAST_1), "one")
    await gate.reached()

    router.services.abort_prefill(url_of(EAST_2), "two")
    gate.open()
    await router.services.settle()

    assert [call.request_id for call in router.workers.of_kind("abort")] == ["one"]


# --- Time is over ----------------------------------------------------------------------------


@waits
async def test_a_deadline_ends_a_request_wherever_it_waits(
    router: MemoryRouter, hold: Hold, jobs: int, *, has_begun: bool
) -> None:
    """A status where nothing was sent, one error event where something was."""
    sink = MemorySink()
    gate = hold(router, sink)
    running = router.send(sink)
    await gate.reached()

    router.clock.advance(61)
    flight = await running

    record = await router.record()
    assert isinstance(flight.error, DeadlineExceeded)
    assert (record.outcome, record.code) == ("failed", "deadline_exceeded")
    assert record.attempts[-1].ended_by == "DeadlinePassed"
    assert len(router.workers.of_kind("abort")) == jobs
    assert sink.errors == ([flight.error] if has_begun else [])


async def test_a_deadline_that_passes_while_a_failure_is_told_is_not_told_too(
    router: MemoryRouter,
) -> None:
    """One error event: the first one."""
    sink = MemorySink()
    gate = telling_of_a_failure(router, sink)
    running = router.send(sink)
    await gate.reached()

    router.clock.advance(61)
    flight = await running

    record = await router.record()
    assert record.code == "worker_lost"
    assert len(sink.errors) == 1
    assert isinstance(flight.error, WorkerLost)


async def test_a_deadline_that_passes_behind_a_whole_answer_is_no_failure(
    router: MemoryRouter,
) -> None:
    """Nothing may follow [DONE]."""
    sink = MemorySink()
    gate = after_the_whole_answer(router, sink)
    running = router.send(sink, deadline_s=router.clock() + 0.5)
    await gate.reached()

    router.clock.advance(0.6)
    flight = await running

    record = await router.record()
    assert flight.error is None
    assert record.outcome == "done"
    assert not sink.errors


async def test_a_client_that_is_gone_at_the_deadline_is_no_bug(
    router: MemoryRouter, log: LogBook
) -> None:
    """It cannot be told; the request ends as it would have."""
    sink = MemorySink()
    gate = between_tokens(router, sink)
    sink.steps["fail"].append(ClientLeftError())
    running = router.send(sink)
    await gate.reached()

    router.clock.advance(61)
    flight = await running

    record = await router.record()
    assert isinstance(flight.error, DeadlineExceeded)
    assert record.code == "deadline_exceeded"
    assert log.events == []


async def test_a_request_whose_time_is_over_when_it_comes_starts_nothing(
    router: MemoryRouter,
) -> None:
    """It waited for its body or its turn: no worker is asked for what nobody waits for."""
    flight = await router.serve(deadline_s=router.clock() - 0.001)

    record = await router.record()
    assert isinstance(flight.error, DeadlineExceeded)
    assert (record.outcome, record.code) == ("failed", "deadline_exceeded")
    assert router.store.calls[-1] == "finish"
    assert "reserve" not in router.store.calls
    assert not router.workers.calls


# --- Bugs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "has_begun"),
    [("prefill", False), ("decode", False), ("frames", True), ("begin", False), ("write", True)],
)
async def test_a_bug_on_the_way_is_told_once(
    router: MemoryRouter, log: LogBook, method: str, *, has_begun: bool
) -> None:
    """As a status, or as one error event; workers are told to stop."""
    sink = MemorySink()
    bug = ZeroDivisionError("a bug")
    if method == "prefill":
        router.workers.on_prefill(url_of(EAST_1), bug)
    elif method == "decode":
        router.workers.on_decode(url_of(DECODE_1), bug)
    elif method == "frames":
        router.workers.on_decode(url_of(DECODE_1), stream=[[CONTENT], bug])
    else:
        sink.steps[method].append(bug)

    flight = await router.serve(sink)

    record = await router.record()
    assert isinstance(flight.error, InternalError)
    assert "a bug" not in flight.error.message
    assert (record.outcome, record.code) == ("failed", "internal_error")
    assert [event for _, event, _ in log.events] == ["internal.error"]
    assert log.events[0][2]["request_id"] == "req-0"
    assert sink.errors == ([flight.error] if has_begun else [])
    assert len(router.workers.of_kind("abort")) == 1


async def test_a_sink_that_cannot_even_tell_ends_its_own_request_alone(
    router: MemoryRouter, log: LogBook
) -> None:
    """The answer has begun, so no status is left to send: the connection just ends."""
    sink = MemorySink()
    sink.steps["write"].append(ZeroDivisionError("a bug"))
    sink.steps["fail"].append(ZeroDivisionError("again"))

    flight = await router.serve(sink)

    assert isinstance(flight.error, InternalError)
    assert {event for _, event, _ in log.events} == {"internal.error"}
    assert (await router.record()).code == "internal_error"


async def test_a_timeout_that_escapes_from_inside_does_not_pass_for_the_deadline(
    router: MemoryRouter, log: LogBook
) -> None:
    """A client that is told its time is over when it is not would look for the fault at itself."""
    router.workers.on_prefill(url_of(EAST_1), TimeoutError())

    flight = await router.serve()

    assert isinstance(flight.error, InternalError)
    assert (await router.record()).story[-1] == "RouterFault"
    assert [event for _, event, _ in log.events] == ["internal.error"]


async def test_a_bug_in_an_answer_that_is_not_streamed_is_a_status(
    router: MemoryRouter, log: LogBook
) -> None:
    """Nothing was sent yet, whatever was collected."""
    sink = WholeSink()
    router.workers.on_decode(url_of(DECODE_1), stream=[[CONTENT], ZeroDivisionError()])

    flight = await router.serve(sink)

    assert isinstance(flight.error, InternalError)
    assert len(log.events) == 1


# --- Load ------------------------------------------------------------------------------------


async def test_one_request_too_many_is_shed() -> None:
    """Early and cheap: before any decision, with a time to come again; then there is room."""
    limits = LimitsConfig(requests_max=2, queue_requests_max=0)
    async with a_router(limits=limits) as router:
        gate = Gate()
        for _ in range(2):
            router.workers.on_prefill(url_of(EAST_1), gate)
        running = [router.send(), router.send()]
        await a_few_turns()

        with pytest.raises(Shed) as refused:
            await router.serve()
        in_flight = router.dispatcher.in_flight
        gate.open()
        await asyncio.gather(*running)
        flight = await router.serve()

        assert refused.value.retry_after_s is not None
        assert in_flight == 2
        assert flight.error is None


async def test_a_request_beyond_the_places_waits_for_one() -> None:
    """It is in flight, for it was taken; no worker has heard of it."""
    async with a_router(limits=LimitsConfig(requests_max=1)) as router:
        gate = at_the_prefill_worker(router, MemorySink())
        first, second = router.send(), router.send()
        await gate.reached()
        await a_few_turns()

        in_flight, asked = router.dispatcher.in_flight, len(router.workers.calls)
        gate.open()
        flights = await asyncio.gather(first, second)

        assert (in_flight, asked) == (2, 1)
        assert [flight.error for flight in flights] == [None, None]


async def test_a_client_that_leaves_while_it_waits_for_its_place_leaves_nothing() -> None:
    """Neither place nor key nor record: its request never began."""
    async with a_router(limits=LimitsConfig(requests_max=1)) as router:
        gate = at_the_prefill_worker(router, MemorySink())
        first = router.send()
        await gate.reached()
        waiting = router.send(idempotency_key="k", digest="d")
        await a_few_turns()

        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        router.taken -= 1
        in_flight = router.dispatcher.in_flight
        gate.open()
        await first
        again = await router.serve(idempotency_key="k", digest="d")

        assert in_flight == 1
        assert again.error is None


async def test_a_request_that_is_shed_lets_its_key_go() -> None:
    """The client is told to come again, with the same key."""
    limits = LimitsConfig(requests_max=1, queue_requests_max=0)
    async with a_router(limits=limits) as router:
        gate = at_the_prefill_worker(router, MemorySink())
        first = router.send()
        await gate.reached()

        with pytest.raises(Shed):
            await router.serve(idempotency_key="k", digest="d")
        gate.open()
        await first
        again = await router.serve(idempotency_key="k", digest="d")

        assert again.error is None


async def test_a_deadline_that_passes_in_the_queue_begins_nothing() -> None:
    async with a_router(limits=LimitsConfig(requests_max=1)) as router:
        gate = at_the_prefill_worker(router, MemorySink())
        first = router.send()
        await gate.reached()
        waiting = router.send(deadline_s=router.clock() + 1)
        await a_few_turns()

        router.clock.advance(2)
        with pytest.raises(DeadlineExceeded):
            await waiting
        gate.open()
        await first

        assert len(router.workers.of_kind("prefill")) == 1


# --- At the door ------------------------------------------------------------------------------


def quarantine(router: MemoryRouter, digest: str) -> None:
    """Two worker lives have ended of this."""
    for incarnation in ("i8", "i9"):
        router.services.quarantine.blame(digest, incarnation)


async def test_a_request_that_has_ended_workers_is_refused_before_anything_else(
    router: MemoryRouter,
) -> None:
    """Neither store nor workers hear of it; others are served."""
    quarantine(router, "poison")
    calls = len(router.store.calls)

    with pytest.raises(RequestQuarantined) as refused:
        await router.serve(digest="poison", idempotency_key="k")
    asked = len(router.store.calls) - calls
    other = await router.serve(digest="harmless")

    assert refused.value.http_status == 422
    assert asked == 0
    assert other.error is None
    assert router.metrics.registry.get_sample_value("prfaas_quarantined_total") == 1


async def test_a_router_that_leaves_says_so_first(router: MemoryRouter) -> None:
    """Another router may know better than to refuse it."""
    quarantine(router, "poison")
    await router.dispatcher.drain(1)

    with pytest.raises(Draining):
        await router.serve(digest="poison")


async def test_a_key_is_asked_for_before_a_place(router: MemoryRouter) -> None:
    """A retry of what runs must not wait for a place behind it."""
    gate = at_the_prefill_worker(router, MemorySink())
    running = router.send(idempotency_key="k", digest="d")
    await gate.reached()

    with pytest.raises(KeyInUse):
        await router.serve(idempotency_key="k", digest="d")
    with pytest.raises(KeyMismatch):
        await router.serve(idempotency_key="k", digest="other")
    gate.open()
    flight = await running

    assert flight.error is None


async def test_a_key_that_another_router_holds_is_refused_with_a_time_to_come_again(
    router: MemoryRouter,
) -> None:
    await router.store.claim_key("k", owner="east/router-1", digest="d", ttl_s=6.0)

    with pytest.raises(KeyInUse) as refused:
        await router.serve(idempotency_key="k", digest="d")
    await router.store.release_key("k", owner="east/router-1", keep_s=60.0)
    with pytest.raises(KeyMismatch):
        await router.serve(idempotency_key="k", digest="other")
    flight = await router.serve(idempotency_key="k", digest="d")

    assert (refused.value.http_status, refused.value.retry_after_s) == (409, 1)
    assert flight.error is None


async def test_a_client_that_leaves_while_its_key_is_asked_for_leaves_nothing(
    router: MemoryRouter,
) -> None:
    """The claim may have been made: it is released all the same."""
    router.store.after["claim_key"].append(gate := Gate())
    running = router.send(idempotency_key="k", digest="d")
    await gate.reached()

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    router.taken -= 1

    claim = await router.store.claim_key("k", owner="east/router-1", digest="d", ttl_s=6.0)
    assert claim == "granted"
    assert not router.workers.calls


async def test_draining_refuses_what_is_new_and_waits_for_what_runs(router: MemoryRouter) -> None:
    """Nobody who was taken is lost."""
    gate = at_the_prefill_worker(router, MemorySink())
    running = router.send()
    await gate.reached()

    draining = asyncio.ensure_future(router.dispatcher.drain(30))
    await a_few_turns()
    with pytest.raises(Draining):
        await router.serve()
    was_done = draining.done()
    gate.open()
    flight = await running

    assert not was_done
    assert await draining
    assert flight.error is None


async def test_draining_gives_up_after_its_time(router: MemoryRouter) -> None:
    """A request that never ends cannot keep a router for ever; its client is told."""
    gate = at_the_prefill_worker(router, MemorySink())
    running = router.send()
    await gate.reached()
    draining = asyncio.ensure_future(router.dispatcher.drain(30))
    await a_few_turns()

    router.clock.advance(31)

    assert not await draining
    flight = await running
    assert isinstance(flight.error, Draining)
    assert flight.life.story[-1] == "RouterLeft"


async def test_a_stream_that_outlasts_the_drain_ends_with_an_error_event(
    router: MemoryRouter,
) -> None:
    """Never silence, never [DONE]."""
    gate, sink = Gate(), MemorySink()
    router.workers.on_decode(url_of(DECODE_1), stream=[[(FrameKind.CONTENT, b"a")], gate])
    running = router.send(sink)
    await gate.reached()
    draining = asyncio.ensure_future(router.dispatcher.drain(30))
    await a_few_turns()

    router.clock.advance(31)

    assert not await draining
    await running
    assert [error.code for error in sink.errors] == ["draining"]


async def test_a_request_that_still_waits_for_its_place_when_the_drain_is_over_begins_nothing() -> (
    None
):
    """The place that it gets is one that was taken from another: it is told to go elsewhere."""
    async with a_router(limits=LimitsConfig(requests_max=1)) as router:
        gate = at_the_prefill_worker(router, MemorySink())
        running = router.send()
        await gate.reached()
        waiting = router.send()
        draining = asyncio.ensure_future(router.dispatcher.drain(1))
        await a_few_turns()

        router.clock.advance(2)
        assert not await draining
        flights = [await running, await waiting]

        assert [type(flight.error) for flight in flights] == [Draining, Draining]
        assert len(router.workers.of_kind("prefill")) == 1


async def test_an_idle_router_is_drained_at_once(router: MemoryRouter) -> None:
    """Also after it has served."""
    await router.serve()

    assert await router.dispatcher.drain(30)
    assert repr(router.dispatcher) == "<Dispatcher 0 in flight>"


async def test_metrics_tell_each_end_apart(router: MemoryRouter) -> None:
    """One count for each request, by outcome and code; bytes only for what crossed a link."""
    await router.serve()
    await router.serve(text="short")
    for worker_id in (EAST_1, EAST_2, "west/p1"):
        router.workers.on_prefill(url_of(worker_id), WorkerRefused("full"))
    await router.serve()

    def sample(name: str, **labels: Any) -> float | None:
        return router.metrics.registry.get_sample_value(name, labels)

    assert sample("prfaas_requests_total", outcome="done", code="ok") == 2
    assert sample("prfaas_requests_total", outcome="failed", code="worker_refused") == 1
    assert sample("prfaas_request_ttft_seconds_count", offloaded="yes") == 1
    assert sample("prfaas_request_ttft_seconds_count", offloaded="no") == 1
    assert sample("prfaas_kv_egress_bytes_total", from_dc="east", to_dc="west") == 1000
    assert sample("prfaas_request_duration_seconds_count") == 3


@pytest.mark.parametrize("fails", [False, True])
async def test_the_line_of_a_request_has_listed_fields_alone(
    router: MemoryRouter, monkeypatch: pytest.MonkeyPatch, *, fails: bool
) -> None:
    """One line for each request; what no list allows would be dropped from it in silence."""
    book = LogBook()
    monkeypatch.setattr(services_module, "_log", book)
    if fails:
        for worker_id in (EAST_1, EAST_2, "west/p1"):
            router.workers.on_prefill(url_of(worker_id), WorkerRefused("full"))

    await router.serve()

    (line,) = [fields for _, event, fields in book.events if event == "request.finished"]
    assert line.keys() <= FIELDS
    assert line["outcome"] == ("failed" if fails else "done")
    assert ("egress_bytes" in line) == (not fails)
