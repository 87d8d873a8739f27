"""Claims on capacity: all or nothing, once, and over by themselves."""

from __future__ import annotations

import asyncio

import pytest
from store_builders import TTL_S, Advance, a_beat, a_reservation, full

from controlplane.store.api import StateStore, WorkerLoad
from controlplane.wire import ReserveReply

pytestmark = pytest.mark.usefixtures("workers")


async def loads(store: StateStore) -> tuple[WorkerLoad, WorkerLoad, dict[str, int]]:
    """At p1, at d1, on links."""
    snapshot = await store.snapshot()
    return snapshot.loads["p1"], snapshot.loads["d1"], dict(snapshot.link_reserved_bytes)


NOTHING = (WorkerLoad(), WorkerLoad(), {})


async def test_a_granted_reservation_counts_at_both_workers_and_the_link(
    store: StateStore,
) -> None:
    reply = await store.reserve(a_reservation(link="east>west", link_bytes=4096))

    assert reply == ReserveReply(
        prefill_reserved_tokens=100,
        prefill_reserved_requests=1,
        decode_reserved_requests=1,
        link_reserved_bytes=4096,
    )
    assert await loads(store) == (
        WorkerLoad(reserved_requests=1, reserved_tokens=100),
        WorkerLoad(reserved_requests=1, reserved_tokens=0),
        {"east>west": 4096},
    )


async def test_the_reply_tells_the_loads_of_all_reservations(store: StateStore) -> None:
    await store.reserve(a_reservation("r1", prefill_tokens=10, link="east>west", link_bytes=1))

    reply = await store.reserve(
        a_reservation("r2", prefill_tokens=5, link="east>west", link_bytes=2)
    )

    assert reply.prefill_reserved_tokens == 15
    assert reply.prefill_reserved_requests == 2
    assert reply.decode_reserved_requests == 2
    assert reply.link_reserved_bytes == 3


@pytest.mark.parametrize(
    ("changes", "refused_by"),
    [
        ({"prefill_worker": "p9"}, "prefill_gone"),
        ({"decode_worker": "d9"}, "decode_gone"),
        ({"prefill_incarnation": "two"}, "prefill_gone"),
        ({"decode_incarnation": "two"}, "decode_gone"),
        ({"prefill_requests_max": 1}, "prefill_full"),
        ({"decode_requests_max": 1}, "decode_full"),
        ({"prefill_requests_max": 0}, "prefill_full"),
    ],
    ids=str,
)
async def test_a_refusal_says_why_and_leaves_nothing(
    store: StateStore, changes: dict[str, object], refused_by: str
) -> None:
    await store.reserve(a_reservation("before", link="east>west", link_bytes=1))
    before = await store.snapshot()

    reply = await store.reserve(a_reservation(link="east>west", link_bytes=7, **changes))

    assert reply.refused_by == refused_by
    assert await store.snapshot() == before


async def test_a_refusal_tells_the_loads_that_stood_against_it(store: StateStore) -> None:
    await store.reserve(a_reservation("r1", link="east>west", link_bytes=5))

    reply = await store.reserve(a_reservation("r2", prefill_requests_max=1, link="east>west"))

    assert reply == ReserveReply(
        refused_by="prefill_full",
        prefill_reserved_tokens=100,
        prefill_reserved_requests=1,
        decode_reserved_requests=1,
        link_reserved_bytes=5,
    )


async def test_reserving_twice_counts_once(store: StateStore) -> None:
    reservation = a_reservation(link="east>west", link_bytes=9)

    once = await store.reserve(reservation)
    twice = await store.reserve(reservation)

    assert once == twice
    assert (await loads(store))[0] == WorkerLoad(reserved_requests=1, reserved_tokens=100)


async def test_a_retry_keeps_its_place_in_a_worker_that_is_full(store: StateStore) -> None:
    reservation = a_reservation(prefill_requests_max=1, decode_requests_max=1)
    await store.reserve(reservation)

    assert (await store.reserve(reservation)).refused_by is None


async def test_a_retry_that_is_refused_gives_up_what_it_held(store: StateStore) -> None:
    reservation = a_reservation(link="east>west", link_bytes=9)
    await store.reserve(reservation)
    await store.deregister("d1", "one")

    reply = await store.reserve(reservation)

    assert reply.refused_by == "decode_gone"
    assert reply.prefill_reserved_requests == 0
    assert (await store.snapshot()).loads["p1"] == WorkerLoad()
    assert (await store.snapshot()).link_reserved_bytes == {}


