"""One prefill for requests with a common prefix: the first computes it, the others wait."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from builders import an_output
from output_builders import a_failure, a_telling, told
from router_builders import (
    BLOCK,
    DECODE_1,
    EAST_1,
    EAST_2,
    LoopClock,
    MemoryRouter,
    MemorySink,
    a_few_turns,
    a_router,
    url_of,
)

from controlplane.config import LimitsConfig
from controlplane.domain.prefix import BlockHash
from controlplane.errors import WorkerRefused
from controlplane.router import coalescing as coalescing_module
from controlplane.router.coalescing import Coalescing
from controlplane.router.memory_workers import Gate, a_stream
from controlplane.router.records import DecisionRecord


@pytest.fixture
async def clock() -> LoopClock:
    return LoopClock()


@pytest.fixture
def coalescing(clock: LoopClock) -> Coalescing:
    """Prefixes of 64 tokens are worth it, which are four blocks."""
    return Coalescing(tokens_min=64, waiters_max=8, hint_s=3.0, clock=clock)


def blocks(text: str) -> tuple[BlockHash, ...]:
    """A chain of hashes: each stands for all letters up to it."""
    return tuple(text[: end + 1].encode() for end in range(len(text)))


def waiting(
    coalescing: Coalescing, text: str, *, cached_tokens: int = 0, within_s: float = 30.0
) -> asyncio.Task[bool]:
    return asyncio.ensure_future(
        coalescing.wait(
            blocks(text), block_tokens=BLOCK, cached_tokens=cached_tokens, within_s=within_s
        )
    )


def lead(coalescing: Coalescing, text: str, worker_id: str = "east/p1") -> Any:
    return coalescing.lead(blocks(text), block_tokens=BLOCK, prefill_worker=worker_id)


def hit(coalescing: Coalescing, text: str) -> dict[str, int]:
    """Tokens by worker."""
    hints = coalescing.hints(blocks(text), block_tokens=BLOCK)
    return {worker_id: found.resumable_tokens for worker_id, found in hints.items()}


# --- Who waits for whom -----------------------------------------------------------------------


@pytest.mark.parametrize(("tokens", "is_worth"), [(63, False), (64, True)])
def test_a_short_prefix_is_computed_faster_than_waited_for(
    coalescing: Coalescing, tokens: int, *, is_worth: bool
) -> None:
    assert coalescing.is_worth(tokens) == is_worth


async def test_nobody_waits_where_nobody_computes(coalescing: Coalescing) -> None:
    assert not await waiting(coalescing, "abcdefgh")


@pytest.mark.parametrize(
    ("prompt", "waits"),
    [
        ("abcdefgh", True),
        ("abcdefghij", True),
        ("abcdef", True),
        ("abcdexyz", True),
        ("abcxyzuv", False),
        ("xbcdefgh", False),
        ("abc", False),
        ("", False),
    ],
    ids=["the same", "longer", "shorter", "half of it", "less", "other", "too short", "nothing"],
)
async def test_a_request_waits_for_a_long_common_prefix(
    coalescing: Coalescing, prompt: str, *, waits: bool
) -> None:
    """At least half of what is computed is found: its lengths are the whole and powers of two."""
    leader = lead(coalescing, "abcdefgh")
    follower = waiting(coalescing, prompt)
    await a_few_turns()

    assert follower.done() != waits
    coalescing.over(leader, is_computed=True)
    assert await follower == waits
    assert (coalescing.waiters, coalescing.under_way) == (0, 0)


async def test_what_is_cached_is_not_waited_for(coalescing: Coalescing) -> None:
    """Only four more blocks are worth a wait."""
    leader = lead(coalescing, "abcdefgh")
    has_most = waiting(coalescing, "abcdefgh", cached_tokens=5 * BLOCK)
    has_some = waiting(coalescing, "abcdefgh", cached_tokens=4 * BLOCK)
    await a_few_turns()

    assert has_most.done()
    assert not has_some.done()
    coalescing.over(leader, is_computed=True)
    assert await has_some


async def test_a_wait_ends_in_its_time(coalescing: Coalescing, clock: LoopClock) -> None:
    leader = lead(coalescing, "abcdefgh")
    follower = waiting(coalescing, "abcdefgh", within_s=30)
    await a_few_turns()

    clock.advance(31)

    assert await follower
    assert coalescing.waiters == 0
    assert repr(coalescing) == "<Coalescing 2 prefixes under way, 0 waiting>"
    coalescing.over(leader, is_computed=False)


async def test_one_waiter_too_many_computes_its_own(clock: LoopClock) -> None:
    coalescing = Coalescing(tokens_min=64, waiters_max=1, hint_s=3.0, clock=clock)
    leader = lead(coalescing, "abcdefgh")
    first = waiting(coalescing, "abcdefgh")
    await a_few_turns()

    second = waiting(coalescing, "abcdefgh")

    assert not await second
    assert coalescing.waiters == 1
    coalescing.over(leader, is_computed=True)
    await first


async def test_a_waiter_that_is_cancelled_waits_no_more(coalescing: Coalescing) -> None:
    leader = lead(coalescing, "abcdefgh")
    follower = waiting(coalescing, "abcdefgh")
    await a_few_turns()

    follower.cancel()
    await asyncio.wait([follower])

    assert coalescing.waiters == 0
    coalescing.over(leader, is_computed=False)


async def test_a_second_leader_of_the_same_prefix_is_nobody_s(coalescing: Coalescing) -> None:
    """It did not wait, for one reason or another: its end wakes nobody too early."""
    first, second = lead(coalescing, "abcdefgh"), lead(coalescing, "abcdefgh", "east/p2")
    follower = waiting(coalescing, "abcdefgh")
    await a_few_turns()

    coalescing.over(second, is_computed=True)
    await a_few_turns()
    was_waiting = not follower.done()
    coalescing.over(first, is_computed=False)

    assert was_waiting
    assert await follower


async def test_being_over_twice_is_being_over_once(coalescing: Coalescing) -> None:
    leader = lead(coalescing, "abcdefgh")
    coalescing.over(leader, is_computed=False)
    lead(coalescing, "abcdefgh", "east/p2")

    coalescing.over(leader, is_computed=True)

    assert coalescing.under_way == 2
    assert hit(coalescing, "abcdefgh") == {}


# --- What is known afterwards -----------------------------------------------------------------


async def test_a_finished_prefix_is_known_to_be_at_its_worker(coalescing: Coalescing) -> None:
    """As long a part as is common, of the lengths that are kept."""
    coalescing.over(lead(coalescing, "abcdefgh"), is_computed=True)

    assert hit(coalescing, "abcdefgh") == {"east/p1": 8 * BLOCK}
    assert hit(coalescing, "abcdefghij") == {"east/p1": 8 * BLOCK}
    assert hit(coalescing, "abcdexyz") == {"east/p1": 4 * BLOCK}
    assert hit(coalescing, "xyz") == {}


async def test_a_prefix_that_was_given_up_is_nowhere(coalescing: Coalescing) -> None:
    coalescing.over(lead(coalescing, "abcdefgh"), is_computed=False)

    assert hit(coalescing, "abcdefgh") == {}


async def test_a_hint_ends_when_the_worker_tells_itself(
    coalescing: Coalescing, clock: LoopClock
) -> None:
    coalescing.over(lead(coalescing, "abcdefgh"), is_computed=True)
    clock.advance(2.9)
    before = hit(coalescing, "abcdefgh")
    clock.advance(0.2)

    assert before == {"east/p1": 8 * BLOCK}
    assert hit(coalescing, "abcdefgh") == {}


async def test_an_old_long_hint_hides_no_new_short_one(
    coalescing: Coalescing, clock: LoopClock
) -> None:
    coalescing.over(lead(coalescing, "abcdefgh"), is_computed=True)
    clock.advance(2)
    coalescing.over(lead(coalescing, "abcd", "east/p2"), is_computed=True)
    clock.advance(2)

    assert hit(coalescing, "abcdefgh") == {"east/p2": 4 * BLOCK}


async def test_hints_are_bounded(coalescing: Coalescing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coalescing_module, "_RECENT_MAX", 2)
    for first in "abc":
        coalescing.over(lead(coalescing, first + "bcd"), is_computed=True)

    assert [hit(coalescing, first + "bcd") for first in "abc"] == [
        {},
        {"east/p1": 4 * BLOCK},
        {"east/p1": 4 * BLOCK},
    ]


# --- In a router ------------------------------------------------------------------------------

LIMITS = LimitsConfig(coalesce_tokens_min=64)


def prefill_urls(router: MemoryRouter) -> list[str]:
    return [call.url for call in router.workers.of_kind("prefill")]


async def by_id(router: MemoryRouter) -> dict[str, DecisionRecord]:
    return {record.request_id: record for record in await router.records()}


async def test_a_common_prefix_is_computed_once() -> None:
    """The second request comes when it is there, and is told where."""
    async with a_router(limits=LIMITS) as router:
        gate = Gate()
        router.workers.on_decode(url_of(DECODE_1), stream=[gate, *a_stream()])
        first = router.send()
        await gate.reached()
        second = router.send()
        await a_few_turns()
        asked = len(router.workers.of_kind("prefill"))

        gate.open()
        await asyncio.gather(first, second)

        records = await by_id(router)
        features = records["req-1"].attempts[0].features
        assert asked == 1
        assert features.hit(EAST_1).resumable_tokens == 6 * BLOCK
        assert records["req-0"].attempts[0].features.prefix_hits == {}
        assert records["req-1"].story[0] == "TurnCame"
        assert records["req-1"].timeline.turn_came_s is not None
        sample = router.metrics.registry.get_sample_value
        assert sample("prfaas_coalesced_total") == 1


async def test_others_begin_with_the_first_token_and_not_with_the_last() -> None:
    async with a_router(limits=LIMITS) as router:
        gate = Gate()
        stream = a_stream()
        router.workers.on_decode(url_of(DECODE_1), stream=[stream[0], gate, *stream[1:]])
        first = router.send()
        await gate.reached()

        flight = await router.serve()
        is_running = not first.done()
        gate.open()
        await first

        assert flight.error is None
        assert is_running


async def three(router: MemoryRouter, gate: Gate) -> Sequence[asyncio.Task[Any]]:
    """One that computes, and two that wait for it."""
    router.workers.on_prefill(url_of(EAST_1), gate)
    tasks = [router.send()]
    await gate.reached()
    tasks += [router.send(), router.send()]
    await a_few_turns()
    assert len(prefill_urls(router)) == 1
    return tasks


async def test_when_the_leader_leaves_the_next_one_leads() -> None:
    """Not all of them at once."""
    async with a_router(limits=LIMITS) as router:
        tasks = await three(router, Gate())
        router.workers.on_prefill(url_of(EAST_1), gate := Gate())

        tasks[0].cancel()
        await gate.reached()
        await a_few_turns()
        asked = len(prefill_urls(router))
        gate.open()
        flights = await asyncio.gather(*tasks[1:])

        assert asked == 2
        assert [flight.error for flight in flights] == [None, None]


async def test_a_leader_that_is_refused_goes_on_leading() -> None:
    """Its next attempt computes the prefix that the others wait for."""
    async with a_router(limits=LIMITS) as router:
        gate, second = Gate(), Gate()
        router.workers.on_prefill(url_of(EAST_1), gate, WorkerRefused("full"))
        router.workers.on_prefill(url_of(EAST_2), second)
        tasks = [router.send()]
        await gate.reached()
        tasks += [router.send(), router.send()]
        await a_few_turns()

        gate.open()
        await second.reached()
        await a_few_turns()
        asked = prefill_urls(router)
        second.open()
        await asyncio.gather(*tasks)

        assert asked == [url_of(EAST_1), url_of(EAST_2)]
        records = await by_id(router)
        assert EAST_2 in records["req-1"].attempts[0].features.prefix_hits


async def test_a_leader_that_fails_for_good_leaves_nobody_waiting() -> None:
    async with a_router(limits=LimitsConfig(coalesce_tokens_min=64, redispatch_max=0)) as router:
        gate = Gate()
        router.workers.on_decode(url_of(DECODE_1), stream=[gate, [a_failure("segment_failed")]])
        first = router.send()
        await gate.reached()
        second = router.send()
        await a_few_turns()

        gate.open()
        flights = await asyncio.gather(first, second)

        assert flights[0].error is not None
        assert flights[1].error is None
        records = await by_id(router)
        assert records["req-1"].attempts[0].features.prefix_hits == {}


async def test_a_wait_for_a_leader_that_hangs_ends() -> None:
    limits = LimitsConfig(coalesce_tokens_min=64, coalesce_wait_s=1.0)
    async with a_router(limits=limits) as router:
        gate = Gate()
        tasks = await three(router, gate)

        router.clock.advance(1.1)
        flights = await asyncio.gather(*tasks[1:])
        gate.open()
        await tasks[0]

        assert [flight.error for flight in flights] == [None, None]


async def test_a_stream_that_moves_waits_for_nobody() -> None:
    """Its client waits already; and what it computes anew others may use."""
    async with a_router(can_resume=True, limits=LIMITS) as router:
        router.workers.on_decode(url_of(DECODE_1), stream=[[told(1)], [a_failure("draining")]])
        router.workers.on_decode("http://west/d2", stream=[a_telling((1, 2), resumed=1)])

        flight = await router.serve(MemorySink())

        record = await router.record()
        assert flight.error is None
        assert record.story.count("TurnCame") == 1
        assert record.attempts[1].features.prefix_hits[EAST_1].resumable_tokens == 6 * BLOCK


async def test_a_short_request_waits_for_nobody() -> None:
    async with a_router(limits=LIMITS) as router:
        await router.serve(text="short", output=an_output())

        record = await router.record()
        assert record.story[0] == "Placed"
        assert record.timeline.turn_came_s is None
