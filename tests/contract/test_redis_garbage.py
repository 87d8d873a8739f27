"""Whatever stands in the keys, nothing crashes, and the fleet's next reports put it right."""

from __future__ import annotations

import time
from random import Random
from typing import Any

import pytest
from store_builders import TTL_S, a_beat, a_location, a_reservation, delta, full

from controlplane.config import StoreConfig
from controlplane.store.api import Blamed
from controlplane.store.codec import FIRST
from controlplane.store.keys import KEY_TABLE
from controlplane.store.redis_store import RedisStore

LINK = "east>west"
NAMES = {
    "<worker>": "p1",
    "<link>": LINK,
    "<segment>": "s1",
    "<key>": "k1",
    "<topic>": "plan",
    "<router>": "router",
}


def key_of(store: RedisStore, name: str) -> str:
    """The key a row of the table stands for, filled in with what `live` uses."""
    for variable, value in NAMES.items():
        name = name.replace(variable, value)
    return store._keys.prefix + name


async def write(store: RedisStore, *commands: tuple[Any, ...]) -> None:
    await store._calls.ask_all("test", commands)


async def live(store: RedisStore, *, sequence: int = 1, name: str = "1") -> None:
    """Use every operation once; a fleet that goes on after this has a working store."""
    for worker_id in ("p1", "d1"):
        beat = a_beat(worker_id, sequence=sequence, inventory=delta(aa="a"))
        if (await store.heartbeat(beat, ttl_s=TTL_S)).wants_full_inventory:
            again = a_beat(worker_id, sequence=sequence + 1, inventory=full(aa="a"))
            await store.heartbeat(again, ttl_s=TTL_S)
    reservation = a_reservation(f"r{name}", link=LINK, link_bytes=5)
    await store.reserve(reservation)
    await store.reserve(a_reservation(f"given-up-{name}", link=LINK, link_bytes=5))
    await store.release(a_reservation(f"given-up-{name}", link=LINK, link_bytes=5))
    await store.take_link_budget(LINK, want_bytes=10, rate_bytes_per_s=1.0, burst_bytes=1000)
    await store.put_segment(a_location("s1"))
    await store.put_segment(a_location("s2"))
    await store.drop_segment("s2")
    await store.finish([(None, f"decision-{name}", b"{}")])
    await store.claim_key("k1", owner="router", digest="d", ttl_s=TTL_S)
    await store.release_key("k1", owner="router", keep_s=TTL_S)
    await store.blame(Blamed(fingerprint="f", worker_id="p1", incarnation="one"))
    await store.publish("plan", b'{"name": "%s"}' % name.encode())
    await store.lead("policy", "router", ttl_s=TTL_S)
    await store.resign("policy", "router")
    await store.lead("plan", "router", ttl_s=TTL_S)
    await store.put_traffic("router", b"{}", ttl_s=TTL_S)


async def read_all(store: RedisStore) -> None:
    await store.snapshot()
    await store.events(FIRST, wait_s=0)
    await store.segments(count=9)
    for item in await store.decisions(count=9):
        await store.decisions(count=9, before=item.cursor)
    await store.decision("decision-1")
    await store.document("plan")
    await store.traffic()


def other_types(key: str, kind: str) -> list[tuple[Any, ...]]:
    """A value of each type but one."""
    values: dict[str, tuple[Any, ...]] = {
        "string": ("SET", key, b"\xff\x00"),
        "list": ("RPUSH", key, b"\xff", b"x"),
        "set": ("SADD", key, b"\xff", b"x"),
        "hash": ("HSET", key, b"\xff", b"\xfe", "sequence", "x"),
        "zset": ("ZADD", key, 1e300, b"\xff", 5, b"x"),
        "stream": ("XADD", key, "*", b"\xff", b"\xfe"),
    }
    return [command for name, command in values.items() if name != kind]


