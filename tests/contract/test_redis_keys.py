"""The table of keys is the truth about the keys."""

from __future__ import annotations

import re

from store_builders import TTL_S, a_beat, a_location, a_reservation, full

from controlplane.store.keys import KEY_TABLE
from controlplane.store.redis_store import RedisStore
from controlplane.store.scripts import BY_SHA


async def test_every_key_is_in_the_table_with_its_type_and_expires(
    redis_store: RedisStore,
) -> None:
    for worker_id in ("p1", "d1"):
        await redis_store.heartbeat(a_beat(worker_id, inventory=full(aa="a")), ttl_s=TTL_S)
    await redis_store.reserve(a_reservation(link="east>west"))
    await redis_store.take_link_budget(
        "east>west", want_bytes=1, rate_bytes_per_s=1.0, burst_bytes=100
    )
    await redis_store.put_segment(a_location())
    await redis_store.finish([(None, "decision", b"{}")])
    await redis_store.claim_key("key", owner="router", digest="d", ttl_s=TTL_S)
    await redis_store.publish("plan", b"{}")
    await redis_store.lead("plan", "router", ttl_s=TTL_S)
    await redis_store.put_traffic("router", b"{}", ttl_s=TTL_S)

    prefix = redis_store._keys.prefix
    keys = await redis_store._calls.ask_one("test", ("KEYS", prefix.replace("{", r"\{") + "*"))
    assert isinstance(keys, list)
    patterns = {
        spec: re.compile(re.escape(prefix) + re.sub("<[a-z]+>", ".+", spec.name))
        for spec in KEY_TABLE
    }
    seen = set()
    for key in keys:
        (spec,) = [spec for spec, pattern in patterns.items() if pattern.fullmatch(key.decode())]
        seen.add(spec)
        kind, ttl_ms = await redis_store._calls.ask_all("test", (("TYPE", key), ("PTTL", key)))
        assert kind == spec.type.encode(), key
        assert isinstance(ttl_ms, int), key
        assert ttl_ms > 0, key
    assert seen == set(KEY_TABLE)


async def test_the_server_knows_the_scripts_by_the_digests_we_call_them_by(
    redis_store: RedisStore,
) -> None:
    for sha, script in BY_SHA.items():
        loaded = await redis_store._calls.ask_one("test", ("SCRIPT", "LOAD", script.text))
        assert loaded == sha.encode()
