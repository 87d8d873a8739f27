"""A request that is sent twice with one idempotency key runs once at a time."""

from __future__ import annotations

import asyncio

import pytest
from router_builders import LoopClock, ScriptedStore, a_few_turns

from controlplane.errors import KeyInUse, KeyMismatch, StoreTimeout, StoreUnavailable
from controlplane.observe.metrics import RouterMetrics
from controlplane.router.keys import KeyKeeper
from controlplane.router.memory_workers import Gate
from controlplane.store.api import KeyClaim

OTHER = "east/router-1"


@pytest.fixture
async def clock() -> LoopClock:
    return LoopClock()


@pytest.fixture
def store(clock: LoopClock) -> ScriptedStore:
    return ScriptedStore(clock=clock)


@pytest.fixture
def metrics() -> RouterMetrics:
    return RouterMetrics()


@pytest.fixture
def keys(store: ScriptedStore, metrics: RouterMetrics, clock: LoopClock) -> KeyKeeper:
    return KeyKeeper(store, metrics, owner="west/router-1", ttl_s=6.0, keep_s=600.0, clock=clock)


async def elsewhere(store: ScriptedStore, digest: str = "d") -> KeyClaim:
    """What another router is told of the key."""
    return await store.claim_key("k", owner=OTHER, digest=digest, ttl_s=6.0)


def errors(metrics: RouterMetrics, op: str) -> float | None:
    return metrics.registry.get_sample_value("prfaas_store_errors_total", {"op": op})


async def test_a_request_without_a_key_asks_nobody(keys: KeyKeeper, store: ScriptedStore) -> None:
    async with keys.claimed(None, "d"):
        assert repr(keys) == "<KeyKeeper 0 running>"

    assert store.calls == []


async def test_a_key_is_held_while_its_request_runs(keys: KeyKeeper, store: ScriptedStore) -> None:
    async with keys.claimed("k", "d"):
        running = repr(keys)
        while_running = await elsewhere(store)

    await keys.settle()
    assert running == "<KeyKeeper 1 running>"
    assert while_running == "in_use"
    assert await elsewhere(store, "other") == "mismatch"
    assert await elsewhere(store) == "granted"


async def test_a_key_of_a_request_that_fails_is_released(
    keys: KeyKeeper, store: ScriptedStore
) -> None:
    with pytest.raises(ZeroDivisionError):
        async with keys.claimed("k", "d"):
            raise ZeroDivisionError

    await keys.settle()
    assert repr(keys) == "<KeyKeeper 0 running>"
    assert await elsewhere(store) == "granted"


async def test_the_same_key_twice_in_one_router_is_in_use(
    keys: KeyKeeper, store: ScriptedStore
) -> None:
    """Known without the store; and the one that runs keeps it."""
    store.is_away = True
    async with keys.claimed("k", "d"):
        with pytest.raises(KeyInUse) as refused:
            async with keys.claimed("k", "d"):
                pass
        with pytest.raises(KeyMismatch):
            async with keys.claimed("k", "other"):
                pass
        still = repr(keys)

    assert refused.value.retry_after_s == 1
    assert still == "<KeyKeeper 1 running>"


async def test_a_key_that_another_router_holds_is_in_use(
    keys: KeyKeeper, store: ScriptedStore
) -> None:
    """And stays with it: nothing is released that was not granted."""
    await elsewhere(store)
    with pytest.raises(KeyInUse):
        async with keys.claimed("k", "d"):
            pytest.fail("it does not run")

    assert repr(keys) == "<KeyKeeper 0 running>"
    assert "release_key" not in store.calls
    assert await store.claim_key("k", owner="third", digest="d", ttl_s=6.0) == "in_use"


async def test_a_key_that_stands_for_another_request_is_refused(
    keys: KeyKeeper, store: ScriptedStore
) -> None:
    async with keys.claimed("k", "d"):
        pass
    await keys.settle()
    calls = len(store.calls)

    with pytest.raises(KeyMismatch):
        async with keys.claimed("k", "other"):
            pytest.fail("it does not run")

    assert store.calls[calls:] == ["claim_key"]


async def test_without_the_store_a_request_runs(
    keys: KeyKeeper, store: ScriptedStore, metrics: RouterMetrics
) -> None:
    """A retry at another router may run twice; refusing would lose requests for certain."""
    store.is_away = True

    async with keys.claimed("k", "d"):
        pass

    await keys.settle()
    assert (errors(metrics, "claim_key"), errors(metrics, "release_key")) == (1, 1)
    assert repr(keys) == "<KeyKeeper 0 running>"


