"""
Calls that were done although they timed out: repeated at once, or done late, they count once.

A caller that got no answer does not know what happened. It may ask again, and the first call may
still be done after that.
"""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from store_builders import TTL_S, Advance, a_reservation
from store_histories import Step, a_history, picture

from controlplane.config import StoreConfig
from controlplane.store.api import StateStore
from controlplane.store.memory_store import MemoryStore


async def do(store: StateStore, step: Step) -> Any:
    name, arguments, options = step
    return await getattr(store, name)(*arguments, **options)


@pytest.mark.parametrize("seed", range(6))
async def test_a_call_repeated_at_once_is_as_good_as_done_once(
    store: StateStore, config: StoreConfig, seed: int
) -> None:
    rng = Random(f"at once {seed}")
    once = MemoryStore(config=config)

    for step in a_history(rng, 80):
        expected = await do(once, step)
        for _ in range(rng.choice((1, 1, 2, 3))):
            found = await do(store, step)
            assert found == expected, step

    expected_picture, found_picture = await picture(once), await picture(store)
    # A blame or a goodbye repeated is told twice, which changes nothing that routers know.
    for each in (expected_picture, found_picture):
        each["events"] = list(dict.fromkeys(map(repr, each["events"])))
    assert found_picture == expected_picture


@pytest.mark.usefixtures("workers")
@pytest.mark.parametrize("seed", range(4))
async def test_counters_are_exact_after_late_repetitions_and_one_ttl(
    store: StateStore, advance: Advance, seed: int
) -> None:
    """Claims done late, after their release even, end by themselves; releases take nothing twice."""
    rng = Random(f"late {seed}")
    ttl_s = 0.3
    room = {"prefill_requests_max": 100, "decode_requests_max": 100}
    lasting = [
        a_reservation(
            f"lasting-{number}",
            **room,
            prefill_tokens=10 + number,
            link="east>west",
            link_bytes=3,
        )
        for number in range(3)
    ]
    passing = [
        a_reservation(
            f"passing-{number}",
            prefill_tokens=rng.randrange(1000),
            **room,
            ttl_s=ttl_s,
            prefill_ttl_s=ttl_s,
            link=rng.choice(("east>west", None)),
            link_bytes=7,
        )
        for number in range(20)
    ]
    calls: list[Step] = []
    for each in passing:
        calls += [("reserve", (each,), {})] * rng.randrange(1, 4)
        calls += [("release", (each,), {})] * rng.randrange(3)
        calls += [("finish", ([(each, each.reservation_id, b"{}")],), {})] * rng.randrange(1, 3)
    # Any order: each of them may have lain in a socket for as long as it liked.
    rng.shuffle(calls)
    for each in lasting:
        calls.insert(rng.randrange(len(calls)), ("reserve", (each,), {}))

    for call in calls:
        await do(store, call)
    await advance(ttl_s + 0.05)

    snapshot = await store.snapshot()
    tokens = sum(each.prefill_tokens for each in lasting)
    assert snapshot.loads["p1"].reserved_tokens == tokens
    assert snapshot.loads["p1"].reserved_requests == snapshot.loads["d1"].reserved_requests == 3
    assert snapshot.link_reserved_bytes == {"east>west": 9}
    counted = await store.reserve(lasting[0])
    assert counted.prefill_reserved_tokens == tokens
    assert counted.link_reserved_bytes == 9
    for each in lasting:
        await store.release(each)
    assert not (await store.snapshot()).link_reserved_bytes
    assert store.decode_errors_total == 0  # type: ignore[attr-defined]


async def test_a_record_finished_late_again_is_recorded_once(store: StateStore) -> None:
    for decision_id in ("one", "two", "one", "two", "one"):
        await store.finish([(None, decision_id, decision_id.encode())])

    assert [each.record for each in await store.decisions(count=9)] == [b"two", b"one"]


async def test_a_budget_taken_and_not_told_of_is_lost_and_never_given_twice(
    store: StateStore,
) -> None:
    """The sender asks again and gets less: a link is never over its rate."""
    burst = 1000
    granted = 0
    for _ in range(20):
        grant = await store.take_link_budget(
            "east>west", want_bytes=100, rate_bytes_per_s=0.001, burst_bytes=burst
        )
        granted += grant.granted_bytes

    assert granted == burst


async def test_a_claim_done_late_ends_by_itself(store: StateStore, advance: Advance) -> None:
    """Claimed, released, and claimed once more by the call that had timed out."""
    for _ in range(2):
        await store.claim_key("key", owner="router-1", digest="d", ttl_s=0.2)
        await store.release_key("key", owner="router-1", keep_s=TTL_S)
    await store.claim_key("key", owner="router-1", digest="d", ttl_s=0.2)
    early = await store.claim_key("key", owner="router-2", digest="d", ttl_s=TTL_S)

    await advance(0.25)

    assert early == "in_use"
    assert await store.claim_key("key", owner="router-2", digest="d", ttl_s=TTL_S) == "granted"
