"""What may be found in Redis that nobody of the fleet wrote."""

from __future__ import annotations

from random import Random
from typing import Any, Final

from redis.asyncio import Redis

from controlplane.store.keys import KEY_TABLE

#: Keys of a fleet that are looked at in one go.
_SCAN: Final = 1000
_SHARE: Final = 0.5


async def spoil_keys(redis: Redis, fleet: str, random: Random) -> int:
    """Overwrite half of a fleet's keys with garbage, some with another type; how many."""
    prefix = f"prfaas:{{{fleet}}}:"
    keys = [key async for key in redis.scan_iter(match=_pattern(prefix), count=_SCAN)]
    named = [(prefix + spec.name).encode() for spec in KEY_TABLE if "<" not in spec.name]
    chosen = [key for key in {*keys, *named} if random.random() < _SHARE]
    for key in chosen:
        await _spoil(redis, key, random)
    return len(chosen)


async def _spoil(redis: Redis, key: bytes, random: Random) -> None:
    junk = random.randbytes(random.randrange(1, 64))
    kind = random.randrange(4)
    if kind == 0:
        await redis.set(key, junk)
        return
    found = await redis.type(key)
    # Of the right type, with fields that mean nothing; or of whatever type is not there yet.
    values: dict[bytes | str, Any] = {
        b"hash": lambda: redis.hset(key, junk, junk),
        b"zset": lambda: redis.zadd(key, {junk: random.uniform(-1e18, 1e18)}),
        b"stream": lambda: redis.xadd(key, {junk: junk}),
        b"string": lambda: redis.set(key, junk),
        b"none": lambda: redis.rpush(key, junk),
    }
    write = values.get(found)
    if write is not None:
        await write()


def _pattern(prefix: str) -> str:
    return prefix.replace("[", r"\[") + "*"
