"""The token bucket that all senders of a link share."""

from __future__ import annotations

import asyncio
import time

import pytest
from store_builders import Advance

from controlplane.store.api import StateStore
from controlplane.store.memory_store import MemoryStore

LINK = "east>west"


async def take(store: StateStore, want: int, *, rate: float = 1000.0, burst: int = 100) -> int:
    grant = await store.take_link_budget(
        LINK, want_bytes=want, rate_bytes_per_s=rate, burst_bytes=burst
    )
    assert (grant.retry_after_s > 0) == (grant.granted_bytes == 0 and want > 0)
    return grant.granted_bytes


async def test_an_idle_link_has_one_burst_to_give(store: StateStore) -> None:
    assert await take(store, 60, rate=0.001) == 60
    assert await take(store, 60, rate=0.001) == 40


async def test_an_empty_bucket_grants_nothing_and_says_for_how_long(store: StateStore) -> None:
    await take(store, 100, rate=2.0)

    grant = await store.take_link_budget(LINK, want_bytes=50, rate_bytes_per_s=0.5, burst_bytes=100)

    assert grant.granted_bytes == 0
    assert grant.retry_after_s == pytest.approx(100, rel=0.1)


async def test_an_empty_bucket_fills_at_the_rate(store: StateStore, advance: Advance) -> None:
    await take(store, 100, rate=2000)

    await advance(0.06)

    assert await take(store, 10_000, rate=2000) == 100


async def test_a_bucket_never_holds_more_than_a_burst(store: StateStore, advance: Advance) -> None:
    await take(store, 100, rate=1e6)

    await advance(0.05)

    assert await take(store, 10_000, rate=1e6) == 100


async def test_wanting_nothing_takes_nothing(store: StateStore) -> None:
    assert await take(store, 0) == 0
    assert await take(store, 100) == 100


async def test_a_smaller_burst_applies_at_once(store: StateStore) -> None:
    await take(store, 0, rate=0.001, burst=100)

    assert await take(store, 100, rate=0.001, burst=30) == 30


async def test_a_new_rate_applies_at_once(store: StateStore, advance: Advance) -> None:
    await take(store, 100, rate=0.001)

    await advance(0.05)

    assert await take(store, 100, rate=1e6) == 100


async def test_links_do_not_share_their_budgets(store: StateStore) -> None:
    await take(store, 100, rate=0.001)

    grant = await store.take_link_budget(
        "west>east", want_bytes=100, rate_bytes_per_s=0.001, burst_bytes=100
    )

    assert grant.granted_bytes == 100


async def test_all_senders_together_stay_under_rate_and_burst(store: StateStore) -> None:
    """For the twin no time passes at all, so its senders share exactly one burst."""
    rate, burst = 100_000.0, 2_000
    started_s = time.monotonic()

    async def send(calls: int) -> int:
        return sum([await take(store, 700, rate=rate, burst=burst) for _ in range(calls)])

    granted = sum(await asyncio.gather(*(send(50) for _ in range(4))))
    elapsed_s = time.monotonic() - started_s

    assert granted <= rate * elapsed_s + burst
    assert granted >= burst
    if isinstance(store, MemoryStore):
        assert granted == burst


@pytest.mark.parametrize(
    ("want", "rate", "burst"),
    [(-1, 1.0, 1), (1, 0.0, 1), (1, float("inf"), 1), (1, float("nan"), 1), (1, 1.0, 0)],
)
async def test_a_bucket_that_could_never_grant_is_refused(
    store: StateStore, want: int, rate: float, burst: int
) -> None:
    with pytest.raises(ValueError, match="must be"):
        await store.take_link_budget(
            LINK, want_bytes=want, rate_bytes_per_s=rate, burst_bytes=burst
        )
