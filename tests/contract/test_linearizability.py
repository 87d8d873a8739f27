"""
Reservations, idempotency keys and documents behave as if all routers called one after the other.

Histories of several routers on a real server, over a way that delays answers and cuts connections.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from random import Random
from typing import Any
from uuid import uuid4

import pytest
from linearizability import Call, is_linearizable
from store_builders import TTL_S, a_beat, a_reservation, full
from store_proxy import StoreProxy, a_proxy_to

from controlplane.config import StoreConfig
from controlplane.errors import StoreError
from controlplane.store.api import StateStore
from controlplane.store.embedded import EmbeddedServer
from controlplane.store.redis_store import RedisStore
from controlplane.wire import Reservation

#: The breaker would turn one cut into many calls that never went out.
CONFIG = StoreConfig(call_timeout_s=1.0, slow_call_timeout_s=2.0, breaker_failures=100)
ROUTERS = 4
CALLS = 9
CAPACITY = {"p1": 2, "p2": 1, "d1": 2}


# --- What they should do, one call at a time --------------------------------------------------


def reserving(held: frozenset[Reservation], operation: Any) -> tuple[Any, Any]:
    """All or nothing, within the capacity of both workers; the answer counts what is held."""
    name, wanted = operation
    others = frozenset(each for each in held if each.reservation_id != wanted.reservation_id)
    if name == "release":
        return others, None

    def load(worker_id: str, among: frozenset[Reservation]) -> int:
        return sum(worker_id in {each.prefill_worker, each.decode_worker} for each in among)

    refused_by = None
    if wanted not in held:
        if load(wanted.prefill_worker, others) >= wanted.prefill_requests_max:
            refused_by = "prefill_full"
        elif load(wanted.decode_worker, others) >= wanted.decode_requests_max:
            refused_by = "decode_full"
    after = others if refused_by else others | {wanted}
    return after, (
        refused_by,
        load(wanted.prefill_worker, after),
        load(wanted.decode_worker, after),
    )


def claiming(state: tuple[str, str] | None, operation: Any) -> tuple[Any, Any]:
    """A key stands for one digest, and one owner holds it at a time; "" when nobody does."""
    name, owner, digest = operation
    if name == "release":
        is_ours = state is not None and state[1] == owner
        return ((state[0], "") if state is not None and is_ours else state), None
    if state is not None and state[0] != digest:
        return state, "mismatch"
    if state is not None and state[1] not in {"", owner}:
        return state, "in_use"
    return (digest, owner), "granted"


def publishing(state: tuple[int, bytes], operation: Any) -> tuple[Any, Any]:
    """A register that is replaced only by whoever knows its version."""
    name, body, expected = operation
    version, stood = state
    if name == "read":
        return state, state
    if body == stood and expected in {version, version - 1}:
        return state, state
    if expected != version:
        return state, None
    return (version + 1, body), (version + 1, body)


# --- What they do -----------------------------------------------------------------------------


async def reserve(store: StateStore, operation: Any) -> Any:
    name, wanted = operation
    if name == "release":
        return await store.release(wanted)
    reply = await store.reserve(wanted)
    return reply.refused_by, reply.prefill_reserved_requests, reply.decode_reserved_requests


async def claim(store: StateStore, operation: Any) -> Any:
    name, owner, digest = operation
    if name == "release":
        return await store.release_key("key", owner=owner, keep_s=TTL_S)
    return await store.claim_key("key", owner=owner, digest=digest, ttl_s=TTL_S)


async def publish(store: StateStore, operation: Any) -> Any:
    name, body, expected = operation
    if name == "read":
        found = await store.document("plan")
        return (found.version, found.body) if found is not None else (0, b"")
    found = await store.publish("plan", body, expected_version=expected)
    return (found.version, found.body) if found is not None else None


def some_reservation(router: int, rng: Random) -> Any:
    number = rng.randrange(2)
    prefill = rng.choice(("p1", "p2"))
    wanted = a_reservation(
        f"{router}-{number}-{prefill}",
        prefill_worker=prefill,
        prefill_requests_max=CAPACITY[prefill],
        decode_requests_max=CAPACITY["d1"],
    )
    return rng.choice(("reserve", "reserve", "release")), wanted


def some_claim(router: int, rng: Random) -> Any:
    return rng.choice(("claim", "release")), f"router-{router}", rng.choice("aab")


def some_document(router: int, rng: Random) -> Any:
    return rng.choice(("read", "publish")), b"1%d%d" % (router, rng.randrange(9)), rng.randrange(5)


async def history(
    stores: list[StateStore],
    run: Callable[[Any, Any], Awaitable[Any]],
    choose: Callable[[int, Random], Any],
    rng: Random,
) -> list[Call]:
    """What each router called, and what came of it."""
    calls: list[Call] = []

    async def route(router: int, seed: float) -> None:
        own = Random(seed)
        for _ in range(CALLS):
            operation = choose(router, own)
            begun_s = time.monotonic()
            try:
                answer = await run(stores[router], operation)
            except StoreError:
                calls.append(Call(operation, begun_s))
            else:
                calls.append(Call(operation, begun_s, time.monotonic(), answer))

    await asyncio.gather(*(route(router, rng.random()) for router in range(len(stores))))
    return calls


@pytest.fixture
async def proxy(own_server: EmbeddedServer) -> AsyncIterator[StoreProxy]:
    async with a_proxy_to(own_server.url.removeprefix("unix://")) as proxy:
        proxy.delay_s = (0.0, 0.002)
        yield proxy


OBJECTS = [
    pytest.param(reserve, some_reservation, frozenset(), reserving, id="reservations"),
    pytest.param(claim, some_claim, None, claiming, id="idempotency keys"),
    pytest.param(publish, some_document, (0, b""), publishing, id="documents"),
]


@pytest.mark.parametrize(("run", "choose", "initial", "rules"), OBJECTS)
async def test_concurrent_calls_can_be_put_into_an_order(
    proxy: StoreProxy, run: Any, choose: Any, initial: Any, rules: Any
) -> None:
    failed = 0
    for seed in range(12):
        rng = Random(f"history {seed}")
        fleet = f"f{uuid4().hex}"
        stores = [RedisStore(proxy.url, fleet=fleet, config=CONFIG) for _ in range(ROUTERS)]
        for worker_id in CAPACITY:
            await stores[0].heartbeat(a_beat(worker_id, inventory=full()), ttl_s=TTL_S)

        async def cut(rng: Random = rng) -> None:
            """Half of the histories lose all connections once; who waited does not know."""
            await asyncio.sleep(rng.uniform(0.002, 0.015))
            proxy.become("cut")
            await asyncio.sleep(0.001)
            proxy.become("none")

        cutting = asyncio.create_task(cut()) if seed % 2 else None
        calls = await history([*stores], run, choose, rng)
        if cutting is not None:
            await cutting
        for store in stores:
            await store.close()
        failed += sum(call.has_failed for call in calls)

        assert is_linearizable(calls, initial, rules), calls

    assert failed


async def test_the_checker_sees_a_claim_that_is_not_atomic() -> None:
    """Counting and claiming in two steps, as a store without scripts would do it."""
    held: set[Reservation] = set()

    async def careless(_: object, operation: Any) -> Any:
        before = frozenset(held)
        await asyncio.sleep(0)
        after, answer = reserving(before, operation)
        held.clear()
        held.update(after)
        await asyncio.sleep(0)
        return answer

    verdicts = []
    for seed in range(10):
        held.clear()
        stores: list[Any] = [None] * ROUTERS
        calls = await history(stores, careless, some_reservation, Random(seed))
        verdicts.append(is_linearizable(calls, frozenset(), reserving))

    assert not all(verdicts)


def a_call(operation: Any, begun_s: float, ended_s: float, answer: Any) -> Call:
    return Call(operation, begun_s, ended_s, answer)


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        pytest.param([], True, id="nothing happened"),
        pytest.param(
            [
                a_call(("claim", "a", "d"), 0, 1, "granted"),
                a_call(("claim", "b", "d"), 2, 3, "in_use"),
            ],
            True,
            id="one after the other",
        ),
        pytest.param(
            [
                a_call(("claim", "a", "d"), 0, 9, "in_use"),
                a_call(("claim", "b", "d"), 1, 2, "granted"),
            ],
            True,
            id="the later one first, for they overlap",
        ),
        pytest.param(
            [
                a_call(("claim", "a", "d"), 0, 1, "in_use"),
                a_call(("claim", "b", "d"), 2, 3, "granted"),
            ],
            False,
            id="refused for what had not begun",
        ),
        pytest.param(
            [
                a_call(("claim", "a", "d"), 0, 3, "granted"),
                a_call(("claim", "b", "d"), 0, 3, "granted"),
            ],
            False,
            id="granted twice",
        ),
        pytest.param(
            [
                Call(("claim", "a", "d"), 0),
                a_call(("claim", "b", "d"), 5, 6, "granted"),
                a_call(("release", "b", "d"), 7, 8, None),
                a_call(("claim", "b", "d"), 9, 10, "in_use"),
            ],
            True,
            id="a failed call took effect much later",
        ),
        pytest.param(
            [
                Call(("claim", "a", "d"), 7),
                a_call(("claim", "b", "d"), 5, 6, "in_use"),
            ],
            False,
            id="a failed call took effect before it began",
        ),
        pytest.param(
            [Call(("claim", "a", "d"), 0), a_call(("claim", "b", "d"), 5, 6, "granted")],
            True,
            id="a failed call never took effect",
        ),
    ],
)
def test_the_checker_knows_what_can_be_put_into_an_order(
    calls: list[Call], *, expected: bool
) -> None:
    assert is_linearizable(calls, None, claiming) is expected
