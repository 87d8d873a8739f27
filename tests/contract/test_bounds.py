"""What the store keeps is bounded, and beyond the bound it says so."""

from __future__ import annotations

import pytest
from store_builders import TTL_S, Advance, a_beat, a_location, a_reservation, delta, full

from controlplane.config import StoreConfig
from controlplane.domain.prefix import PrefixHit
from controlplane.domain.prefix_index import PrefixIndex
from controlplane.errors import StoreUnavailable
from controlplane.store.api import StateStore, WorkerSeen
from controlplane.wire import Inventory


@pytest.fixture
def config() -> StoreConfig:
    """Bounds that a test can reach."""
    return StoreConfig(
        call_timeout_s=5.0,
        slow_call_timeout_s=10.0,
        inventory_blocks_max=16,
        workers_max=3,
        links_max=2,
        segments_max=3,
    )


def blocks(first: int, last: int) -> dict[str, str]:
    return {f"{number:04x}": "a" for number in range(first, last + 1)}


async def inventory(store: StateStore) -> Inventory:
    (beat,) = (await store.snapshot()).beats
    return beat.inventory


async def test_an_inventory_may_be_as_large_as_its_bound(store: StateStore) -> None:
    first = await store.heartbeat(a_beat(inventory=full(**blocks(1, 15))), ttl_s=TTL_S)
    second = await store.heartbeat(
        a_beat(sequence=2, inventory=delta(**blocks(15, 16))), ttl_s=TTL_S
    )

    assert not first.is_inventory_cut
    assert not second.is_inventory_cut
    assert await inventory(store) == full(**blocks(1, 16))


async def test_of_a_full_inventory_that_is_too_large_the_last_blocks_are_kept(
    store: StateStore,
) -> None:
    cursor = (await store.snapshot()).cursor

    reply = await store.heartbeat(a_beat(inventory=full(**blocks(1, 20))), ttl_s=TTL_S)

    assert reply.is_inventory_cut
    assert not reply.wants_full_inventory
    assert await inventory(store) == full(**blocks(5, 20))
    _, events = await store.events(cursor, wait_s=0)
    assert list(events) == [WorkerSeen(a_beat(inventory=full(**blocks(5, 20))))]


async def test_an_inventory_that_grows_too_large_begins_anew_with_the_newest(
    store: StateStore,
) -> None:
    await store.heartbeat(a_beat(inventory=full(**blocks(1, 16))), ttl_s=TTL_S)
    cursor = (await store.snapshot()).cursor

    cut = await store.heartbeat(a_beat(sequence=2, inventory=delta(**blocks(17, 18))), ttl_s=TTL_S)
    follows = await store.heartbeat(
        a_beat(sequence=3, inventory=delta("0001", "0017", **blocks(19, 19))), ttl_s=TTL_S
    )

    assert cut.is_inventory_cut
    assert not cut.wants_full_inventory
    assert not follows.is_inventory_cut
    assert await inventory(store) == full(**blocks(17, 19))
    _, events = await store.events(cursor, wait_s=0)
    (first, _) = events
    assert isinstance(first, WorkerSeen)
    assert first.beat.inventory == full(**blocks(17, 18))


async def test_removals_make_room_before_anything_is_cut(store: StateStore) -> None:
    await store.heartbeat(a_beat(inventory=full(**blocks(1, 16))), ttl_s=TTL_S)

    reply = await store.heartbeat(
        a_beat(sequence=2, inventory=delta("0001", "0002", **blocks(17, 18))), ttl_s=TTL_S
    )

    assert not reply.is_inventory_cut
    assert await inventory(store) == full(**blocks(3, 18))


async def test_routers_that_follow_the_events_hold_what_the_store_holds(
    store: StateStore,
) -> None:
    """However often an inventory is cut, the event stream says the same as a snapshot."""
    cursor = (await store.snapshot()).cursor
    held: dict[str, str] = {}
    for sequence in range(1, 30):
        first = sequence * 5
        change = full if sequence == 1 else delta
        beat = a_beat(sequence=sequence, inventory=change(**blocks(first, first + sequence % 7)))
        await store.heartbeat(beat, ttl_s=TTL_S)

    _, events = await store.events(cursor, wait_s=0)

    for event in events:
        assert isinstance(event, WorkerSeen)
        held = {} if event.beat.inventory.is_full else held
        held |= event.beat.inventory.stored
        assert len(held) <= 16
    assert (await inventory(store)).stored == held


