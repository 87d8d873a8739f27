from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kv_builders import (
    ClosedBudget,
    GenerousBudget,
    VirtualTime,
    a_link,
    property_settings,
    settle,
)

from controlplane.config import LinkConfig
from controlplane.errors import StoreTimeout
from controlplane.store.api import BudgetGrant
from workers.kv.pacing import (
    LinkBudget,
    LinkPacer,
    StoreLinkBudget,
    TokenBucket,
    quantum_bytes,
)

KIB = 1 << 10


def a_pacer(
    time: VirtualTime, budget: LinkBudget, *, link: LinkConfig | None = None, share: float = 0.25
) -> LinkPacer:
    link = link or a_link(capacity_mbit_per_s=8)
    return LinkPacer(link, budget, floor_share=share, clock=time, sleep=time.sleep)


class BucketBudget:
    """An honest shared bucket, as the store keeps it."""

    def __init__(self, link: LinkConfig, time: VirtualTime) -> None:
        self._rate = link.capacity_bps / 8
        self._level = self._burst = quantum_bytes(link)
        self._filled_s = time()
        self._time = time
        self.calls = 0

    async def take(self, want_bytes: int) -> BudgetGrant:
        self.calls += 1
        elapsed_s, self._filled_s = self._time() - self._filled_s, self._time()
        self._level = min(self._burst, self._level + elapsed_s * self._rate)
        granted = int(min(want_bytes, self._level))
        self._level -= granted
        retry_after_s = 0 if granted else (want_bytes - self._level) / self._rate
        return BudgetGrant(granted_bytes=granted, retry_after_s=retry_after_s)


class ScriptedBudget:
    """Answers by a script, over and over: a number is granted, None is a store that is away."""

    def __init__(self, answers: Sequence[int | None]) -> None:
        self._answers = answers
        self.calls = 0

    async def take(self, want_bytes: int) -> BudgetGrant:  # noqa: ARG002
        answer = self._answers[self.calls % len(self._answers)]
        self.calls += 1
        if answer is None:
            raise StoreTimeout("the store did not answer")
        return BudgetGrant(granted_bytes=answer, retry_after_s=0.01)


class AwayBudget(ScriptedBudget):
    """A store that is away."""

    def __init__(self) -> None:
        super().__init__([None])


async def send(
    pacer: LinkPacer, time: VirtualTime, sizes: Sequence[int], sent: list[tuple[float, int]]
) -> None:
    for size in sizes:
        await pacer.acquire(size)
        sent.append((time(), size))


async def run_transfers(
    pacer: LinkPacer, time: VirtualTime, transfers: Sequence[Sequence[int]]
) -> list[tuple[float, int]]:
    """Let transfers compete; returns when how many bytes were let through."""
    sent: list[tuple[float, int]] = []
    work = asyncio.gather(*(send(pacer, time, sizes, sent) for sizes in transfers))
    await time.run_until(work)
    await work
    return sent


def most_in_a_window_above(sent: Sequence[tuple[float, int]], rate: float) -> float:
    """The largest `bytes - rate * w` over all windows `w` that begin and end with a sending."""
    worst = 0.0
    for first, (begin_s, _) in enumerate(sent):
        total = 0
        for at_s, size in sent[first:]:
            total += size
            worst = max(worst, total - rate * (at_s - begin_s))
    return worst


@property_settings
@given(
    st.sampled_from([0.1, 1, 8, 200, 10_000]),
    st.lists(st.lists(st.floats(0, 1), max_size=12), min_size=1, max_size=4),
    st.lists(
        st.one_of(st.none(), st.integers(-5, 1 << 20), st.just(1 << 40)), min_size=1, max_size=8
    ),
    st.sampled_from([0.05, 0.25, 1.0]),
)
def test_a_sender_never_exceeds_rate_and_burst_whatever_the_store_answers(
    capacity: float,
    transfers: list[list[float]],
    answers: list[int | None],
    share: float,
) -> None:
    time = VirtualTime()
    link = a_link(capacity_mbit_per_s=capacity)
    # A store that only ever grants nothing would never end, so something is granted in the end.
    pacer = a_pacer(time, ScriptedBudget([*answers, 1 << 20]), link=link, share=share)
    sizes = [[int(part * pacer.slice_bytes) for part in parts] for parts in transfers]

    sent = asyncio.run(run_transfers(pacer, time, sizes))

    assert len(sent) == sum(map(len, transfers))
    assert most_in_a_window_above(sent, link.capacity_bps / 8) <= pacer.quantum_bytes + 1
    assert pacer.counters.bytes_total == sum(size for _, size in sent)


