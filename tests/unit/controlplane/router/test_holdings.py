"""What one request holds, and that each of it is given back once, in whichever order."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from router_builders import DECODE_1, EAST_1, WEST_1, MemoryRouter

from controlplane.domain import lifecycle as life
from controlplane.domain.cluster import WorkerView
from controlplane.domain.decision import Placement, Prediction
from controlplane.domain.prefix import block_hashes
from controlplane.errors import StoreUnavailable
from controlplane.router.holdings import Holdings
from controlplane.router.memory_workers import Gate
from controlplane.wire import Reservation, ReserveReply

TOKENS = 100
BYTES = 150_000


def a_prediction(**overrides: Any) -> Prediction:
    """A hundred tokens to compute, in 0.5 s."""
    values: dict[str, Any] = {
        "uncached_tokens": TOKENS,
        "transfer_bytes": BYTES,
        "queue_s": 0.0,
        "prefill_s": 0.1,
        "transfer_s": 0.3,
        "state_tail_s": 0.1,
        "rtt_s": 0.0,
        "ttft_s": 0.5,
    }
    return Prediction(**(values | overrides))


def worker(router: MemoryRouter, worker_id: str) -> WorkerView:
    found = router.tracker.view().worker(worker_id)
    assert found is not None
    return found


def claimed(
    router: MemoryRouter, prefill_id: str = EAST_1, *, store_waited_s: float = 0.0
) -> Holdings:
    """An attempt that is counted in the router's view."""
    prefill, decode = worker(router, prefill_id), worker(router, DECODE_1)
    placement = Placement(
        prefill_worker=prefill.worker_id,
        prefill_datacenter=prefill.datacenter,
        decode_worker=decode.worker_id,
        decode_datacenter=decode.datacenter,
    )
    holdings = Holdings(router.services, store_waited_s=store_waited_s)
    holdings.claim(placement, a_prediction(), prefill, decode)
    return holdings


async def reserved(
    router: MemoryRouter, holdings: Holdings, prefill_id: str = EAST_1, **prediction: Any
) -> ReserveReply | None:
    return await holdings.reserve(
        "req-1.1",
        a_prediction(**prediction),
        worker(router, prefill_id),
        worker(router, DECODE_1),
    )


def counts(router: MemoryRouter) -> tuple[int, int, int]:
    """What the view has at the prefill worker, the decode worker and on the link, beyond beats."""
    view = router.tracker.view()
    return (
        worker(router, EAST_1).pending_requests - 3,
        worker(router, DECODE_1).pending_requests - 1,
        view.links[0].reserved_bytes,
    )


async def test_a_claim_counts_until_it_is_given_back(router: MemoryRouter) -> None:
    holdings = claimed(router)
    taken = counts(router)
    holdings.prefill_done()
    decoding = counts(router)
    holdings.finish()

    assert taken == (1, 1, BYTES)
    assert decoding == (0, 1, 0)
    assert counts(router) == (0, 0, 0)


@pytest.mark.parametrize("times", [1, 3])
async def test_giving_back_again_changes_nothing(router: MemoryRouter, times: int) -> None:
    holdings = claimed(router)
    for _ in range(times):
        holdings.prefill_done()
        holdings.give_back()
        assert holdings.finish() is None

    assert counts(router) == (0, 0, 0)


async def test_a_prefill_nearby_uses_no_link(router: MemoryRouter) -> None:
    holdings = claimed(router, WEST_1)
    await reserved(router, holdings, WEST_1)

    assert router.tracker.view().links[0].reserved_bytes == 0
    assert holdings.reservation is not None
    assert (holdings.reservation.link, holdings.reservation.link_bytes) == (None, 0)
    holdings.give_back()


async def test_a_reservation_says_what_it_is_for(router: MemoryRouter) -> None:
    holdings = claimed(router)
    await reserved(router, holdings)

    reservation = holdings.reservation
    assert isinstance(reservation, Reservation)
    assert (reservation.reservation_id, reservation.owner) == ("req-1.1", "west/router-1")
    assert (reservation.prefill_worker, reservation.decode_worker) == (EAST_1, DECODE_1)
    assert (reservation.prefill_tokens, reservation.link) == (TOKENS, "east>west")
    assert reservation.link_bytes == BYTES
    holdings.give_back()