async def test_release_gives_everything_back(store: StateStore) -> None:
    reservation = a_reservation(link="east>west", link_bytes=9)
    await store.reserve(reservation)

    await store.release(reservation)

    assert await loads(store) == NOTHING


async def test_releasing_twice_or_what_was_never_granted_does_nothing(store: StateStore) -> None:
    kept = a_reservation("kept", link="east>west", link_bytes=3)
    gone = a_reservation("gone", link="east>west", link_bytes=4)
    await store.reserve(kept)
    await store.reserve(gone)
    before_release = await loads(store)
    await store.release(gone)
    once = await loads(store)

    await store.release(gone)
    await store.release(a_reservation("never", link="east>west", link_bytes=5))

    assert once != before_release
    assert await loads(store) == once


async def test_reservations_end_by_themselves(store: StateStore, advance: Advance) -> None:
    granted = await store.reserve(
        a_reservation(ttl_s=0.05, prefill_ttl_s=0.05, link="east>west", link_bytes=9)
    )

    await advance(0.1)

    assert granted.refused_by is None
    assert await loads(store) == NOTHING


async def test_an_expired_reservation_makes_room(store: StateStore, advance: Advance) -> None:
    await store.reserve(a_reservation("r1", ttl_s=0.05, prefill_ttl_s=0.05, prefill_requests_max=1))
    await advance(0.1)

    reply = await store.reserve(a_reservation("r2", prefill_requests_max=1))

    assert reply == ReserveReply(
        prefill_reserved_tokens=100, prefill_reserved_requests=1, decode_reserved_requests=1
    )


async def test_a_long_reservation_outlives_a_short_one_made_later(
    store: StateStore, advance: Advance
) -> None:
    await store.reserve(a_reservation("long", link="east>west", link_bytes=1))
    await store.reserve(
        a_reservation("short", ttl_s=0.05, prefill_ttl_s=0.05, link="east>west", link_bytes=2)
    )

    await advance(0.1)

    assert (await loads(store))[2] == {"east>west": 1}
    reply = await store.reserve(a_reservation("new", link="east>west", link_bytes=4))
    assert reply == ReserveReply(
        prefill_reserved_tokens=200,
        prefill_reserved_requests=2,
        decode_reserved_requests=2,
        link_reserved_bytes=5,
    )


async def test_reserving_again_renews_the_ttl(store: StateStore, advance: Advance) -> None:
    await store.reserve(a_reservation(ttl_s=0.05, prefill_ttl_s=0.05))
    await store.reserve(a_reservation(ttl_s=TTL_S, prefill_ttl_s=TTL_S))

    await advance(0.1)

    assert (await loads(store))[0].reserved_requests == 1


async def test_concurrent_reservations_never_over_grant(store: StateStore) -> None:
    replies = await asyncio.gather(
        *(
            store.reserve(a_reservation(f"r{number}", prefill_requests_max=5))
            for number in range(60)
        )
    )

    assert sum(reply.refused_by is None for reply in replies) == 5
    assert (await loads(store))[0].reserved_requests == 5


async def test_reservations_and_releases_balance_out(store: StateStore) -> None:
    reservations = [
        a_reservation(f"r{number}", prefill_tokens=number, link="east>west", link_bytes=number)
        for number in range(40)
    ]
    await asyncio.gather(*(store.reserve(reservation) for reservation in reservations))

    await asyncio.gather(*(store.release(reservation) for reservation in reservations))

    assert await loads(store) == NOTHING


async def test_finish_releases_and_records(store: StateStore) -> None:
    reservation = a_reservation(link="east>west", link_bytes=9)
    await store.reserve(reservation)

    await store.finish([(reservation, "decision-1", b'{"ok":1}'), (None, "decision-2", b"{}")])

    assert await loads(store) == NOTHING
    assert [item.record for item in await store.decisions(count=9)] == [b"{}", b'{"ok":1}']


async def test_a_worker_that_registered_again_can_be_reserved(store: StateStore) -> None:
    await store.heartbeat(a_beat(incarnation="two", inventory=full()), ttl_s=TTL_S)

    reply = await store.reserve(a_reservation(prefill_incarnation="two"))

    assert reply.refused_by is None


async def test_the_claim_on_prefill_and_link_ends_before_the_one_on_decode(
    store: StateStore, advance: Advance
) -> None:
    first = a_reservation("r1", prefill_ttl_s=0.05, link="east>west", link_bytes=10)
    await store.reserve(first)

    await advance(0.1)
    reply = await store.reserve(a_reservation("r2", link="east>west", link_bytes=1))

    assert (reply.prefill_reserved_requests, reply.link_reserved_bytes) == (1, 1)
    assert reply.decode_reserved_requests == 2
