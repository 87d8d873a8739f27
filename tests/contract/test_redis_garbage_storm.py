"""
Ten thousand values of garbage, in every key and of every type, between all that a fleet does.

Whatever stands there, each call gives an answer that can be true or a typed refusal, and what is
written over the garbage afterwards is read back exactly.
"""

from __future__ import annotations

import json
from random import Random
from typing import Any, get_args
from uuid import uuid4

import pytest
from store_builders import TTL_S, a_beat, a_location, a_reservation, delta, full

from controlplane.config import StoreConfig
from controlplane.store.api import (
    TOPICS,
    Blamed,
    KeyClaim,
    Published,
    StoreEvent,
    WorkerLeft,
    WorkerSeen,
)
from controlplane.store.codec import FIRST
from controlplane.store.keys import KEY_TABLE, RECORDS_TTL_MS
from controlplane.store.redis_store import RedisStore
from controlplane.wire import RefusedBy, Reservation

VALUES = 10_000
SEEDS = 4
LINK = "east>west"
NAMES = {
    "<worker>": ("p1", "d1", "ghost"),
    "<link>": (LINK, "no>where"),
    "<segment>": ("s1", "s2"),
    "<key>": ("k1", "k2"),
    "<topic>": TOPICS,
    "<router>": ("r1", "r2"),
}
FIELDS = (
    b"incarnation", b"sequence", b"beat", b"@", b"aa", b"zz", b"ab" * 40, b"tokens", b"time",
    b"digest", b"owner", b"until", b"version", b"body", b"decision-1", b"", b"\xff",
)  # fmt: skip
STREAM_FIELDS = (
    b"beat", b"inventory", b"left", b"incarnation", b"blamed", b"worker", b"published",
    b"version", b"id", b"record", b"from-the-future", b"",
)  # fmt: skip


def values(rng: Random) -> bytes:
    """One value that somebody might write by mistake, or on purpose."""
    beat = a_beat(rng.choice(("p1", "d1")), inventory=full(aa="a")).model_dump(mode="json")
    location = a_location(rng.choice(("s1", "s2"))).model_dump(mode="json")
    message = rng.choice((beat, location))
    name = rng.choice(sorted(message))
    odd: tuple[Any, ...] = (None, -1, 2**70, 10**400, "", "x" * 999, [], {}, "\x00", 1.5, True)
    broken = {**message, name: rng.choice(odd)}
    lacking = {key: value for key, value in message.items() if key != name}
    return rng.choice(
        (
            b"",
            b"\xff\xfe",
            b"{",
            b"[]",
            b"null",
            b"nan",
            b"-nan",
            b"inf",
            b"-1",
            b"1e400",
            b"0x10",
            b"9" * 40,
            b"9" * 5000,
            b"[" * 5000,
            b"one",
            b"1-1",
            b"99999999999999999999-1",
            b"p:5:z",
            b"p:-5:z",
            b"p:99999999999999999999:z",
            json.dumps(broken).encode(),
            json.dumps(lacking).encode(),
            json.dumps({**message, "version": 2}).encode(),
            json.dumps(message).encode()[: rng.randrange(300)],
            rng.randbytes(rng.randrange(1, 80)),
        )
    )


def garbage(key: str, kind: str, rng: Random) -> tuple[list[tuple[Any, ...]], int]:
    """Commands that leave garbage of a type in a key, and how many values they write."""
    count = rng.randrange(1, 30)
    several = [values(rng) for _ in range(count)]
    match kind:
        case "string":
            return [("SET", key, several[0])], 1
        case "list":
            return [("RPUSH", key, *several)], count
        case "set":
            return [("SADD", key, *several)], count
        case "hash":
            pairs = [part for value in several for part in (rng.choice(FIELDS), value)]
            return [("HSET", key, *pairs)], count
        case "zset":
            scores = ("inf", "-inf", 0, -1, -(2**60), 1e300, 5, 1.5)
            members = (*several, b"#", b"#n", b"p1", b"d1", LINK.encode(), b"s1")
            pairs = [
                part for _ in range(count) for part in (rng.choice(scores), rng.choice(members))
            ]
            return [("ZADD", key, *pairs)], count
        case _:
            entries = []
            for value in several:
                one, two = rng.sample(STREAM_FIELDS, 2)
                entries.append(("XADD", key, "*", one, value, two, values(rng)))
            return entries, 2 * count