@property_settings
@given(st.integers(1, 3), st.lists(st.integers(0, 16 * KIB), min_size=20, max_size=60))
def test_all_senders_of_a_link_together_stay_within_rate_and_their_quanta(
    senders: int, sizes: list[int]
) -> None:
    time = VirtualTime()
    link = a_link(capacity_mbit_per_s=8)
    budget = BucketBudget(link, time)
    pacers = [a_pacer(time, budget, link=link) for _ in range(senders)]

    async def run() -> list[tuple[float, int]]:
        sent: list[tuple[float, int]] = []
        work = asyncio.gather(*(send(pacer, time, sizes, sent) for pacer in pacers))
        await time.run_until(work)
        return sent

    sent = sorted(asyncio.run(run()), key=lambda one: one[0])

    burst = quantum_bytes(link) * (1 + senders)
    assert most_in_a_window_above(sent, link.capacity_bps / 8) <= burst + 1


@pytest.mark.parametrize("capacity", [1, 8, 1000])
async def test_a_busy_link_reaches_its_capacity(capacity: float) -> None:
    time = VirtualTime()
    link = a_link(capacity_mbit_per_s=capacity)
    pacer = a_pacer(time, BucketBudget(link, time), link=link)
    began_s = time()

    sent = await run_transfers(pacer, time, [[pacer.slice_bytes] * 200] * 2)

    beyond_the_burst = sum(size for _, size in sent) - pacer.quantum_bytes
    assert beyond_the_burst / (time() - began_s) >= 0.95 * link.capacity_bps / 8


@pytest.mark.parametrize("capacity", [1, 8, 1000])
async def test_a_busy_link_asks_the_store_a_hundred_times_a_second_at_most(
    capacity: float,
) -> None:
    time = VirtualTime()
    link = a_link(capacity_mbit_per_s=capacity)
    budget = BucketBudget(link, time)
    pacer = a_pacer(time, budget, link=link)
    began_s = time()

    await run_transfers(pacer, time, [[pacer.slice_bytes] * 200] * 2)

    assert budget.calls <= 100 * (time() - began_s) + 2


async def test_budget_is_taken_ahead_in_quanta_not_for_each_turn() -> None:
    time = VirtualTime()
    budget = GenerousBudget()
    pacer = a_pacer(time, budget)

    await run_transfers(pacer, time, [[pacer.slice_bytes] * 32])

    assert budget.asked[0] == pacer.quantum_bytes == 256 * KIB
    assert len(budget.asked) == 32 * pacer.slice_bytes // pacer.quantum_bytes


def test_a_quantum_is_50_ms_of_a_fast_link_and_256_kib_of_a_slow_one() -> None:
    assert quantum_bytes(a_link(capacity_mbit_per_s=800)) == 5_000_000
    assert quantum_bytes(a_link(capacity_mbit_per_s=1)) == 256 * KIB


@pytest.mark.parametrize(
    ("capacity", "expected"),
    [(1, 16 * KIB), (80, 100_000), (8000, 256 * KIB)],
    ids=["slow", "10 ms", "fast"],
)
async def test_a_turn_is_10_ms_of_the_rate_within_bounds(capacity: float, expected: int) -> None:
    pacer = a_pacer(VirtualTime(), GenerousBudget(), link=a_link(capacity_mbit_per_s=capacity))

    assert pacer.slice_bytes == expected


async def test_more_than_a_turn_is_refused() -> None:
    pacer = a_pacer(VirtualTime(), GenerousBudget())

    with pytest.raises(ValueError, match="a turn is"):
        await pacer.acquire(pacer.slice_bytes + 1)


async def test_without_the_store_a_sender_has_its_floor() -> None:
    time = VirtualTime()
    pacer = a_pacer(time, AwayBudget(), share=0.25)
    began_s = time()

    sent = await run_transfers(pacer, time, [[16 * KIB] * 100])

    total = sum(size for _, size in sent)
    floor = 0.25 * pacer.link.capacity_bps / 8
    assert total - pacer.quantum_bytes <= floor * (time() - began_s) <= 1.1 * total
    assert pacer.counters.floor_bytes_total == total


