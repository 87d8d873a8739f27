"""Who leads the planner, and what routers tell it of their traffic."""

from __future__ import annotations

import asyncio

import pytest
from store_builders import TTL_S, Advance

from controlplane.config import StoreConfig
from controlplane.errors import MalformedRequest, RequestTooLarge
from controlplane.store.api import StateStore


async def test_the_first_to_ask_leads_and_nobody_else_does(store: StateStore) -> None:
    assert await store.lead("plan", "router-1", ttl_s=TTL_S)
    assert not await store.lead("plan", "router-2", ttl_s=TTL_S)


async def test_of_many_that_ask_at_once_one_leads(store: StateStore) -> None:
    answers = await asyncio.gather(
        *(store.lead("plan", f"router-{number}", ttl_s=TTL_S) for number in range(20))
    )

    assert sum(answers) == 1


async def test_each_topic_has_a_leader_of_its_own(store: StateStore) -> None:
    assert await store.lead("plan", "router-1", ttl_s=TTL_S)
    assert await store.lead("policy", "router-2", ttl_s=TTL_S)


async def test_a_leader_that_asks_again_in_time_goes_on_leading(
    store: StateStore, advance: Advance
) -> None:
    for _ in range(3):
        assert await store.lead("plan", "router-1", ttl_s=0.4)
        await advance(0.2)

    assert not await store.lead("plan", "router-2", ttl_s=0.4)


async def test_a_leader_that_says_nothing_is_followed_by_another(
    store: StateStore, advance: Advance
) -> None:
    await store.lead("plan", "router-1", ttl_s=0.1)

    await advance(0.15)

    assert await store.lead("plan", "router-2", ttl_s=TTL_S)
    assert not await store.lead("plan", "router-1", ttl_s=TTL_S)


async def test_a_leader_that_resigns_is_followed_at_once(store: StateStore) -> None:
    await store.lead("plan", "router-1", ttl_s=TTL_S)

    await store.resign("plan", "router-1")
    await store.resign("plan", "router-1")

    assert await store.lead("plan", "router-2", ttl_s=TTL_S)


async def test_only_the_leader_can_resign(store: StateStore) -> None:
    await store.lead("plan", "router-1", ttl_s=TTL_S)

    await store.resign("plan", "router-2")

    assert not await store.lead("plan", "router-2", ttl_s=TTL_S)


async def test_a_router_s_newest_traffic_is_read_as_it_was_written(store: StateStore) -> None:
    assert list(await store.traffic()) == []
    await store.put_traffic("router-1", b'{"n": 1}', ttl_s=TTL_S)
    await store.put_traffic("router-2", b'{"n": 2}', ttl_s=TTL_S)

    await store.put_traffic("router-1", b'{"n": 3}', ttl_s=TTL_S)

    assert sorted(await store.traffic()) == [b'{"n": 2}', b'{"n": 3}']


async def test_the_traffic_of_a_router_that_went_is_forgotten(
    store: StateStore, advance: Advance
) -> None:
    await store.put_traffic("router-1", b"1", ttl_s=0.1)
    await store.put_traffic("router-2", b"2", ttl_s=TTL_S)

    await advance(0.15)

    assert list(await store.traffic()) == [b"2"]


async def test_traffic_that_is_too_large_is_refused(store: StateStore, config: StoreConfig) -> None:
    with pytest.raises(RequestTooLarge):
        await store.put_traffic("router-1", b" " * config.traffic_bytes_max + b"1", ttl_s=TTL_S)


async def test_traffic_that_is_not_json_is_refused(store: StateStore) -> None:
    with pytest.raises(MalformedRequest):
        await store.put_traffic("router-1", b"{", ttl_s=TTL_S)


async def test_so_many_routers_are_listed_and_those_that_end_first_are_not(
    store: StateStore, config: StoreConfig
) -> None:
    for number in range(config.routers_max + 5):
        await store.put_traffic(f"router-{number}", b"%d" % number, ttl_s=TTL_S + number)

    found = {int(body) for body in await store.traffic()}

    assert found == set(range(5, config.routers_max + 5))