async def test_a_claim_that_was_made_unheard_is_released(
    keys: KeyKeeper, store: ScriptedStore
) -> None:
    store.after["claim_key"].append(StoreTimeout("done, but nobody heard"))
    async with keys.claimed("k", "d"):
        pass

    await keys.settle()
    assert await elsewhere(store) == "granted"


async def test_a_claim_that_is_cancelled_on_its_way_is_released(
    keys: KeyKeeper, store: ScriptedStore
) -> None:
    store.after["claim_key"].append(gate := Gate())

    async def claim() -> None:
        async with keys.claimed("k", "d"):
            pytest.fail("it was cancelled")

    running = asyncio.ensure_future(claim())
    await gate.reached()
    running.cancel()
    await asyncio.wait([running])

    await keys.settle()
    assert running.cancelled()
    assert repr(keys) == "<KeyKeeper 0 running>"
    assert await elsewhere(store) == "granted"


async def test_claims_are_renewed_as_long_as_their_requests_run(
    keys: KeyKeeper, store: ScriptedStore, clock: LoopClock
) -> None:
    """Longer than the time to live; and not a moment longer than they run."""
    renewing = asyncio.ensure_future(keys.run())
    async with keys.claimed("k", "d"):
        for _ in range(10):
            await a_few_turns(5)
            clock.advance(2.1)
        await a_few_turns(5)
        after_21_s = await elsewhere(store)
    await keys.settle()
    await elsewhere(store)
    await store.release_key("k", owner=OTHER, keep_s=0.0)
    calls = len(store.calls)
    clock.advance(2.1)
    await a_few_turns(5)

    assert after_21_s == "in_use"
    assert len(store.calls) == calls
    renewing.cancel()
    await asyncio.wait([renewing])


async def test_a_claim_nobody_renews_ends_by_itself(
    keys: KeyKeeper, store: ScriptedStore, clock: LoopClock
) -> None:
    """Its router has died; the client may send again after one time to live."""
    async with keys.claimed("k", "d"):
        clock.advance(6.1)

        assert await elsewhere(store) == "granted"


async def test_a_renewal_that_fails_is_tried_again(
    keys: KeyKeeper, store: ScriptedStore, clock: LoopClock, metrics: RouterMetrics
) -> None:
    """One may be late: there are three in a time to live."""
    renewing = asyncio.ensure_future(keys.run())
    async with keys.claimed("k", "d"):
        await a_few_turns(5)
        store.before["claim_key"].append(StoreUnavailable("away"))
        for _ in range(4):
            clock.advance(2.1)
            await a_few_turns(5)

        assert await elsewhere(store) == "in_use"
    assert errors(metrics, "claim_key") == 1
    assert not renewing.done()
    renewing.cancel()
    await asyncio.wait([renewing])


async def test_no_answer_waits_for_a_release(keys: KeyKeeper, store: ScriptedStore) -> None:
    """A frozen store would hold the end of every stream."""
    store.before["release_key"].append(gate := Gate())

    async with keys.claimed("k", "d"):
        pass
    await gate.reached()

    assert repr(keys) == "<KeyKeeper 0 running>"
    gate.open()
    await keys.settle()
    assert await elsewhere(store) == "granted"


async def test_a_claim_comes_after_the_release_before_it(
    keys: KeyKeeper, store: ScriptedStore
) -> None:
    """Or the release would undo it."""
    store.before["release_key"].append(gate := Gate())
    async with keys.claimed("k", "d"):
        pass
    await gate.reached()

    async def again() -> KeyClaim:
        async with keys.claimed("k", "d"):
            return await elsewhere(store)

    running = asyncio.ensure_future(again())
    await a_few_turns()
    gate.open()

    assert await running == "in_use"


async def test_the_wait_for_the_store_is_told(
    keys: KeyKeeper, store: ScriptedStore, clock: LoopClock
) -> None:
    """What comes after it may wait so much less."""
    store.before["claim_key"].append(gate := Gate())

    async def waited_s() -> float:
        async with keys.claimed("k", "d") as seconds:
            return seconds

    running = asyncio.ensure_future(waited_s())
    await gate.reached()
    clock.advance(0.03)
    gate.open()

    assert await running == pytest.approx(0.03, abs=0.02)