class FlakyBudget:
    """A shared bucket whose every so many-th answer does not come."""

    def __init__(self, bucket: LinkBudget, every: int) -> None:
        self._bucket = bucket
        self._every = every
        self._calls = 0

    async def take(self, want_bytes: int) -> BudgetGrant:
        self._calls += 1
        if self._calls % self._every == 0:
            raise StoreTimeout("the store did not answer")
        return await self._bucket.take(want_bytes)


async def test_what_a_sender_sent_on_its_floor_is_paid_for_when_the_store_is_back() -> None:
    """Others had the whole budget meanwhile: a store that is slow at times must not add to it."""
    time, link = VirtualTime(), a_link(capacity_mbit_per_s=16)
    bucket = BucketBudget(link, time)
    pacers = [a_pacer(time, FlakyBudget(bucket, every), link=link) for every in (10**9, 20)]
    seconds, began_s = 60.0, time()

    async def send_on(pacer: LinkPacer) -> None:
        while time() < began_s + seconds:
            await pacer.acquire(pacer.slice_bytes)

    await time.run_until(asyncio.gather(*(send_on(pacer) for pacer in pacers)))

    sent = sum(pacer.counters.bytes_total for pacer in pacers)
    assert pacers[1].counters.floor_bytes_total > 0
    # One in the bucket, one ahead at each, and two that one of them may still owe.
    quanta = 1 + len(pacers) + 2
    assert sent <= link.capacity_bps / 8 * seconds + quantum_bytes(link) * quanta


async def test_a_store_that_is_away_is_asked_twice_a_second_at_most() -> None:
    time = VirtualTime()
    budget = AwayBudget()
    pacer = a_pacer(time, budget)
    began_s = time()

    await run_transfers(pacer, time, [[16 * KIB] * 100])

    assert budget.calls <= 2 * (time() - began_s) + 1
    assert pacer.counters.store_failures_total == budget.calls


async def test_a_store_that_comes_back_is_used_again() -> None:
    time = VirtualTime()
    budget = ScriptedBudget([None, *[1 << 20] * 9])
    pacer = a_pacer(time, budget)
    await run_transfers(pacer, time, [[16 * KIB] * 40])
    on_the_floor = pacer.counters.floor_bytes_total

    await run_transfers(pacer, time, [[16 * KIB]])

    assert 0 < on_the_floor < 40 * 16 * KIB
    assert pacer.counters.floor_bytes_total == on_the_floor


async def test_transfers_take_turns_in_the_order_they_ask() -> None:
    time = VirtualTime()
    pacer = a_pacer(time, GenerousBudget())
    turns: list[str] = []

    async def transfer(name: str) -> None:
        for _ in range(3):
            await pacer.acquire(pacer.slice_bytes)
            turns.append(name)

    # As long as the burst lasts nobody waits, and there is nothing to be fair about.
    await run_transfers(pacer, time, [[pacer.slice_bytes] * 16])
    work = asyncio.gather(transfer("a"), transfer("b"), transfer("c"))
    await time.run_until(work)

    assert turns == ["a", "b", "c"] * 3


async def test_a_cancelled_turn_gives_its_budget_back() -> None:
    time = VirtualTime()
    budget = GenerousBudget()
    pacer = a_pacer(time, budget)
    # The ceiling's burst is used up, so the next turn has its budget but must wait.
    await run_transfers(pacer, time, [[pacer.slice_bytes] * 16])
    taken = len(budget.asked)
    waiting = asyncio.ensure_future(pacer.acquire(pacer.slice_bytes))
    await settle()

    waiting.cancel()
    await asyncio.wait([waiting])
    await run_transfers(pacer, time, [[pacer.slice_bytes] * 16])

    assert waiting.cancelled()
    assert pacer.counters.bytes_total == 32 * pacer.slice_bytes
    assert len(budget.asked) == taken + 1


async def test_a_transfer_that_gives_up_does_not_hold_up_the_others() -> None:
    time = VirtualTime()
    budget = ClosedBudget()
    pacer = a_pacer(time, budget)
    first = asyncio.ensure_future(pacer.acquire(1))
    second = asyncio.ensure_future(pacer.acquire(1))
    await settle()

    first.cancel()
    budget.is_open = True
    await time.run_until(second)

    assert first.cancelled()
    assert second.done()


