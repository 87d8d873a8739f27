"""What the page on Redis says a role needs is enough, and nothing dangerous is in it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from store_builders import TTL_S, a_beat, a_location, a_reservation, full

from controlplane.config import StoreConfig
from controlplane.errors import StoreUnavailable
from controlplane.store.api import Blamed
from controlplane.store.codec import FIRST
from controlplane.store.embedded import EmbeddedServer
from controlplane.store.redis_store import RedisStore
from controlplane.store.scripts import BY_SHA

PAGE = Path(__file__).parents[2] / "docs" / "redis.md"
CONFIG = StoreConfig(call_timeout_s=5.0, slow_call_timeout_s=10.0)


async def a_store(server: EmbeddedServer, role: str) -> RedisStore:
    url = server.url.replace("unix://", f"unix://prfaas-{role}:{role.upper()}-PASSWORD@")
    return await RedisStore.connect(url, fleet="local", config=CONFIG)


@pytest.fixture
async def admin(own_server: EmbeddedServer) -> AsyncIterator[RedisStore]:
    """The page's lists are in force."""
    admin = await RedisStore.connect(own_server.url, fleet="local", config=CONFIG)
    lists = re.findall(r"^ACL SETUSER .*$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(lists) == 2
    await admin._calls.ask_all("test", [tuple(line.split()) for line in lists])
    yield admin
    await admin.close()


async def use_as_worker(store: RedisStore) -> None:
    for worker_id in ("p1", "d1"):
        await store.heartbeat(a_beat(worker_id, inventory=full(aa="a")), ttl_s=TTL_S)
    await store.heartbeat(a_beat("p2", inventory=full()), ttl_s=TTL_S)
    await store.deregister("p2", "one")
    await store.put_segment(a_location())
    await store.drop_segment("s2")
    await store.take_link_budget("a>b", want_bytes=1, rate_bytes_per_s=1.0, burst_bytes=10)


async def use_as_router(store: RedisStore) -> None:
    reservation = a_reservation(link="a>b", link_bytes=5)
    assert (await store.reserve(reservation)).refused_by is None
    await store.release(reservation)
    for number in range(3):
        await store.finish([(reservation, f"decision-{number}", b"{}")])
    snapshot = await store.snapshot()
    assert len(snapshot.beats) == 2
    await store.events(FIRST, wait_s=0)
    assert await store.segments(count=9)
    assert await store.decisions(count=9)
    assert await store.decision("decision-1")
    await store.claim_key("key", owner="o", digest="d", ttl_s=TTL_S)
    await store.release_key("key", owner="o", keep_s=TTL_S)
    await store.blame(Blamed("f", "p1", "one"))
    await store.publish("plan", b"{}")
    assert await store.document("plan")
    assert await store.lead("plan", "r", ttl_s=TTL_S)
    await store.resign("plan", "r")
    await store.put_traffic("r", b"{}", ttl_s=TTL_S)
    assert await store.traffic() == [b"{}"]


async def test_each_role_can_do_its_work_with_what_the_page_gives_it(
    own_server: EmbeddedServer, admin: RedisStore
) -> None:
    for script in BY_SHA.values():
        await admin._calls.ask_one("test", ("SCRIPT", "LOAD", script.text))
    worker, router = await a_store(own_server, "worker"), await a_store(own_server, "router")

    await use_as_worker(worker)
    await use_as_router(router)

    assert worker.decode_errors_total == router.decode_errors_total == 0
    await worker.close()
    await router.close()


@pytest.mark.usefixtures("admin")
@pytest.mark.parametrize("role", ["worker", "router"])
@pytest.mark.parametrize(
    "words",
    [
        ("FLUSHALL",),
        ("CONFIG", "GET", "*"),
        ("KEYS", "*"),
        ("SHUTDOWN",),
        ("ACL", "LIST"),
        ("CLIENT", "KILL", "TYPE", "normal"),
        ("GET", "prfaas:{other}:segment:s1"),
        ("HGET", "prfaas:{other}:worker:p1", "beat"),
    ],
    ids=" ".join,
)
async def test_what_no_role_needs_is_refused(
    own_server: EmbeddedServer, role: str, words: tuple[str, ...]
) -> None:
    store = await a_store(own_server, role)

    with pytest.raises(StoreUnavailable, match="NOPERM"):
        await store._calls.ask_one("test", words)

    await store.close()


@pytest.mark.usefixtures("admin")
async def test_a_worker_may_call_scripts_and_not_send_any(own_server: EmbeddedServer) -> None:
    worker = await a_store(own_server, "worker")

    with pytest.raises(StoreUnavailable, match="NOPERM"):
        await worker._calls.ask_one("test", ("EVAL", "return 1", 0))

    await worker.close()