def garbage_of_type(key: str, kind: str, rng: Random) -> list[tuple[Any, ...]]:
    """Wrong content in the right type."""
    junk = [
        b"",
        b"\xff\xfe",
        b"{",
        b"[]",
        b"{}",
        b"nan",
        b"-1",
        b"1e400",
        b"9" * 40,
        b'{"worker_id":5}',
        rng.randbytes(rng.randrange(1, 60)),
    ]
    one, two = rng.choice(junk), rng.choice(junk)
    fields = ("incarnation", "sequence", "beat", "@", "aa", "zz", "tokens", "time", "id", "record")
    match kind:
        case "string":
            return [("SET", key, one)]
        case "hash":
            return [("HSET", key, rng.choice(fields), one, one, two)]
        case "zset":
            score = rng.choice(("inf", "-inf", 0, -1, 1e300, 5))
            member = rng.choice((one, b"#", b"#n", b"p:x:1", b"p:99999999999999999999:1", b"p:5:z"))
            return [("ZADD", key, score, member)]
        case _:
            names = rng.choice((b"beat", b"left", b"inventory", b"id", b"record", one))
            return [("XADD", key, "*", names, two, b"incarnation", one)]


ROWS = [pytest.param(spec, id=spec.name) for spec in KEY_TABLE]


@pytest.mark.parametrize("spec", ROWS)
async def test_a_key_of_a_wrong_type_is_counted_and_repaired(
    redis_store: RedisStore, spec: Any
) -> None:
    key = key_of(redis_store, spec.name)
    await live(redis_store)

    for number, command in enumerate(other_types(key, spec.type)):
        await write(redis_store, ("DEL", key), command)
        await read_all(redis_store)
        await live(redis_store, sequence=10 * (number + 1), name=f"again-{number}")
        await read_all(redis_store)

        kind = await redis_store._calls.ask_one("test", ("TYPE", key))
        assert kind == spec.type.encode()
        assert redis_store.decode_errors_total > number

    snapshot = await redis_store.snapshot()
    assert {beat.worker_id for beat in snapshot.beats} == {"p1", "d1"}
    assert snapshot.beats[0].inventory == full(aa="a")


@pytest.mark.parametrize("spec", ROWS)
@pytest.mark.parametrize("seed", range(2))
async def test_garbage_in_any_key_never_crashes(
    redis_store: RedisStore, spec: Any, seed: int
) -> None:
    rng = Random(f"{seed} {spec.name}")
    key = key_of(redis_store, spec.name)
    await live(redis_store)

    for number in range(8):
        await write(redis_store, *garbage_of_type(key, spec.type, rng))
        await read_all(redis_store)
        await live(redis_store, sequence=10 * (number + 1), name=f"again-{number}")
        await read_all(redis_store)

    assert not redis_store.breaker.is_open


@pytest.mark.parametrize("name", ["events", "decisions"])
async def test_a_stream_at_its_last_id_is_started_anew(redis_store: RedisStore, name: str) -> None:
    key = key_of(redis_store, name)
    await write(redis_store, ("XADD", key, f"{2**64 - 1}-{2**64 - 1}", "x", "y"))

    await live(redis_store)
    await live(redis_store, sequence=10, name="2")

    cursor, events = await redis_store.events(FIRST, wait_s=0)
    assert events
    assert not (await redis_store.events(cursor, wait_s=0))[1]
    assert len(await redis_store.decisions(count=9)) == 2


async def test_good_neighbours_of_garbage_are_still_seen(redis_store: RedisStore) -> None:
    await live(redis_store)
    # Not over yet, and not so late that it would be garbage for that alone.
    soon_ms = (time.time() + 60) * 1000
    await write(
        redis_store,
        ("HSET", key_of(redis_store, "inventory:p1"), "zz", "a", "bb", "?", "cc", "s"),
        ("ZADD", key_of(redis_store, "workers"), soon_ms, b"\xff", soon_ms, "nobody"),
        ("ZADD", key_of(redis_store, "reserved:p1"), soon_ms, "p:1", soon_ms, "rubbish"),
        ("XADD", key_of(redis_store, "events"), "*", "beat", "{"),
    )

    snapshot = await redis_store.snapshot()
    _, events = await redis_store.events(FIRST, wait_s=0)

    beats = {beat.worker_id: beat for beat in snapshot.beats}
    assert beats["p1"].inventory == full(aa="a", cc="s")
    assert snapshot.loads["p1"].reserved_tokens == 100
    assert len(events) == 6
    assert redis_store.decode_errors_total == 6