async def litter(store: RedisStore, rng: Random) -> int:
    """Write garbage into some of the keys, in one round trip; how many values it was."""
    commands: list[tuple[Any, ...]] = []
    written = 0
    for spec in rng.sample(KEY_TABLE, rng.randrange(1, len(KEY_TABLE) + 1)):
        name = spec.name
        for variable, names in NAMES.items():
            name = name.replace(variable, rng.choice(names))
        key = store._keys.prefix + name
        if rng.random() < 0.7:
            kind = spec.type
        else:
            kind = rng.choice(("string", "list", "set", "hash", "zset", "stream"))
            commands.append(("DEL", key))
        more, count = garbage(key, kind, rng)
        commands += more
        written += count
    # Some write into a key that holds another type by now, and are refused.
    await store._calls.ask("litter", commands)
    return written


async def use(store: RedisStore, number: int) -> None:
    """Call every operation once and look at what it answers."""
    reservation = a_reservation(f"r{number % 7}", link=LINK, link_bytes=5)
    for worker_id in ("p1", "d1"):
        beat = a_beat(worker_id, sequence=number, inventory=delta(aa="a"))
        await store.heartbeat(beat, ttl_s=TTL_S)
    await reserve(store, reservation)
    await store.release(a_reservation("r3", link=LINK, link_bytes=5))
    grant = await store.take_link_budget(
        LINK, want_bytes=10, rate_bytes_per_s=1000.0, burst_bytes=100
    )
    assert 0 <= grant.granted_bytes <= 10
    assert 0 <= grant.retry_after_s <= 1
    await store.put_segment(a_location("s1"))
    await store.drop_segment("s2")
    await store.finish([(reservation, f"decision-{number}", b"%d" % number)])
    claim = await store.claim_key("k1", owner="o", digest="d", ttl_s=TTL_S)
    assert claim in get_args(KeyClaim)
    await store.release_key("k1", owner="o", keep_s=TTL_S)
    await store.blame(Blamed("f", "p1", "one"))
    published = await store.publish("plan", b"%d" % number)
    assert published is not None
    assert published.version >= 1
    assert await store.lead("plan", "o", ttl_s=TTL_S) in {True, False}
    await store.resign("plan", "o")
    await store.put_traffic("r1", b"%d" % number, ttl_s=TTL_S)
    await look(store, number)


async def reserve(store: RedisStore, reservation: Reservation) -> None:
    reply = await store.reserve(reservation)
    assert reply.refused_by in {None, *get_args(RefusedBy)}
    if reply.refused_by is None:
        assert 1 <= reply.prefill_reserved_requests <= reservation.prefill_requests_max
        assert 1 <= reply.decode_reserved_requests <= reservation.decode_requests_max
        assert reply.prefill_reserved_tokens >= reservation.prefill_tokens
        assert reply.link_reserved_bytes >= reservation.link_bytes


async def look(store: RedisStore, number: int) -> None:
    """What was just written stands there, and everything else can be true."""
    snapshot = await store.snapshot()
    assert [(beat.worker_id, beat.sequence) for beat in snapshot.beats] == [
        ("d1", number),
        ("p1", number),
    ]
    for beat in snapshot.beats:
        beat.inventory.to_delta()
        assert snapshot.loads[beat.worker_id].reserved_tokens >= 0
    assert all(size > 0 for size in snapshot.link_reserved_bytes.values())
    cursor = FIRST
    seen: list[StoreEvent] = []
    while True:
        after, events = await store.events(cursor, wait_s=0)
        seen += events
        if after == cursor:
            break
        cursor = after
    for event in seen:
        assert isinstance(event, WorkerSeen | WorkerLeft | Blamed | Published)
    assert Blamed("f", "p1", "one") in seen[-10:]
    assert a_location("s1") in await store.segments(count=99)
    newest = (await store.decisions(count=1))[0]
    assert newest.record == b"%d" % number
    assert await store.decision(f"decision-{number}") == newest
    document = await store.document("plan")
    assert document is not None
    assert document.body == b"%d" % number
    assert b"%d" % number in await store.traffic()
    other = await store.document("policy")
    assert other is None or json.loads(other.body) is not Ellipsis


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_garbage_never_crashes_and_never_makes_a_wrong_answer(
    server_url: str, seed: int
) -> None:
    rng = Random(f"garbage {seed}")
    config = StoreConfig(
        call_timeout_s=10.0, slow_call_timeout_s=20.0, decisions_max=50, events_max=100
    )
    store = await RedisStore.connect(server_url, fleet=f"test-{uuid4().hex}", config=config)
    written = number = 0
    while written < VALUES / SEEDS:
        number += 1
        written += await litter(store, rng)
        if rng.random() < 0.5:
            await look_around(store)
        await use(store, number)

    assert store.decode_errors_total > number
    assert not store.breaker.is_open
    await assert_healed(store)
    await store.close()


