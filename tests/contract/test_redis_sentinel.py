"""A store behind sentinels: the master is asked for, checked, and asked for again when lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from statistics import median

import pytest
from redis_answers import Answerer, answering
from redis_servers import a_guarded_master, free_port, is_replica_of, wait_until
from store_builders import TTL_S, a_beat, a_location, a_reservation, eventually, full

from controlplane.config import StoreConfig
from controlplane.errors import StoreError, StoreUnavailable
from controlplane.store.redis_store import RedisStore

FAST = StoreConfig(call_timeout_s=0.5, slow_call_timeout_s=1.0, breaker_probe_s=0.1)
PATIENT = StoreConfig(call_timeout_s=10.0, slow_call_timeout_s=10.0)
MASTER_ROLE = b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n"
REPLICA_ROLE = b"*5\r\n$5\r\nslave\r\n$1\r\na\r\n:1\r\n$9\r\nconnected\r\n:0\r\n"


def a_sentinel(names: Answerer | None = None) -> Answerer:
    """One that names a master, or knows none."""
    return Answerer(special={b"SENTINEL": naming(names)})


def naming(master: Answerer | None) -> bytes:
    if master is None:
        return b"*-1\r\n"
    port = str(master.port).encode()
    return b"*2\r\n$9\r\n127.0.0.1\r\n$%d\r\n%s\r\n" % (len(port), port)


def a_master() -> Answerer:
    return Answerer(special={b"ROLE": MASTER_ROLE})


def store_behind(*addresses: str) -> RedisStore:
    url = f"redis+sentinel://{','.join(addresses)}/mymaster/0"
    return RedisStore(url, fleet="f", config=FAST)


async def test_the_master_is_asked_for_once_and_its_role_with_each_connection() -> None:
    master = a_master()
    async with answering(master):
        sentinel = a_sentinel(master)
        async with answering(sentinel):
            store = store_behind(sentinel.address)

            await asyncio.gather(*(store.ping() for _ in range(4)))
            await store.ping()

            assert sentinel.asked == [b"SENTINEL"]
            assert sorted(master.asked) == [b"PING"] * 5 + [b"ROLE"] * 4
            await store.close()


async def test_any_sentinel_that_knows_the_master_will_do() -> None:
    master = a_master()
    async with answering(master):
        ignorant, knowing = a_sentinel(None), a_sentinel(master)
        async with answering(ignorant, knowing):
            dead = f"127.0.0.1:{free_port()}"
            store = store_behind(dead, ignorant.address, knowing.address)

            await store.ping()

            assert master.asked == [b"ROLE", b"PING"]
            await store.close()


async def test_a_silent_sentinel_is_asked_last_the_next_time() -> None:
    master = a_master()
    async with answering(master):
        silent, knowing = Answerer(answer=None), a_sentinel(master)
        async with answering(silent, knowing):
            store = store_behind(silent.address, knowing.address)

            with pytest.raises(StoreError):
                await store.claim_key("key", owner="o", digest="d", ttl_s=1.0)
            await store.ping()

            assert (len(silent.asked), len(knowing.asked)) == (1, 1)
            await store.close()


async def test_what_a_late_sentinel_names_is_not_asked_if_it_is_no_master() -> None:
    demoted, master = Answerer(special={b"ROLE": REPLICA_ROLE}), a_master()
    async with answering(demoted, master):
        sentinel = a_sentinel(demoted)
        async with answering(sentinel):
            store = store_behind(sentinel.address)

            with pytest.raises(StoreUnavailable):
                await store.ping()
            sentinel.special[b"SENTINEL"] = naming(master)
            await store.ping()

            assert demoted.asked == [b"ROLE"]
            assert master.asked == [b"ROLE", b"PING"]
            await store.close()


async def test_a_master_that_became_a_replica_makes_us_ask_again_within_the_call() -> None:
    demoted, master = a_master(), a_master()
    async with answering(demoted, master):
        sentinel = a_sentinel(demoted)
        async with answering(sentinel):
            store = store_behind(sentinel.address)
            await store.ping()
            sentinel.special[b"SENTINEL"] = naming(master)
            demoted.answer = b"-READONLY You can't write against a read only replica.\r\n"

            await store.ping()

            assert sentinel.asked == [b"SENTINEL"] * 2
            assert master.asked == [b"ROLE", b"PING"]
            await store.close()


async def test_while_no_sentinel_answers_the_store_is_unavailable_and_asked_at_times() -> None:
    store = store_behind(*(f"127.0.0.1:{free_port()}" for _ in range(3)))

    for _ in range(5):
        with pytest.raises(StoreUnavailable):
            await store.ping()

    assert store.breaker.is_open
    await store.close()


async def outcome(call: Awaitable[object]) -> tuple[bool, float]:
    """Whether a call succeeded, and its seconds; anything but a typed failure is raised."""
    started_s = time.monotonic()
    try:
        await call
    except StoreError:
        return False, time.monotonic() - started_s
    return True, time.monotonic() - started_s


async def test_after_a_failover_with_a_lost_tail_claims_heal_within_one_ttl() -> None:
    """
    Replication is cut, a worker restarts, 1,000 claims are made, and then the replica takes over.

    The new master knows none of it. What it says is old, but nothing fails for that: who may run
    what was never decided by the store.
    """
    ttl_s = 2.5
    with a_guarded_master() as servers:
        store = RedisStore(servers.url, fleet="f", config=FAST)
        for worker_id in ("p1", "d1"):
            await store.heartbeat(a_beat(worker_id, inventory=full(aa="a")), ttl_s=TTL_S)
        await store.put_segment(a_location(generation=1))
        wait_until(lambda: is_replica_of(servers.replica, servers.master))

        servers.cut_replication()
        reborn = {"incarnation": "two", "inventory": full(bb="a")}
        await store.heartbeat(a_beat("p1", **reborn), ttl_s=TTL_S)
        await store.put_segment(a_location(generation=2, incarnation="two"))
        await store.claim_key("key", owner="router-1", digest="d", ttl_s=TTL_S)
        lost = [
            a_reservation(
                f"r{number}",
                prefill_incarnation="two",
                prefill_requests_max=10_000,
                decode_requests_max=10_000,
                ttl_s=ttl_s,
                prefill_ttl_s=ttl_s,
            )
            for number in range(1000)
        ]
        patient = RedisStore(servers.url, fleet="f", config=PATIENT)
        granted = await asyncio.gather(*map(patient.reserve, lost))
        await patient.close()
        assert {reply.refused_by for reply in granted} == {None}
        assert max(reply.prefill_reserved_requests for reply in granted) == 1000

        servers.master.kill()
        promoting = asyncio.create_task(asyncio.to_thread(servers.promote))
        outcomes = []
        while not (outcomes and outcomes[-1][0]):
            outcomes.append(await outcome(store.reserve(a_reservation("during"))))
            await asyncio.sleep(0.01)
        await promoting
        # Within the time of a call, and not of the failover.
        assert median(seconds for _, seconds in outcomes) < 1.0

        # The tail is lost: the copy tells of the worker's last life, and of no claim.
        (of_d1, of_p1) = (await store.snapshot()).beats
        assert (of_d1.worker_id, of_p1.incarnation) == ("d1", "one")
        assert [each.generation for each in await store.segments(count=9)] == [1]
        assert await store.claim_key("key", owner="router-2", digest="d", ttl_s=TTL_S) == "granted"

        # Its owner's next words put it right; the store has no numbers of its own to give out.
        reply = await store.heartbeat(a_beat("p1", incarnation="two", sequence=2), ttl_s=TTL_S)
        assert reply.wants_full_inventory
        again = a_beat("p1", incarnation="two", sequence=3, inventory=full(bb="a"))
        await store.heartbeat(again, ttl_s=TTL_S)
        await store.put_segment(a_location(generation=2, incarnation="two"))
        assert (await store.reserve(a_reservation("stale"))).refused_by == "prefill_gone"
        (location,) = await store.segments(count=9)
        assert (location.incarnation, location.generation) == ("two", 2)

        # Releasing what was lost gives back nothing that others hold, and new claims are exact.
        await store.release(a_reservation("during"))
        for number in range(5):
            fresh = lost[0].model_copy(update={"reservation_id": f"new-{number}"})
            counted = await store.reserve(fresh)
        assert counted.prefill_reserved_requests == 5
        await store.finish([(each, each.reservation_id, b"{}") for each in lost])
        loads = (await store.snapshot()).loads
        assert loads["p1"].reserved_requests == loads["d1"].reserved_requests == 5

        async def reserved() -> int:
            return sum(each.reserved_requests for each in (await store.snapshot()).loads.values())

        await eventually(reserved, lambda count: count == 0, within_s=20)
        await store.close()
