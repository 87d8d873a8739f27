"""Registration, inventories and what a snapshot shows of them."""

from __future__ import annotations

import pytest
from store_builders import TTL_S, Advance, a_beat, a_reservation, delta, full

from controlplane.store.api import StateStore, WorkerLoad
from controlplane.wire import Inventory, Load, WorkerBeat


async def only_beat(store: StateStore) -> WorkerBeat:
    (beat,) = (await store.snapshot()).beats
    return beat


async def test_an_empty_store_has_an_empty_snapshot(store: StateStore) -> None:
    snapshot = await store.snapshot()

    assert snapshot.beats == ()
    assert snapshot.loads == {}
    assert snapshot.link_reserved_bytes == {}


async def test_a_beat_with_a_full_inventory_is_shown_as_it_was_sent(store: StateStore) -> None:
    beat = a_beat(inventory=full(aa="a", bb="as"), load=Load(queue_tokens=7), is_draining=True)

    reply = await store.heartbeat(beat, ttl_s=TTL_S)

    assert not reply.wants_full_inventory
    assert await only_beat(store) == beat


async def test_workers_are_listed_by_name(store: StateStore) -> None:
    for worker_id in ("p2", "d1", "p1"):
        await store.heartbeat(a_beat(worker_id, inventory=full()), ttl_s=TTL_S)

    names = [beat.worker_id for beat in (await store.snapshot()).beats]

    assert names == ["d1", "p1", "p2"]


async def test_a_first_beat_without_a_full_inventory_is_asked_for_one(store: StateStore) -> None:
    reply = await store.heartbeat(a_beat(inventory=delta(aa="a")), ttl_s=TTL_S)

    assert reply.wants_full_inventory
    assert (await only_beat(store)).inventory == full()


async def test_a_delta_that_follows_is_applied_removals_first(store: StateStore) -> None:
    await store.heartbeat(a_beat(inventory=full(aa="a", bb="a", cc="a")), ttl_s=TTL_S)

    reply = await store.heartbeat(
        a_beat(sequence=2, inventory=delta("aa", "bb", bb="as", dd="s")), ttl_s=TTL_S
    )

    assert not reply.wants_full_inventory
    assert (await only_beat(store)).inventory == full(bb="as", cc="a", dd="s")


async def test_a_full_inventory_replaces_all_of_the_last(store: StateStore) -> None:
    await store.heartbeat(a_beat(inventory=full(aa="a")), ttl_s=TTL_S)

    await store.heartbeat(a_beat(sequence=9, inventory=full(bb="a")), ttl_s=TTL_S)

    assert (await only_beat(store)).inventory == full(bb="a")


async def test_a_delta_after_a_gap_is_not_applied_but_the_load_is(store: StateStore) -> None:
    await store.heartbeat(a_beat(inventory=full(aa="a")), ttl_s=TTL_S)

    reply = await store.heartbeat(
        a_beat(sequence=3, inventory=delta("aa", bb="a"), load=Load(running=2)), ttl_s=TTL_S
    )

    assert reply.wants_full_inventory
    beat = await only_beat(store)
    assert beat.load.running == 2
    assert beat.inventory == full(aa="a")


async def test_a_gap_is_remembered_until_a_full_inventory_comes(store: StateStore) -> None:
    await store.heartbeat(a_beat(inventory=full(aa="a")), ttl_s=TTL_S)
    await store.heartbeat(a_beat(sequence=3), ttl_s=TTL_S)

    follows = await store.heartbeat(a_beat(sequence=4, inventory=delta(bb="a")), ttl_s=TTL_S)
    complete = await store.heartbeat(a_beat(sequence=5, inventory=full(cc="a")), ttl_s=TTL_S)

    assert follows.wants_full_inventory
    assert not complete.wants_full_inventory
    assert (await only_beat(store)).inventory == full(cc="a")


