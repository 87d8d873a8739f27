"""Whatever the server does, the request path waits 50 ms, and the server is not stormed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from random import Random

import pytest
from store_builders import TTL_S, a_beat, a_reservation, eventually, full
from store_proxy import LoopLag, StoreProxy, a_proxy_to

from controlplane.config import StoreConfig
from controlplane.errors import StoreError
from controlplane.store.connections import LOOP_LAG_S
from controlplane.store.embedded import EmbeddedServer
from controlplane.store.redis_store import RedisStore

#: Production's, but for probes that a test can wait for.
CONFIG = StoreConfig(breaker_probe_s=0.2)
REPLICAS = 8


@pytest.fixture
async def proxy(own_server: EmbeddedServer) -> AsyncIterator[StoreProxy]:
    async with a_proxy_to(own_server.url.removeprefix("unix://")) as proxy:
        yield proxy


@pytest.fixture
async def lag() -> AsyncIterator[LoopLag]:
    lag = LoopLag()
    watching = asyncio.create_task(lag.watch())
    yield lag
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def a_store(proxy: StoreProxy, *, seed: int = 1, config: StoreConfig = CONFIG) -> RedisStore:
    """A store with p1 and d1 registered and a connection open."""
    store = RedisStore(proxy.url, fleet="f", config=config, rng=Random(seed))
    for worker_id in ("p1", "d1"):
        await store.heartbeat(a_beat(worker_id, inventory=full()), ttl_s=TTL_S)
    # A busy machine may be late for the first call, too.
    await eventually(lambda: is_up(store), bool)
    return store


async def freeze(proxy: StoreProxy) -> None:
    proxy.become("frozen")
    await asyncio.sleep(0.7)


async def cut(proxy: StoreProxy) -> None:
    proxy.become("cut")
    await asyncio.sleep(0.7)


async def slow(proxy: StoreProxy) -> None:
    for most_s in (0.001, 0.04, 0.5):
        proxy.delay_s = (0.001, most_s)
        await asyncio.sleep(0.25)


async def flap(proxy: StoreProxy) -> None:
    for _ in range(5):
        proxy.become("cut")
        await asyncio.sleep(0.07)
        proxy.become("none")
        await asyncio.sleep(0.07)


@pytest.mark.parametrize("outage", [freeze, cut, slow, flap])
async def test_no_call_on_the_request_path_waits_longer_than_its_deadline(
    proxy: StoreProxy, lag: LoopLag, outage: Callable[[StoreProxy], Awaitable[None]]
) -> None:
    store = await a_store(proxy)
    seconds: list[float] = []
    is_over = False

    async def request(number: int) -> None:
        while not is_over:
            started_s = time.monotonic()
            try:
                await store.reserve(a_reservation(f"r{number}"))
                await store.claim_key(f"k{number}", owner="o", digest="d", ttl_s=TTL_S)
            except StoreError:
                pass
            # Two calls, but the second one only if the first was answered in time.
            seconds.append((time.monotonic() - started_s) / 2)
            await asyncio.sleep(0.005)

    requests = [asyncio.create_task(request(number)) for number in range(24)]
    await asyncio.sleep(0.05)
    await outage(proxy)
    is_over = True
    await asyncio.gather(*requests)

    assert len(seconds) > 100
    assert max(seconds) <= CONFIG.call_timeout_s + 2 * LOOP_LAG_S + lag.worst_s
    proxy.become("none")
    proxy.delay_s = (0.0, 0.0)
    await eventually(lambda: is_up(store), bool)
    await store.close()


@pytest.mark.parametrize("fault", ["frozen", "cut"])
async def test_while_the_breaker_is_open_one_probe_at_a_time_goes_out(
    proxy: StoreProxy, fault: str
) -> None:
    store = await a_store(proxy)
    proxy.become("frozen" if fault == "frozen" else "cut")
    while not store.breaker.is_open:
        await is_up(store)
    before = len(proxy.connects)
    started_s = time.monotonic()

    while time.monotonic() - started_s < 1.5:
        await asyncio.gather(*(is_up(store) for _ in range(20)))
        await asyncio.sleep(0.01)

    # Each probe has a connection of its own, for the last one's was closed.
    probes = len(proxy.connects) - before
    seconds = time.monotonic() - started_s
    # At most; a busy machine has time for fewer.
    assert 2 <= probes <= seconds / 0.2 / 0.8 + 1
    gaps = [
        late - early
        for early, late in zip(proxy.connects[before:], proxy.connects[before + 1 :], strict=False)
    ]
    assert min(gaps) >= 0.2 * 0.8 - 0.01
    assert max(gaps) - min(gaps) > 0.002
    await store.close()


async def test_replicas_that_come_back_together_make_two_connections_each(
    proxy: StoreProxy,
) -> None:
    """The first second after an outage; each has requests waiting, and a feed of events."""
    # A call that a busy machine is late for would cost a connection of its own.
    patient = CONFIG.model_copy(update={"call_timeout_s": 2.0})
    stores = [await a_store(proxy, seed=seed, config=patient) for seed in range(REPLICAS)]
    is_over = False

    async def requests(store: RedisStore) -> None:
        while not is_over:
            await asyncio.gather(*(is_up(store) for _ in range(12)))
            await asyncio.gather(store.decisions(count=9), return_exceptions=True)
            await asyncio.sleep(0.005)

    async def feed(store: RedisStore) -> None:
        while not is_over:
            try:
                cursor = (await store.snapshot()).cursor
                await store.events(cursor, wait_s=0.05)
            except StoreError:
                await asyncio.sleep(0.01)

    tasks = [asyncio.create_task(use(store)) for store in stores for use in (requests, feed)]
    await asyncio.sleep(0.1)
    proxy.become("cut")
    await eventually(lambda: asyncio.sleep(0, all(s.breaker.is_open for s in stores)), bool)
    await asyncio.sleep(0.3)
    proxy.become("none")
    healed_s = time.monotonic()
    await asyncio.sleep(1.0)
    is_over = True
    await asyncio.gather(*tasks)

    connects = [each for each in proxy.connects if healed_s <= each < healed_s + 1.0]
    assert not any(store.breaker.is_open for store in stores)
    assert REPLICAS <= len(connects) <= 2 * REPLICAS
    for store in stores:
        await store.close()


async def is_up(store: RedisStore) -> bool:
    try:
        await store.reserve(a_reservation("probe"))
    except StoreError:
        return False
    return True