@pytest.mark.parametrize(("ttft_s", "prefill_ttl_s"), [(0.5, 6.0), (5.0, 15.0), (500.0, 15.0)])
async def test_a_reservation_that_nobody_releases_ends_by_itself(
    router: MemoryRouter, ttft_s: float, prefill_ttl_s: float
) -> None:
    """It bridges the time until heartbeats count the request, not the whole request."""
    holdings = claimed(router)
    await reserved(router, holdings, ttft_s=ttft_s)

    assert holdings.reservation is not None
    assert holdings.reservation.ttl_s == router.limits.reservation_ttl_s == 15.0
    assert holdings.reservation.prefill_ttl_s == prefill_ttl_s
    holdings.give_back()


async def test_a_reservation_goes_with_the_attempt_or_with_the_record(
    router: MemoryRouter,
) -> None:
    given_up, finished = claimed(router), claimed(router)
    await reserved(router, given_up)
    given_up.give_back()
    await reserved(router, finished)
    asked = finished.reservation

    assert given_up.reservation is None
    assert finished.finish() is asked
    assert finished.reservation is None
    assert await router.recorder.flush()
    assert asked is not None
    await router.store.release(asked)


async def test_a_refused_reservation_leaves_nothing(router: MemoryRouter) -> None:
    holdings = claimed(router)
    prefill = worker(router, EAST_1)
    await router.store.deregister(EAST_1, "i1")

    reply = await holdings.reserve("req-1.1", a_prediction(), prefill, worker(router, DECODE_1))

    assert reply is not None
    assert reply.refused_by == "prefill_gone"
    assert holdings.reservation is None
    assert counts(router) == (0, 0, 0)


async def test_a_request_waits_for_the_store_once(router: MemoryRouter) -> None:
    """What its idempotency key has used up of the 50 ms is not there for the reservation."""
    holdings = claimed(router, store_waited_s=0.04)
    router.store.before["reserve"].append(gate := Gate())
    asking = asyncio.ensure_future(reserved(router, holdings))
    await gate.reached()

    router.clock.advance(0.011)

    assert await asking is None
    assert holdings.reservation is not None, "it may have been granted unheard"
    holdings.give_back()


async def test_a_request_that_has_waited_for_the_store_long_enough_asks_no_more(
    router: MemoryRouter,
) -> None:
    holdings = claimed(router, store_waited_s=0.05)
    calls = router.store.calls.count("reserve")

    assert await reserved(router, holdings) is None

    assert router.store.calls.count("reserve") == calls
    holdings.give_back()


async def test_a_further_attempt_may_wait_for_the_store_again(router: MemoryRouter) -> None:
    holdings = claimed(router, store_waited_s=0.05)
    await reserved(router, holdings)

    assert await reserved(router, holdings) is not None
    holdings.give_back()


async def test_without_the_store_the_claim_stands(router: MemoryRouter) -> None:
    """And what may have been granted is released all the same."""
    holdings = claimed(router)
    router.store.before["reserve"].append(StoreUnavailable("away"))

    reply = await reserved(router, holdings)

    assert reply is None
    assert holdings.reservation is not None
    assert counts(router) == (1, 1, BYTES)
    holdings.give_back()


async def test_a_place_among_retries_is_held_once_and_given_back_once(
    router: MemoryRouter,
) -> None:
    holdings = Holdings(router.services)
    budget = router.services.retry_budget

    assert await holdings.take_retry_place(1)
    assert await holdings.take_retry_place(1)
    used = budget.used
    holdings.give_back_retry_place()
    holdings.give_back_retry_place()

    assert used == 1
    assert budget.used == 0


@pytest.mark.parametrize("end", ["prefill_done", "give_back", "finish"])
async def test_every_end_of_an_attempt_gives_place_and_lead_back(
    router: MemoryRouter, end: str
) -> None:
    """Others may go on: with the prefix where it was computed, without where it was not."""
    holdings = claimed(router)
    incoming = router.incoming(text="x" * 1025)
    hashes = block_hashes(incoming.tokens.head(1024), block_tokens=16, scope="scope")
    await holdings.take_retry_place(1)
    holdings.lead(hashes, 16, EAST_1)

    getattr(holdings, end)()

    services = router.services
    hints = services.coalescing.hints(hashes, block_tokens=16)
    assert (services.retry_budget.used, services.coalescing.under_way) == (0, 0)
    assert hints.keys() == ({EAST_1} if end == "prefill_done" else set())
    holdings.finish()


@pytest.mark.parametrize("event", [life.LinkDown(), life.LinkStalled(), life.KvChunkCorrupt()])
async def test_a_verdict_leaves_the_event_as_it_is(router: MemoryRouter, event: life.Event) -> None:
    holdings = claimed(router)

    assert holdings.with_verdict_on_link(event) is event
    assert Holdings(router.services).with_verdict_on_link(event) is event
    holdings.finish()