@pytest.mark.parametrize("sequence", [1, 2])
async def test_a_late_or_repeated_beat_changes_nothing(store: StateStore, sequence: int) -> None:
    await store.heartbeat(a_beat(inventory=full(aa="a")), ttl_s=TTL_S)
    newest = a_beat(sequence=2, load=Load(running=1))
    await store.heartbeat(newest, ttl_s=TTL_S)
    before = await store.snapshot()

    reply = await store.heartbeat(
        a_beat(sequence=sequence, inventory=full(bb="a"), load=Load(running=9)), ttl_s=TTL_S
    )

    assert not reply.wants_full_inventory
    assert await store.snapshot() == before


@pytest.mark.usefixtures("workers")
async def test_another_incarnation_voids_inventory_and_reservations(store: StateStore) -> None:
    await store.heartbeat(a_beat(sequence=2, inventory=full(aa="a")), ttl_s=TTL_S)
    await store.reserve(a_reservation())

    reply = await store.heartbeat(a_beat(incarnation="two", sequence=1), ttl_s=TTL_S)

    assert reply.wants_full_inventory
    snapshot = await store.snapshot()
    beats = {beat.worker_id: beat for beat in snapshot.beats}
    assert beats["p1"].incarnation == "two"
    assert beats["p1"].inventory == full()
    assert snapshot.loads["p1"] == WorkerLoad()
    assert snapshot.loads["d1"].reserved_requests == 1


async def test_a_worker_that_stops_reporting_is_gone_after_its_ttl(
    store: StateStore, advance: Advance
) -> None:
    await store.heartbeat(a_beat(inventory=full(aa="a")), ttl_s=0.05)

    await advance(0.1)

    assert (await store.snapshot()).beats == ()


async def test_a_worker_that_comes_back_after_its_ttl_is_asked_for_everything(
    store: StateStore, advance: Advance
) -> None:
    await store.heartbeat(a_beat(inventory=full(aa="a")), ttl_s=0.05)
    await advance(0.1)

    reply = await store.heartbeat(a_beat(sequence=2), ttl_s=TTL_S)

    assert reply.wants_full_inventory


async def test_each_beat_renews_the_ttl(store: StateStore, advance: Advance) -> None:
    await store.heartbeat(a_beat(inventory=full(aa="a")), ttl_s=0.05)
    await store.heartbeat(a_beat(sequence=2), ttl_s=TTL_S)

    await advance(0.1)

    assert (await only_beat(store)).inventory == full(aa="a")


@pytest.mark.usefixtures("workers")
async def test_goodbye_removes_the_worker_and_its_reservations(store: StateStore) -> None:
    await store.reserve(a_reservation())

    await store.deregister("p1", "one")
    await store.heartbeat(a_beat(inventory=full()), ttl_s=TTL_S)

    assert (await store.snapshot()).loads["p1"] == WorkerLoad()


async def test_goodbye_of_an_old_incarnation_leaves_the_new_one(store: StateStore) -> None:
    await store.heartbeat(a_beat(incarnation="two", inventory=full()), ttl_s=TTL_S)

    await store.deregister("p1", "one")

    assert (await only_beat(store)).incarnation == "two"


@pytest.mark.usefixtures("workers")
async def test_goodbye_said_twice_is_said_once(store: StateStore) -> None:
    await store.deregister("p1", "one")
    await store.deregister("p1", "one")

    assert [beat.worker_id for beat in (await store.snapshot()).beats] == ["d1"]


async def test_a_large_inventory_arrives_whole(store: StateStore) -> None:
    inventory = Inventory.model_validate(
        {"is_full": True, "stored": {f"{number:032x}": "as" for number in range(10_000)}}
    )

    await store.heartbeat(a_beat(inventory=inventory), ttl_s=TTL_S)

    assert (await only_beat(store)).inventory == inventory


async def test_ping_tells_the_seconds_of_a_round_trip(store: StateStore) -> None:
    assert 0 <= await store.ping() < 10
