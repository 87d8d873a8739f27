"""A whole router in one process, on the store's twin: readiness, models, and an orderly end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from router_builders import DECODE_1, EAST_1, ScriptedStore, a_busy_beat, a_few_turns, a_link_config
from store_builders import eventually

from controlplane.app import run_router
from controlplane.config import (
    DatacenterConfig,
    FleetConfig,
    LimitsConfig,
    ModelConfig,
    RouterConfig,
    StoreConfig,
)
from controlplane.errors import ConfigError
from controlplane.serving import listen
from controlplane.store.api import Blamed, StateStore

TTL_S = 600.0


def a_fleet(**router: Any) -> FleetConfig:
    """East and west, a router in west on ports of its own."""
    values: dict[str, Any] = {"datacenter": "west", "port": 0, "admin_port": 0}
    return FleetConfig(
        router=RouterConfig(**(values | router)),
        model=ModelConfig(name="m"),
        datacenters=(
            DatacenterConfig(name="east", prefill_workers=1),
            DatacenterConfig(name="west", decode_workers=1),
        ),
        links=(a_link_config(),),
    )


@pytest.fixture
async def store() -> ScriptedStore:
    return ScriptedStore()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def ready(session: aiohttp.ClientSession, url: str) -> tuple[int, dict[str, Any]]:
    """Status and details."""
    async with session.get(f"{url}/ready") as answer:
        return answer.status, await answer.json()


async def until(is_so: Callable[[], bool]) -> None:
    """Return as soon as it is so; a background task of the router makes it."""

    async def ask() -> bool:
        return is_so()

    await eventually(ask, bool)


async def register(store: StateStore, *worker_ids: str, **overrides: Any) -> None:
    """Let workers say that they are there."""
    for worker_id in worker_ids:
        await store.heartbeat(a_busy_beat(worker_id, **overrides), ttl_s=TTL_S)
    await a_few_turns()


async def test_a_router_is_ready_when_each_role_has_a_worker(
    store: ScriptedStore, session: aiohttp.ClientSession
) -> None:
    """Not before, and no more when the last one drains."""
    async with run_router(a_fleet(), store) as router:
        alone = await ready(session, router.url)
        await register(store, EAST_1)
        half = await ready(session, router.url)
        await register(store, DECODE_1)
        both = await ready(session, router.url)
        await register(store, DECODE_1, sequence=2, is_draining=True)
        leaving = await ready(session, router.url)

    assert [status for status, _ in (alone, half, both, leaving)] == [503, 503, 200, 503]
    assert (both[1]["prefill_workers"], both[1]["decode_workers"]) == (1, 1)
    assert (half[1]["ready"], both[1]["ready"]) == (False, True)


async def test_a_router_without_its_store_says_so_and_stays_ready(
    store: ScriptedStore, session: aiohttp.ClientSession
) -> None:
    """It routes from its last view; leaving the load balancer would lose requests for nothing."""
    async with run_router(a_fleet(), store) as router:
        await register(store, EAST_1, DECODE_1)
        with_store = await ready(session, router.url)
        store.is_away = True
        router.tracker.store_lost()
        router.tracker._heard_s -= 1.5
        without = await ready(session, router.url)

    assert (with_store[1]["store"], with_store[1]["mode"]) == ("ok", "normal")
    assert (without[0], without[1]["store"], without[1]["mode"]) == (200, "away", "store_down")


async def test_a_router_that_drains_is_not_ready(
    store: ScriptedStore, session: aiohttp.ClientSession
) -> None:
    """A load balancer sends its requests elsewhere."""
    async with run_router(a_fleet(), store) as router:
        await register(store, EAST_1, DECODE_1)
        await router.dispatcher.drain(1)

        status, details = await ready(session, router.url)

    assert (status, details["is_draining"]) == (503, True)


async def test_the_configured_model_is_served(
    store: ScriptedStore, session: aiohttp.ClientSession
) -> None:
    """Whether or not its workers are there yet."""
    async with (
        run_router(a_fleet(), store) as router,
        session.get(f"{router.url}/v1/models") as answer,
    ):
        listed = await answer.json()

    assert [model["id"] for model in listed["data"]] == ["m"]


async def test_without_workers_a_request_is_refused_for_now(
    store: ScriptedStore, session: aiohttp.ClientSession
) -> None:
    """With a record of why, also after the router has ended."""
    async with (
        run_router(a_fleet(), store) as router,
        session.post(
            f"{router.url}/v1/completions", json={"model": "m", "prompt": "hello"}
        ) as answer,
    ):
        error = (await answer.json())["error"]

    assert (answer.status, error["code"]) == (503, "no_candidate")
    (stored,) = await store.decisions(count=10)
    assert b'"no_candidate"' in stored.record


@pytest.fixture
async def worker_url() -> AsyncIterator[str]:
    """Where workers say how they are, by the path they are asked at."""

    async def beat(request: web.Request) -> web.Response:
        url = f"http://{request.host}/{request.match_info['name']}"
        worker_id = {"p": EAST_1, "d": DECODE_1}[request.match_info["name"]]
        return web.json_response(text=a_busy_beat(worker_id, url=url).model_dump_json())

    app = web.Application()
    app.router.add_get("/{name}/worker/v1/beat", beat)
    async with AsyncExitStack() as stack:
        yield await listen(stack, app, "127.0.0.1", 0)


async def test_a_router_that_starts_without_its_store_asks_the_workers_it_knew(
    store: ScriptedStore, session: aiohttp.ClientSession, worker_url: str, tmp_path: Path
) -> None:
    fleet = a_fleet().model_copy(update={"store": StoreConfig(slow_call_timeout_s=1.1)})
    async with run_router(fleet, store, state_dir=tmp_path):
        await register(store, EAST_1, url=f"{worker_url}/p")
        await register(store, DECODE_1, url=f"{worker_url}/d")
        await until(lambda: b"/d" in b"".join(path.read_bytes() for path in tmp_path.iterdir()))
    store.is_away = True

    async with run_router(fleet, store, state_dir=tmp_path) as router:
        status, details = await ready(session, router.url)

    assert (status, details["store"]) == (200, "away")
    assert (details["prefill_workers"], details["decode_workers"]) == (1, 1)


async def test_what_waits_at_the_end_is_written(store: ScriptedStore) -> None:
    """The last requests of a router have records too."""
    async with run_router(a_fleet(), store) as router, aiohttp.ClientSession() as session:
        store.is_away = True
        for _ in range(3):
            await session.post(
                f"{router.url}/v1/completions", json={"model": "m", "prompt": "hello"}
            )
        store.is_away = False

    assert len(await store.decisions(count=10)) == 3


async def test_a_request_that_ended_workers_of_other_routers_is_refused_here(
    store: ScriptedStore,
) -> None:
    """They tell of it through the store."""
    async with run_router(a_fleet(), store) as router:
        quarantine = router.dispatcher.services.quarantine
        await store.blame(Blamed("poison", EAST_1, "i1"))
        await until(lambda: "1 deaths" in repr(quarantine))
        after_one = quarantine.refuses("poison")
        await store.blame(Blamed("poison", DECODE_1, "i2"))
        await until(lambda: quarantine.refuses("poison"))

    assert not after_one


async def test_keys_are_renewed_while_their_requests_run(store: ScriptedStore) -> None:
    """By a task of the router, as long as it runs."""
    fleet = a_fleet().model_copy(update={"limits": LimitsConfig(key_ttl_s=0.15)})
    async with (
        run_router(fleet, store) as router,
        router.dispatcher.services.keys.claimed("k", "d"),
    ):
        await until(lambda: store.calls.count("claim_key") >= 3)
        elsewhere = await store.claim_key("k", owner="other", digest="d", ttl_s=1.0)

    assert elsewhere == "in_use"


@pytest.mark.parametrize(
    ("router", "said"),
    [
        ({"policy": "nowhere"}, "nowhere"),
        ({"policy_parameters": {"treshold_tokens": 1}}, "treshold_tokens"),
        ({"policy_parameters": {"threshold_tokens": -1}}, "threshold_tokens"),
    ],
)
async def test_a_policy_that_cannot_work_is_refused_at_start(
    store: ScriptedStore, router: dict[str, Any], said: str
) -> None:
    """Before anything listens; with the field and the name."""
    with pytest.raises(ConfigError, match=rf"router\.policy.*{said}"):
        async with run_router(a_fleet(**router), store):
            pass
