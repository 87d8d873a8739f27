"""What requests meet on a link is what the view knows of it."""

from __future__ import annotations

import pytest
from router_builders import DECODE_1, EAST_1, EAST_2, WEST_1, MemoryRouter, url_of

from controlplane.router.memory_workers import Gate
from controlplane.wire import DecodeFailure, FrameKind


def a_failure(code: str) -> tuple[FrameKind, bytes]:
    return FrameKind.FAILURE, DecodeFailure(
        code=code, message="it broke"
    ).model_dump_json().encode()


@pytest.mark.parametrize("code", ["link_down", "link_stalled"])
async def test_a_request_that_loses_two_transfers_stays_at_home_and_so_do_the_next(
    router: MemoryRouter, code: str
) -> None:
    """Both prefill workers of the other datacenter failed: it is the way to them."""
    router.workers.on_decode(url_of(DECODE_1), stream=[[a_failure(code)]])
    router.workers.on_decode(url_of(DECODE_1), stream=[[a_failure(code)]])

    flight = await router.serve()

    record = await router.record()
    tried = [one.decision.placement for one in record.attempts]
    assert flight.error is None
    assert [one.prefill_worker for one in tried if one is not None] == [EAST_1, EAST_2, WEST_1]
    last = record.attempts[-1]
    assert [link.is_down for link in last.view.links] == [True]


async def test_corrupt_chunks_say_nothing_of_the_link(router: MemoryRouter) -> None:
    router.workers.on_decode(url_of(DECODE_1), stream=[[a_failure("chunk_corrupt")]])
    router.workers.on_decode(url_of(DECODE_1), stream=[[a_failure("chunk_corrupt")]])

    await router.serve()

    assert not router.tracker.view().links[0].is_down


async def test_a_transfer_that_arrives_clears_a_link(router: MemoryRouter) -> None:
    router.tracker.link_outcome("east>west", EAST_2, is_ok=False)

    await router.serve()
    router.tracker.link_outcome("east>west", EAST_1, is_ok=False)

    assert not router.tracker.view().links[0].is_down


async def test_after_a_hold_and_an_answered_probe_one_request_tries_the_link_before_the_others(
    router: MemoryRouter,
) -> None:
    """Or all that come until it has failed again would wait for nothing."""
    for source in (EAST_1, EAST_2):
        router.tracker.link_outcome("east>west", source, is_ok=False)
    router.clock.advance(2.1)
    router.tracker.apply_snapshot(await router.store.snapshot())
    waiting = await router.serve()
    router.tracker.link_probed("east>west", is_answered=True, asked_s=router.clock())
    router.workers.on_prefill(url_of(EAST_1), gate := Gate())

    trial = router.send()
    await gate.reached()
    meanwhile = await router.serve()
    gate.open()
    first = await trial
    after = await router.serve()

    assert waiting.headers["x-prfaas-prefill"] == WEST_1
    assert meanwhile.headers["x-prfaas-prefill"] == WEST_1
    assert first.headers["x-prfaas-prefill"] == EAST_1
    assert after.headers["x-prfaas-prefill"] == EAST_1
