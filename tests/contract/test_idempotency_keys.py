"""Idempotency keys: one request at a time, and one request only."""

from __future__ import annotations

import asyncio

import pytest
from store_builders import TTL_S, Advance

from controlplane.store.api import KeyClaim, StateStore


async def claim(
    store: StateStore,
    *,
    owner: str = "router-1",
    digest: str = "d1",
    ttl_s: float = TTL_S,
    is_renewal: bool = False,
) -> KeyClaim:
    return await store.claim_key(
        "key", owner=owner, digest=digest, ttl_s=ttl_s, is_renewal=is_renewal
    )


async def test_a_key_nobody_holds_is_granted(store: StateStore) -> None:
    assert await claim(store) == "granted"


async def test_a_key_in_use_is_not_granted_to_another_router(store: StateStore) -> None:
    await claim(store)

    assert await claim(store, owner="router-2") == "in_use"


async def test_the_same_owner_may_claim_again(store: StateStore) -> None:
    """Its first call may have been done and timed out."""
    await claim(store)

    assert await claim(store) == "granted"


@pytest.mark.parametrize("owner", ["router-1", "router-2"])
async def test_a_key_stands_for_one_request(store: StateStore, owner: str) -> None:
    await claim(store)

    assert await claim(store, owner=owner, digest="d2") == "mismatch"


async def test_after_release_a_retry_may_run_and_another_request_may_not(
    store: StateStore,
) -> None:
    await claim(store)
    await store.release_key("key", owner="router-1", keep_s=TTL_S)

    assert await claim(store, owner="router-2", digest="d2") == "mismatch"
    assert await claim(store, owner="router-2") == "granted"
    assert await claim(store, owner="router-1") == "in_use"


async def test_a_released_key_is_free_after_its_time(store: StateStore, advance: Advance) -> None:
    await claim(store)
    await store.release_key("key", owner="router-1", keep_s=0.05)

    await advance(0.1)

    assert await claim(store, digest="d2") == "granted"


async def test_a_router_that_dies_holds_nothing_back(store: StateStore, advance: Advance) -> None:
    await claim(store, ttl_s=0.05)

    await advance(0.1)

    assert await claim(store, owner="router-2", digest="d2") == "granted"


async def test_a_claim_ends_although_its_key_stands_for_an_earlier_request(
    store: StateStore, advance: Advance
) -> None:
    await claim(store)
    await store.release_key("key", owner="router-1", keep_s=TTL_S)
    await claim(store, ttl_s=0.05)

    await advance(0.1)

    assert await claim(store, owner="router-2", digest="d2") == "mismatch"
    assert await claim(store, owner="router-2") == "granted"


async def test_a_renewal_prolongs_a_claim(store: StateStore, advance: Advance) -> None:
    await claim(store, ttl_s=0.2)
    renewed = await claim(store, is_renewal=True)

    await advance(0.3)

    assert renewed == "granted"
    assert await claim(store, owner="router-2") == "in_use"


async def test_a_renewal_takes_no_key_anew(store: StateStore) -> None:
    never_claimed = await claim(store, is_renewal=True)
    await claim(store)
    await store.release_key("key", owner="router-1", keep_s=TTL_S)
    released = await claim(store, is_renewal=True)

    assert (never_claimed, released) == ("in_use", "in_use")
    assert await claim(store, owner="router-2") == "granted"


async def test_releasing_twice_or_what_another_holds_does_nothing(store: StateStore) -> None:
    await store.release_key("key", owner="router-1", keep_s=TTL_S)
    await claim(store)
    await store.release_key("key", owner="router-2", keep_s=TTL_S)
    held = await claim(store, owner="router-2")
    for _ in range(2):
        await store.release_key("key", owner="router-1", keep_s=TTL_S)

    assert held == "in_use"
    assert await claim(store, owner="router-2") == "granted"
    assert await claim(store, owner="router-1") == "in_use"


async def test_of_many_routers_one_gets_the_key(store: StateStore) -> None:
    answers = await asyncio.gather(
        *(claim(store, owner=f"router-{number}") for number in range(20))
    )

    assert sorted(answers) == ["granted"] + ["in_use"] * 19


async def test_keys_do_not_meet(store: StateStore) -> None:
    await claim(store)

    other = await store.claim_key("other", owner="router-2", digest="d2", ttl_s=TTL_S)

    assert other == "granted"