async def test_rubbish_among_reservations_takes_no_capacity(redis_store: RedisStore) -> None:
    await live(redis_store)
    await write(redis_store, ("ZADD", key_of(redis_store, "reserved:p1"), 1e300, "rubbish"))

    reply = await redis_store.reserve(a_reservation("r2", prefill_requests_max=2))

    assert reply.refused_by is None
    assert reply.prefill_reserved_requests == 2
    assert reply.prefill_reserved_tokens == 200


@pytest.mark.parametrize("score", ["inf", 1e300, -5, 9e15])
async def test_a_claim_that_would_never_end_takes_no_capacity(
    redis_store: RedisStore, score: Any
) -> None:
    """It looks like a reservation in all but its expiry."""
    await live(redis_store)
    await write(redis_store, ("ZADD", key_of(redis_store, "reserved:p1"), score, "p:5:forged"))

    before = (await redis_store.snapshot()).loads["p1"]
    reply = await redis_store.reserve(a_reservation("r2", prefill_requests_max=2))

    assert (before.reserved_requests, before.reserved_tokens) == (1, 100)
    assert (reply.refused_by, reply.prefill_reserved_requests) == (None, 2)
    assert redis_store.decode_errors_total == 1


async def test_names_that_would_never_leave_an_index_make_no_worker_wait_for_room(
    redis_store: RedisStore, config: StoreConfig
) -> None:
    forged = [part for number in range(config.workers_max) for part in ("inf", f"w{number}")]
    await write(redis_store, ("ZADD", key_of(redis_store, "workers"), *forged))

    reply = await redis_store.heartbeat(a_beat("p1", inventory=full()), ttl_s=TTL_S)

    assert not reply.wants_full_inventory
    assert redis_store.decode_errors_total == config.workers_max


@pytest.mark.parametrize("sequence", [b"9" * 40, b"0x7f", b"inf", b"nan", b"-1", b"", b"\xff"])
async def test_a_sequence_no_beat_could_follow_stops_no_worker(
    redis_store: RedisStore, sequence: bytes
) -> None:
    await live(redis_store)
    key = key_of(redis_store, "worker:p1")
    await write(redis_store, ("HSET", key, "sequence", sequence), ("PERSIST", key))

    await redis_store.heartbeat(a_beat("p1", sequence=10, inventory=full()), ttl_s=TTL_S)

    beats = {beat.worker_id: beat for beat in (await redis_store.snapshot()).beats}
    assert beats["p1"].sequence == 10
    assert redis_store.decode_errors_total == 1


async def test_a_lost_stream_takes_its_index_with_it(redis_store: RedisStore) -> None:
    await live(redis_store)
    await write(redis_store, ("DEL", key_of(redis_store, "decisions")))

    gone = await redis_store.decision("decision-1")
    await redis_store.finish([(None, "decision-2", b"2")])
    await redis_store.finish([(None, "decision-1", b"1")])

    assert gone is None
    assert [item.record for item in await redis_store.decisions(count=9)] == [b"1", b"2"]


async def test_a_budget_from_the_future_grants_what_it_holds_and_no_more(
    redis_store: RedisStore,
) -> None:
    key = key_of(redis_store, "budget:<link>")
    await write(redis_store, ("HSET", key, "tokens", "50", "time", "9e15"))

    grants = [
        await redis_store.take_link_budget(
            LINK, want_bytes=100, rate_bytes_per_s=0.001, burst_bytes=100
        )
        for _ in range(2)
    ]

    assert [grant.granted_bytes for grant in grants] == [50, 0]
    assert grants[1].retry_after_s == pytest.approx(100_000, rel=0.01)
