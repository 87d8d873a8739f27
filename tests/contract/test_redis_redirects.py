"""Servers that send callers elsewhere: followed, but never round and round."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest
from redis_answers import Answerer, answering
from store_builders import a_reservation, eventually

from controlplane.config import StoreConfig
from controlplane.errors import StoreError, StoreTimeout, StoreUnavailable
from controlplane.store.redis_store import RedisStore

CONFIG = StoreConfig(breaker_failures=3, breaker_probe_s=0.1)


def moved(to: Answerer) -> bytes:
    return f"-MOVED 1 {to.address}\r\n".encode()


def store_at(*seeds: Answerer, config: StoreConfig = CONFIG) -> RedisStore:
    url = f"redis://{','.join(each.address for each in seeds)}/0"
    return RedisStore(url, fleet="f", config=config)


async def test_servers_that_name_each_other_are_asked_once_each() -> None:
    one, two = Answerer(), Answerer()
    async with answering(one, two):
        one.answer, two.answer = moved(two), moved(one)
        store = store_at(one)

        with pytest.raises(StoreUnavailable, match="MOVED"):
            await store.ping()

        assert (len(one.asked), len(two.asked)) == (1, 1)
        await store.close()


async def test_a_chain_of_redirects_is_followed_so_far_and_no_farther() -> None:
    chain = [Answerer() for _ in range(6)]
    async with answering(*chain):
        for each, following in pairwise(chain):
            each.answer = moved(following)
        store = store_at(chain[0])

        with pytest.raises(StoreUnavailable):
            await store.ping()
        asked = [len(each.asked) for each in chain]
        await store.ping()

        assert asked == [1] * (CONFIG.redirects_max + 1) + [0] * (5 - CONFIG.redirects_max)
        assert len(chain[-1].asked) == 1
        await store.close()


@pytest.mark.parametrize("target", ["?:6379", ":0", "127.0.0.1:99999", "127.0.0.1:-1"])
async def test_a_redirect_to_nowhere_is_unavailable(target: str) -> None:
    one = Answerer(answer=f"-MOVED 1 {target}\r\n".encode())
    async with answering(one):
        store = store_at(one)

        with pytest.raises(StoreUnavailable):
            await store.ping()

        assert len(one.asked) == 1
        await store.close()


async def test_a_redirect_without_a_host_means_the_same_host() -> None:
    one, two = Answerer(), Answerer()
    async with answering(one, two):
        one.answer = f"-MOVED 1 :{two.port}\r\n".encode()
        store = store_at(one)

        await store.ping()

        assert len(two.asked) == 1
        await store.close()


async def test_a_server_that_may_not_be_written_to_gives_way_to_the_next() -> None:
    replica = Answerer(answer=b"-READONLY You can't write against a read only replica.\r\n")
    master = Answerer()
    async with answering(replica, master):
        store = store_at(replica, master)

        for _ in range(3):
            await store.ping()

        assert (len(replica.asked), len(master.asked)) == (1, 3)
        await store.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"-CLUSTERDOWN Hash slot not served\r\n",
        b"-MASTERDOWN Link with MASTER is down\r\n",
        b"-LOADING server is loading the dataset in memory\r\n",
        b"-READONLY You can't write against a read only replica.\r\n",
    ],
)
async def test_servers_that_do_not_serve_open_the_breaker(answer: bytes) -> None:
    one = Answerer(answer=answer)
    async with answering(one):
        store = store_at(one)

        for _ in range(9):
            with pytest.raises(StoreUnavailable):
                await store.ping()

        assert store.breaker.is_open
        assert len(one.asked) == CONFIG.breaker_failures
        await store.close()


async def test_a_command_that_is_told_to_try_again_is_refused_and_the_store_goes_on() -> None:
    one = Answerer(answer=b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n")
    async with answering(one):
        store = store_at(one)

        for _ in range(4):
            with pytest.raises(StoreUnavailable, match="TRYAGAIN"):
                await store.ping()

        assert not store.breaker.is_open
        await store.close()


async def test_a_redirect_to_a_server_that_is_silent_costs_one_deadline() -> None:
    one, silent = Answerer(), Answerer(answer=None)
    async with answering(one, silent):
        one.answer = moved(silent)
        store = store_at(one)

        with pytest.raises(StoreTimeout):
            await store.reserve(a_reservation())

        # One deadline for both: neither is asked again.
        assert (len(one.asked), len(silent.asked)) == (1, 1)
        await store.close()


async def test_a_silent_server_gives_way_when_the_breaker_opens() -> None:
    silent, well = Answerer(answer=None), Answerer()
    async with answering(silent, well):
        store = store_at(
            silent, well, config=CONFIG.model_copy(update={"slow_call_timeout_s": 0.05})
        )

        for _ in range(CONFIG.breaker_failures):
            with pytest.raises(StoreError):
                await store.ping()
        await eventually(lambda: answers(store.ping), bool)

        assert len(well.asked) == 1
        assert not store.breaker.is_open
        await store.close()


async def test_a_change_is_found_out_once_for_all_connections() -> None:
    one, two = Answerer(), Answerer()
    async with answering(one, two):
        store = store_at(one)
        await asyncio.gather(*(store.ping() for _ in range(8)))
        one.answer = moved(two)

        await asyncio.gather(*(store.ping() for _ in range(8)))
        before = len(one.asked)
        await asyncio.gather(*(store.ping() for _ in range(8)))

        assert len(one.asked) == before
        assert len(two.asked) == 16
        await store.close()


async def answers(call: Callable[[], Awaitable[float]]) -> bool:
    try:
        await call()
    except StoreError:
        return False
    return True
