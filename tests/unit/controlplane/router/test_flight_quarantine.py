"""Which requests are held to have ended a worker, and what becomes of them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from builders import an_output
from output_builders import a_failure, a_telling, an_answer, text_of, told
from router_builders import (
    DECODE_1,
    DECODE_2,
    EAST_1,
    EAST_2,
    WEST_1,
    MemoryRouter,
    MemorySink,
    a_few_turns,
    a_fleet_of_beats,
    a_router,
    url_of,
)

from controlplane.config import LimitsConfig
from controlplane.edge.sink import WholeSink
from controlplane.errors import RequestQuarantined, StoreTimeout, WorkerLost, WorkerUnreached
from controlplane.router.memory_workers import Gate
from controlplane.store.api import Blamed
from controlplane.store.codec import FIRST
from controlplane.wire import Sampling

TOKENS = (11, 12, 13)
LOST = WorkerLost("reset")


@pytest.fixture
async def router() -> AsyncIterator[MemoryRouter]:
    """A router whose workers tell their tokens, each with a process life of its own."""
    async with a_router(can_resume=True, limits=LimitsConfig(redispatch_max=4)) as router:
        beats = a_fleet_of_beats(can_resume=True)
        await router.register(
            *(beat.model_copy(update={"incarnation": life_of(beat.worker_id)}) for beat in beats)
        )
        yield router


def life_of(worker_id: str) -> str:
    """Incarnations are random, so no two workers have the same."""
    return worker_id.replace("/", "-")


def dies(router: MemoryRouter, *worker_ids: str) -> None:
    """Their processes are over when they are looked for."""
    router.workers.dead |= {(url_of(worker_id), life_of(worker_id)) for worker_id in worker_ids}


async def told_of(router: MemoryRouter) -> list[str]:
    """Workers of the blames that other routers hear of."""
    await router.services.settle()
    _, events = await router.store.events(FIRST, wait_s=0)
    blames = [event for event in events if isinstance(event, Blamed)]
    assert all(blame.incarnation == life_of(blame.worker_id) for blame in blames)
    return [blame.worker_id for blame in blames]


async def test_a_request_that_ends_two_workers_is_tried_no_more(router: MemoryRouter) -> None:
    """It does not get at a third one, and neither does its retry."""
    dies(router, EAST_1, EAST_2)
    for worker_id in (EAST_1, EAST_2):
        router.workers.on_prefill(url_of(worker_id), LOST)

    flight = await router.serve(digest="poison")
    with pytest.raises(RequestQuarantined):
        await router.serve(digest="poison")
    other = await router.serve(digest="harmless")

    record = (await router.records())[0]
    assert isinstance(flight.error, RequestQuarantined)
    assert flight.error.retry_after_s is None
    assert (record.outcome, record.code) == ("failed", "request_quarantined")
    assert [attempt.ended_by for attempt in record.attempts] == ["PrefillWorkerLost"] * 2
    assert record.story[-1] == "RetryDenied"
    assert other.error is None
    assert set(await told_of(router)) == {EAST_1, EAST_2}


async def test_a_request_is_blamed_for_workers_that_ended_behind_a_relay(
    router: MemoryRouter,
) -> None:
    """Their neighbours tell that it is not the link."""
    for worker_id in (EAST_1, EAST_2):
        router.workers.dead_behind_relays.add((url_of(worker_id), life_of(worker_id)))
        router.workers.on_prefill(url_of(worker_id), LOST)

    flight = await router.serve(digest="poison")

    assert isinstance(flight.error, RequestQuarantined)


async def test_other_routers_hear_of_every_worker_that_ended(router: MemoryRouter) -> None:
    dies(router, EAST_1)
    router.workers.on_prefill(url_of(EAST_1), LOST)

    await router.serve(digest="poison")

    assert await told_of(router) == [EAST_1]


async def test_a_store_that_is_away_keeps_nobody_from_blaming(router: MemoryRouter) -> None:
    dies(router, EAST_1, EAST_2)
    router.store.before["blame"].append(StoreTimeout("slow"))
    for worker_id in (EAST_1, EAST_2):
        router.workers.on_prefill(url_of(worker_id), LOST)

    flight = await router.serve(digest="poison")
    await router.services.settle()

    assert isinstance(flight.error, RequestQuarantined)
    sample = router.metrics.registry.get_sample_value
    assert sample("prfaas_store_errors_total", {"op": "blame"}) == 1


async def test_links_that_break_kill_nobody(router: MemoryRouter) -> None:
    """Both workers live: their connections broke, and the request goes on."""
    for worker_id in (EAST_1, EAST_2):
        router.workers.on_prefill(url_of(worker_id), LOST)

    flight = await router.serve(digest="d")

    assert flight.error is None
    assert not router.services.quarantine.refuses("d")
    assert await told_of(router) == []


async def test_who_comes_after_a_death_is_not_to_blame(router: MemoryRouter) -> None:
    """Workers that were dead when the job came have not died of it."""
    dies(router, EAST_1, EAST_2)
    for worker_id in (EAST_1, EAST_2):
        router.workers.on_prefill(url_of(worker_id), WorkerUnreached("connection refused"))

    flight = await router.serve(digest="d")

    assert flight.error is None
    assert await told_of(router) == []
    assert "2 deaths" in repr(router.services.quarantine)


async def test_the_same_holds_for_decode_workers(router: MemoryRouter) -> None:
    dies(router, DECODE_1)
    router.workers.on_decode(url_of(DECODE_1), WorkerUnreached("connection refused"))

    flight = await router.serve(digest="d")

    assert flight.error is None
    assert await told_of(router) == []


async def test_an_attempt_after_one_that_was_not_reached_can_be_blamed_again(
    router: MemoryRouter,
) -> None:
    dies(router, EAST_1, EAST_2)
    router.workers.on_prefill(url_of(EAST_1), WorkerUnreached("connection refused"))
    router.workers.on_prefill(url_of(EAST_2), LOST)

    await router.serve(digest="d")

    assert await told_of(router) == [EAST_2]


async def test_a_prefill_worker_that_ends_while_its_kv_is_fetched_is_counted(
    router: MemoryRouter,
) -> None:
    """The decode worker tells of its link; whether the other end has died is asked."""
    dies(router, EAST_1)
    router.workers.on_decode(url_of(DECODE_1), stream=[[a_failure("link_down")]])

    await router.serve(digest="d")

    assert await told_of(router) == [EAST_1]
    assert "1 deaths" in repr(router.services.quarantine)


def each_tells_one_more(router: MemoryRouter, *worker_ids: str) -> None:
    for number, worker_id in enumerate(worker_ids):
        router.workers.on_decode(url_of(worker_id), stream=[[told(TOKENS[number])], LOST])


async def test_a_request_that_makes_progress_was_there_by_chance(router: MemoryRouter) -> None:
    """Two workers died under it at different tokens, and it goes on."""
    dies(router, DECODE_1, DECODE_2)
    each_tells_one_more(router, DECODE_1, DECODE_2)
    router.workers.on_decode(url_of(DECODE_1), stream=[a_telling(TOKENS, resumed=2)])
    sink = MemorySink()
    running = router.send(sink, digest="d")
    await a_few_turns(60)

    router.clock.advance(1)
    await running

    assert running.result().error is None
    assert sink.body == an_answer(TOKENS)
    assert not router.services.quarantine.refuses("d")
    assert "2 deaths" in repr(router.services.quarantine)


@pytest.mark.parametrize("is_stream", [True, False])
async def test_a_request_that_ends_workers_at_the_same_token_did_it(
    router: MemoryRouter, *, is_stream: bool
) -> None:
    """The first death is counted too, now that there is a second one at the same place."""
    dies(router, DECODE_1, DECODE_2)
    router.workers.on_decode(url_of(DECODE_1), stream=[[told(11)], LOST])
    router.workers.on_decode(url_of(DECODE_2), stream=[LOST])
    sink = MemorySink() if is_stream else WholeSink()

    flight = await router.serve(sink, digest="d", output=an_output(is_stream=is_stream))

    assert isinstance(flight.error, RequestQuarantined)
    assert router.services.quarantine.refuses("d")
    if isinstance(sink, MemorySink):
        assert sink.errors == [flight.error]
        assert sink.body == text_of(11)
    assert set(await told_of(router)) == {DECODE_1, DECODE_2}


async def test_the_same_token_counts_also_where_output_begins_anew(router: MemoryRouter) -> None:
    """Each attempt made progress, and each died at the same place."""
    dies(router, DECODE_1, DECODE_2)
    for worker_id in (DECODE_1, DECODE_2):
        router.workers.on_decode(url_of(worker_id), stream=[[told(11, 12)], LOST])

    flight = await router.serve(
        WholeSink(),
        digest="d",
        output=an_output(is_stream=False),
        sampling=Sampling(output_tokens_max=16, temperature=0.5, seed=7),
    )

    assert isinstance(flight.error, RequestQuarantined)


async def test_requests_of_a_worker_that_dies_of_something_else_go_on(
    router: MemoryRouter,
) -> None:
    """Four others died meanwhile: whoever waits for half a second each may well meet two."""
    for number in range(4):
        router.services.quarantine.died(f"elsewhere-{number}")
    dies(router, EAST_1, EAST_2)
    gates = {worker_id: Gate() for worker_id in (EAST_1, EAST_2)}
    for worker_id, gate in gates.items():
        router.workers.on_prefill(url_of(worker_id), gate, LOST)

    running = router.send(digest="d", text="x" * 101)
    for gate in gates.values():
        await gate.reached()
        router.clock.advance(0.5)
        gate.open()
    flight = await running

    assert flight.error is None
    assert router.workers.of_kind("prefill")[-1].url == url_of(WEST_1)


async def test_a_request_that_hangs_its_engines_is_refused_too(router: MemoryRouter) -> None:
    """The workers live and say it themselves: nobody need look for their processes."""
    for worker_id in (DECODE_1, DECODE_2):
        router.workers.on_decode(url_of(worker_id), stream=[[a_failure("worker_timeout")]])

    flight = await router.serve(digest="d")

    assert isinstance(flight.error, RequestQuarantined)
    assert router.services.quarantine.refuses("d")
