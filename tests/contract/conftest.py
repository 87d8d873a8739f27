"""The stores under test: the twin in memory, and Redis with a real server behind it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from uuid import uuid4

import pytest
from redis_servers import Cluster, a_cluster
from store_builders import TTL_S, Advance, a_beat, full

from controlplane.config import StoreConfig
from controlplane.store.api import StateStore
from controlplane.store.embedded import EmbeddedServer
from controlplane.store.memory_store import MemoryStore
from controlplane.store.redis_store import RedisStore


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """A server for the whole session; tests keep apart by fleet name."""
    given = os.environ.get("REDIS_URL", "")
    if given:
        yield given
        return
    server = EmbeddedServer()
    server.start()
    yield server.url
    server.stop()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Three nodes for the whole session; fleets have random names and so random nodes."""
    with a_cluster() as servers:
        yield servers


@pytest.fixture
def own_server() -> Iterator[EmbeddedServer]:
    """A server of one test, which may flush, freeze and kill it."""
    server = EmbeddedServer()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def config() -> StoreConfig:
    """Small bounds; deadlines that a busy machine keeps."""
    return StoreConfig(
        call_timeout_s=5.0, slow_call_timeout_s=10.0, decisions_max=5, events_max=100
    )


@dataclass
class FakeClock:
    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def redis_store(server_url: str, config: StoreConfig) -> AsyncIterator[RedisStore]:
    store = await RedisStore.connect(server_url, fleet=f"test-{uuid4().hex}", config=config)
    yield store
    await store.close()


@pytest.fixture(params=["memory", "redis", "cluster"])
async def store(
    request: pytest.FixtureRequest, config: StoreConfig, clock: FakeClock
) -> AsyncIterator[StateStore]:
    """Each implementation in turn."""
    if request.param != "memory":
        is_cluster = request.param == "cluster"
        fixture = request.getfixturevalue("cluster" if is_cluster else "server_url")
        url = fixture.url() if is_cluster else fixture
        redis = await RedisStore.connect(url, fleet=f"test-{uuid4().hex}", config=config)
        yield redis
        await redis.close()
    else:
        memory = MemoryStore(config=config, clock=clock)
        yield memory
        await memory.close()


@pytest.fixture
def advance(store: StateStore, clock: FakeClock) -> Advance:
    """Let time pass: at once for the twin, really for Redis."""

    async def wait(seconds: float) -> None:
        if isinstance(store, MemoryStore):
            clock.now_s += seconds
        else:
            await asyncio.sleep(seconds)

    return wait


@pytest.fixture
async def workers(store: StateStore) -> None:
    """p1 and d1 are registered, both as incarnation "one"."""
    for worker_id in ("p1", "d1"):
        await store.heartbeat(a_beat(worker_id, inventory=full()), ttl_s=TTL_S)