async def look_around(store: RedisStore) -> None:
    """Readers that come upon the garbage before any writer does."""
    await store.snapshot()
    await store.events(FIRST, wait_s=0)
    await store.segments(count=99)
    for item in await store.decisions(count=99):
        await store.decisions(count=1, before=item.cursor)
    await store.decision("decision-1")
    for topic in TOPICS:
        await store.document(topic)
    await store.traffic()


async def assert_healed(store: RedisStore) -> None:
    """After the workers' next full reports the picture is exact."""
    for worker_id in ("p1", "d1"):
        beat = a_beat(worker_id, incarnation="healed", inventory=full(bb="as"))
        reply = await store.heartbeat(beat, ttl_s=TTL_S)
        assert not reply.wants_full_inventory
    snapshot = await store.snapshot()
    assert [beat.worker_id for beat in snapshot.beats] == ["d1", "p1"]
    assert all(beat.inventory == full(bb="as") for beat in snapshot.beats)
    assert all(load.reserved_requests == 0 for load in snapshot.loads.values())
    reply = await store.reserve(
        a_reservation("last", prefill_incarnation="healed", decode_incarnation="healed")
    )
    assert (reply.refused_by, reply.prefill_reserved_requests) == (None, 1)


async def test_a_stream_written_by_a_newer_version_is_read_around(redis_store: RedisStore) -> None:
    """Kinds of events nobody knows yet, and messages of version 2, are ignored and counted."""
    key = redis_store._keys.events
    newer = a_beat("p1").model_dump(mode="json") | {"version": 2}
    await redis_store.heartbeat(a_beat("p1", inventory=full()), ttl_s=TTL_S)
    await redis_store._calls.ask_all(
        "test",
        [
            ("XADD", key, "*", "moved", "p1", "to", "mars"),
            ("XADD", key, "*", "beat", json.dumps(newer)),
            ("XADD", key, "*", "published", "weather", "version", "1"),
        ],
    )
    await redis_store.deregister("p1", "one")

    cursor, events = await redis_store.events(FIRST, wait_s=0)

    assert [type(event) for event in events] == [WorkerSeen, WorkerLeft]
    assert redis_store.decode_errors_total == 3
    assert not (await redis_store.events(cursor, wait_s=0))[1]


async def test_a_fleet_of_two_versions_lives_in_one_store(redis_store: RedisStore) -> None:
    """A registration of version 2 costs this version that one worker and nothing else."""
    for worker_id in ("p1", "p2"):
        await redis_store.heartbeat(a_beat(worker_id, inventory=full()), ttl_s=TTL_S)
    newer = json.dumps(a_beat("p2").model_dump(mode="json") | {"version": 2})
    key = redis_store._keys.worker("p2")
    await redis_store._calls.ask_one("test", ("HSET", key, "beat", newer))

    snapshot = await redis_store.snapshot()

    assert [beat.worker_id for beat in snapshot.beats] == ["p1"]
    assert redis_store.decode_errors_total == 1


async def test_an_absurd_time_to_live_is_cut_to_a_week(redis_store: RedisStore) -> None:
    """A clock far off, or a broken client, leaves nothing behind that never goes."""
    for ttl_s in (1e9, 9e17):
        await redis_store.heartbeat(a_beat("p1", inventory=full()), ttl_s=ttl_s)
        await redis_store.heartbeat(a_beat("d1", inventory=full()), ttl_s=ttl_s)
        await redis_store.reserve(a_reservation(link=LINK, ttl_s=ttl_s, prefill_ttl_s=ttl_s))
        await redis_store.claim_key("k", owner="o", digest="d", ttl_s=ttl_s)
        await redis_store.put_segment(a_location("s1", lease_s=ttl_s))

    prefix = redis_store._keys.prefix.replace("{", r"\{")
    keys = await redis_store._calls.ask_one("test", ("KEYS", f"{prefix}*"))
    assert isinstance(keys, list)
    lives = await redis_store._calls.ask_all("test", [("PTTL", key) for key in keys])
    assert len(lives) == 13
    assert all(isinstance(each, int) and 0 < each <= RECORDS_TTL_MS for each in lives)