async def test_waiting_for_budget_is_measured() -> None:
    time = VirtualTime()
    pacer = a_pacer(time, GenerousBudget())

    # One megabyte a second, a quarter of one as burst.
    await run_transfers(pacer, time, [[pacer.slice_bytes] * 64])

    expected_s = (64 * pacer.slice_bytes - pacer.quantum_bytes) / 1e6
    assert pacer.counters.wait_s_total == pytest.approx(expected_s, rel=0.01)


async def test_an_answer_over_what_was_asked_is_cut() -> None:
    time = VirtualTime()
    budget = ScriptedBudget([1 << 40])
    pacer = a_pacer(time, budget)

    await run_transfers(pacer, time, [[pacer.slice_bytes] * 32])

    assert budget.calls == 2


async def test_the_store_is_asked_for_the_links_rate_and_burst() -> None:
    asked: dict[str, Any] = {}

    class Store:
        async def take_link_budget(self, link: str, **arguments: Any) -> BudgetGrant:
            asked.update(arguments, link=link)
            return BudgetGrant(granted_bytes=5, retry_after_s=0)

    grant = await StoreLinkBudget(Store(), a_link(capacity_mbit_per_s=8)).take(77)

    assert grant.granted_bytes == 5
    assert asked == {
        "link": "east>west",
        "want_bytes": 77,
        "rate_bytes_per_s": 1e6,
        "burst_bytes": 256 * KIB,
    }


def test_a_bucket_whose_clock_runs_backwards_refills_nothing() -> None:
    bucket = TokenBucket(rate_bytes_per_s=10, burst_bytes=10, now_s=100)
    bucket.take(10, 100)

    assert not bucket.take(1, 50)
    assert bucket.take(1, 100.5)


def test_a_bucket_never_holds_more_than_its_burst() -> None:
    bucket = TokenBucket(rate_bytes_per_s=10, burst_bytes=10, now_s=0)

    assert not bucket.take(11, 1000)
    assert bucket.wait_s(10, 1000) == 0


def test_a_link_without_distance_has_no_delay_and_a_window_of_two_quanta() -> None:
    pacer = a_pacer(VirtualTime(), GenerousBudget())

    assert (pacer.delay_s, pacer.window_bytes) == (0, 512 * KIB)


def test_the_window_of_a_long_link_holds_what_is_on_its_way() -> None:
    link = a_link(capacity_mbit_per_s=80, emulated_delay_ms=100)
    pacer = a_pacer(VirtualTime(), GenerousBudget(), link=link)

    assert pacer.window_bytes >= 0.1 * 1e7 + pacer.quantum_bytes


# --- Copies -----------------------------------------------------------------------------------


async def test_what_a_request_waits_for_goes_before_what_is_copied() -> None:
    """A copy has the turns that nobody else wants, and the link is full all the time."""
    time = VirtualTime()
    pacer = a_pacer(time, GenerousBudget())
    slice_bytes = pacer.slice_bytes
    order: list[str] = []

    async def run(name: str, turns: int, *, is_urgent: bool) -> None:
        for _ in range(turns):
            await pacer.acquire(slice_bytes, is_urgent=is_urgent)
            order.append(name)

    copy = asyncio.ensure_future(run("copy", 40, is_urgent=False))
    # The copy has used the burst up before the request comes.
    while len(order) < 20:
        await asyncio.sleep(0)
        if not copy.done() and time._sleepers:
            break
    request = asyncio.ensure_future(run("request", 30, is_urgent=True))
    work = asyncio.gather(copy, request)
    await time.run_until(work)
    await work

    began = order.index("request")
    assert order[began:].count("request") == 30
    # A turn that had begun is not taken back; after that, none before the last of the request's.
    last = len(order) - 1 - order[::-1].index("request")
    assert order[began:last].count("copy") <= 1
    assert order[last + 1 :] == ["copy"] * (40 - order[:last].count("copy"))
    assert pacer.counters.bytes_total == 70 * slice_bytes


async def test_a_copy_that_gives_up_in_line_holds_nobody_up() -> None:
    time = VirtualTime()
    pacer = a_pacer(time, ClosedBudget())
    request = asyncio.ensure_future(pacer.acquire(1000))
    await settle()
    copy = asyncio.ensure_future(pacer.acquire(1000, is_urgent=False))
    await settle()
    copy.cancel()
    request.cancel()
    await asyncio.gather(copy, request, return_exceptions=True)

    later = asyncio.ensure_future(pacer.acquire(0, is_urgent=False))
    await time.run_until(later)

    assert later.exception() is None
