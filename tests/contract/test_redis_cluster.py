"""A store on a real cluster: redirects are followed, and a lost node costs a moment."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from redis_servers import Cluster, Server, a_cluster, free_port
from store_builders import TTL_S, a_beat, a_reservation, eventually, full

from controlplane.config import StoreConfig
from controlplane.errors import StoreError, StoreUnavailable
from controlplane.store.redis_store import RedisStore

FAST = StoreConfig(call_timeout_s=0.5, slow_call_timeout_s=1.0, breaker_probe_s=0.1)


@pytest.fixture
def owner(cluster: Cluster) -> Server:
    """The node that serves the fleet of `store`; not the first seed."""
    return cluster.masters[1]


@pytest.fixture
def fleet(cluster: Cluster, owner: Server) -> str:
    return cluster.fleet_at(owner, uuid4().hex)


@pytest.fixture
async def store(cluster: Cluster, fleet: str) -> AsyncIterator[RedisStore]:
    """p1 and d1 are registered."""
    store = RedisStore(cluster.url(), fleet=fleet, config=FAST)
    await register(store)
    yield store
    await store.close()


async def register(store: RedisStore, *, sequence: int = 1) -> None:
    for worker_id in ("p1", "d1"):
        beat = a_beat(worker_id, sequence=sequence, inventory=full(aa="a"))
        await store.heartbeat(beat, ttl_s=TTL_S)


def commands_of(node: Server) -> int:
    return int(node.info("stats")["total_commands_processed"])


async def test_the_node_of_the_fleet_is_found_once_and_then_asked(
    cluster: Cluster, store: RedisStore, owner: Server
) -> None:
    others = [node for node in cluster.masters if node is not owner]
    connections = int(owner.info("stats")["total_connections_received"])
    before = [commands_of(node) for node in others]

    for number in range(50):
        assert (await store.reserve(a_reservation(f"r{number % 5}"))).refused_by is None

    after = [commands_of(node) for node in others]
    # INFO itself is a command; nodes of a cluster speak to each other on another port.
    assert [late - early for early, late in zip(before, after, strict=True)] == [1, 1]
    assert int(owner.info("stats")["total_connections_received"]) == connections


@pytest.mark.usefixtures("store")
async def test_any_seed_will_do(cluster: Cluster, fleet: str) -> None:
    for node in cluster.masters:
        other = RedisStore(cluster.url([node]), fleet=fleet, config=FAST)

        assert len((await other.snapshot()).beats) == 2
        await other.close()


@pytest.mark.usefixtures("store")
async def test_a_seed_that_is_down_is_passed_over_within_the_call(
    cluster: Cluster, fleet: str
) -> None:
    dead = f"127.0.0.1:{free_port()}"
    url = f"redis://{dead},{cluster.masters[0].address}/0"
    patient = FAST.model_copy(update={"call_timeout_s": 5.0})
    other = RedisStore(url, fleet=fleet, config=patient)

    reply = await other.reserve(a_reservation())

    assert reply.refused_by is None
    assert not other.breaker.is_open
    await other.close()


async def test_a_slot_that_moves_takes_its_fleet_along(
    cluster: Cluster, fleet: str, store: RedisStore, owner: Server
) -> None:
    """Calls go on all the time; those that meet the move fail as the contract says, or not at all."""
    slot = cluster.slot_of(fleet)
    target = cluster.masters[2]
    await store.reserve(a_reservation("kept", link="east>west", link_bytes=7))
    done: list[str] = []
    refused: list[StoreError] = []
    is_over = False

    async def work() -> None:
        number = 0
        while not is_over:
            number += 1
            try:
                reply = await store.reserve(a_reservation(f"r{number % 5}"))
                await store.release(a_reservation(f"r{number % 5}"))
            except StoreError as error:
                refused.append(error)
            else:
                done.append(reply.refused_by or "")
            await asyncio.sleep(0)

    working = asyncio.create_task(work())
    await asyncio.sleep(0.05)
    cluster.begin_move(slot, owner, target)
    await asyncio.sleep(0.05)
    cluster.move_keys(slot, owner, target)
    await asyncio.sleep(0.05)
    cluster.end_move(slot, target)
    seen = len(done)
    await eventually(lambda: asyncio.sleep(0, len(done)), lambda now: now > seen + 20)
    is_over = True
    await working

    assert set(done) == {""}
    assert cluster.owner_of(fleet) is target
    for number in range(5):
        await store.release(a_reservation(f"r{number}"))
    snapshot = await store.snapshot()
    assert snapshot.loads["p1"].reserved_requests == 1
    assert snapshot.link_reserved_bytes == {"east>west": 7}
    # Some commands meet keys at both nodes and are told to try again; that is all.
    assert all(isinstance(error, StoreUnavailable) for error in refused)
    cluster.begin_move(slot, target, owner)
    cluster.move_keys(slot, target, owner)
    cluster.end_move(slot, owner)


async def test_keys_that_are_on_their_way_are_asked_for_where_they_go(
    cluster: Cluster, fleet: str, store: RedisStore, owner: Server
) -> None:
    """ASK: the slot is still the old node's, but these keys are at the new one already."""
    slot, target = cluster.slot_of(fleet), cluster.masters[2]
    await store.publish("plan", b"1")
    cluster.begin_move(slot, owner, target)
    cluster.move_keys(slot, owner, target)

    document = await store.document("plan")
    claim = await store.claim_key("key", owner="router", digest="d", ttl_s=TTL_S)

    assert document is not None
    assert document.version == 1
    assert claim == "granted"
    assert store._calls._servers.current != target
    cluster.end_move(slot, target)
    assert await store.claim_key("key", owner="other", digest="d", ttl_s=TTL_S) == "in_use"
    cluster.begin_move(slot, target, owner)
    cluster.move_keys(slot, target, owner)
    cluster.end_move(slot, owner)


async def test_a_killed_node_s_replica_takes_over() -> None:
    """Its fleet is away until the others have noticed, and is then found by a probe."""
    with a_cluster(replicas=1) as own:
        fleet = own.fleet_at(own.masters[0], "f")
        store = RedisStore(own.url(), fleet=fleet, config=FAST)
        await register(store)
        await store.reserve(a_reservation("before"))
        await eventually(lambda: asyncio.sleep(0, own.replicas[0].do("DBSIZE")), lambda n: n >= 7)
        own.masters[0].kill()
        started_s = time.monotonic()

        waits = []
        while not await is_up(store):
            waits.append(time.monotonic() - started_s)
            await asyncio.sleep(0.02)

        assert waits[-1] < 20
        snapshot = await store.snapshot()
        assert {beat.worker_id for beat in snapshot.beats} == {"p1", "d1"}
        assert snapshot.loads["p1"].reserved_requests == 2
        assert own.owner_of(fleet) is own.replicas[0]
        await store.close()


async def is_up(store: RedisStore) -> bool:
    started_s = time.monotonic()
    try:
        await store.reserve(a_reservation("probe"))
    except StoreError:
        # However many nodes it asked: within the time of one call.
        assert time.monotonic() - started_s < 10 * FAST.call_timeout_s
        return False
    return True