async def test_a_fleet_takes_so_many_workers_and_then_refuses(
    store: StateStore, advance: Advance
) -> None:
    for worker_id in ("p1", "p2"):
        await store.heartbeat(a_beat(worker_id, inventory=full()), ttl_s=TTL_S)
    await store.heartbeat(a_beat("p3", inventory=full()), ttl_s=0.1)

    with pytest.raises(StoreUnavailable, match="3 workers"):
        await store.heartbeat(a_beat("p4", inventory=full()), ttl_s=TTL_S)
    known = await store.heartbeat(a_beat("p1", sequence=2), ttl_s=TTL_S)
    reborn = await store.heartbeat(a_beat("p2", incarnation="two", inventory=full()), ttl_s=TTL_S)
    await advance(0.15)
    later = await store.heartbeat(a_beat("p4", inventory=full()), ttl_s=TTL_S)

    assert [reply.wants_full_inventory for reply in (known, reborn, later)] == [False] * 3
    assert [beat.worker_id for beat in (await store.snapshot()).beats] == ["p1", "p2", "p4"]


@pytest.mark.usefixtures("workers")
async def test_links_beyond_the_bound_are_reserved_and_not_listed(store: StateStore) -> None:
    for number in range(4):
        granted = await store.reserve(
            a_reservation(
                f"r{number}",
                link=f"a>b{number}",
                link_bytes=5,
                prefill_ttl_s=TTL_S + number,
                ttl_s=TTL_S + number,
            )
        )
        assert granted.refused_by is None
        assert granted.link_reserved_bytes == 5

    assert len((await store.snapshot()).link_reserved_bytes) == 2


async def test_of_too_many_segments_those_that_end_first_are_not_listed(
    store: StateStore,
) -> None:
    for number in range(5):
        await store.put_segment(a_location(f"s{number}", lease_s=TTL_S + number))

    assert [each.segment_id for each in await store.segments(count=9)] == ["s4", "s3", "s2"]


#: Four blocks of a chain; there are snapshots of the state after the second and the fourth.
CHAIN = ("aa" * 16, "bb" * 16, "cc" * 16, "dd" * 16)
HYBRID = dict(zip(CHAIN, ("a", "as", "a", "as"), strict=True))


def hit(beats: list[WorkerSeen]) -> PrefixHit:
    index = PrefixIndex()
    for event in beats:
        index.apply(event.beat.worker_id, event.beat.inventory.to_delta())
    chain = [bytes.fromhex(block) for block in CHAIN]
    return index.match(chain, block_tokens=64).get("p1", PrefixHit(0, 0))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(delta(), PrefixHit(256, 256), id="everything is there"),
        pytest.param(delta(**{CHAIN[3]: "a"}), PrefixHit(256, 128), id="the last state is lost"),
        pytest.param(delta(**{CHAIN[3]: "s"}), PrefixHit(192, 128), id="its attention is lost"),
        pytest.param(delta(CHAIN[2]), PrefixHit(128, 128), id="a block in the middle is lost"),
        pytest.param(delta(CHAIN[1]), PrefixHit(64, 0), id="no state is within reach"),
        pytest.param(delta(CHAIN[0]), PrefixHit(0, 0), id="the first block is lost"),
    ],
)
async def test_attention_and_state_are_told_apart_on_every_way_through_the_store(
    store: StateStore, change: Inventory, expected: PrefixHit
) -> None:
    """The hybrid rule: a prefill resumes where both attention and a snapshot of the state are."""
    cursor = (await store.snapshot()).cursor
    await store.heartbeat(a_beat(inventory=full(**HYBRID)), ttl_s=TTL_S)
    await store.heartbeat(a_beat(sequence=2, inventory=change), ttl_s=TTL_S)

    _, events = await store.events(cursor, wait_s=0)
    snapshot = await store.snapshot()

    assert hit([event for event in events if isinstance(event, WorkerSeen)]) == expected
    assert hit([WorkerSeen(beat) for beat in snapshot.beats]) == expected
