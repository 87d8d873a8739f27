"""
Heartbeats of a large fleet that is not there: `URL FLEET WORKERS BLOCKS RATE`.

Registers all workers with full inventories, says so with a line of JSON, and then beats in turn at
the given rate until its standard input ends; every beat changes a few blocks.
"""

from __future__ import annotations

import asyncio
import json
import sys
from hashlib import sha256
from typing import Final

import uvloop

from controlplane.config import StoreConfig
from controlplane.store.redis_store import RedisStore
from controlplane.wire import Inventory, LinkReport, Load, Profile, WorkerBeat

#: A worker of a fleet that beats every 20 s must be away for longer before it is missed.
TTL_S: Final = 120.0
#: Blocks that a beat brings, and as many that it takes away.
_CHANGES: Final = 4
#: Beats of the registration that are under way at the same time.
_TOGETHER: Final = 8


def block(worker: int, number: int) -> str:
    """One block hash of a worker's own."""
    return sha256(f"{worker}/{number}".encode()).hexdigest()[:32]


def beat_of(worker: int, sequence: int, inventory: Inventory) -> WorkerBeat:
    """A worker in one of two datacenters; every other one decodes."""
    site, role = ("east", "west")[worker % 2], ("prefill", "decode")[worker // 2 % 2]
    links = (
        (
            LinkReport(
                from_datacenter="east", to_datacenter="west", goodput_bps=1e9, bytes_total=sequence
            ),
        )
        if role == "decode" and site == "west"
        else ()
    )
    return WorkerBeat(
        worker_id=f"{site}/{role}-{worker}",
        datacenter=site,
        role="prefill" if role == "prefill" else "decode",
        incarnation=f"i{worker}",
        sequence=sequence,
        url=f"http://10.0.{worker // 256}.{worker % 256}:9000",
        model="m",
        fingerprint="f",
        vocabulary_size=272,
        block_tokens=64,
        context_tokens_max=131_072,
        requests_max=72,
        slots=8,
        can_resume=True,
        age_s=3600.0 + sequence,
        profile=Profile(prefill_s_per_token=1e-4, prefill_fixed_s=0.01, decode_step_s=0.02),
        load=Load(queue_requests=sequence % 8, queue_tokens=sequence % 4096, kv_bytes=1 << 30),
        inventory=inventory,
        links=links,
    )


async def _register(store: RedisStore, workers: int, blocks: int) -> None:
    async def one(worker: int) -> None:
        stored = {
            block(worker, number): "as" if number % 4 == 0 else "a" for number in range(blocks)
        }
        inventory = Inventory.model_validate({"is_full": True, "stored": stored})
        await store.heartbeat(beat_of(worker, 1, inventory), ttl_s=TTL_S)

    for start in range(0, workers, _TOGETHER):
        await asyncio.gather(*map(one, range(start, min(workers, start + _TOGETHER))))


async def _beat(store: RedisStore, workers: int, blocks: int, rate: float) -> None:
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    number = 0
    while True:
        worker, turn = number % workers, number // workers
        first = blocks + turn * _CHANGES
        inventory = Inventory.model_validate(
            {
                "stored": {block(worker, first + each): "a" for each in range(_CHANGES)},
                "removed": [block(worker, first + each - blocks) for each in range(_CHANGES)],
            }
        )
        await store.heartbeat(beat_of(worker, turn + 2, inventory), ttl_s=TTL_S)
        number += 1
        await asyncio.sleep(max(0.0, began_s + number / rate - loop.time()))


async def _run(url: str, fleet: str, workers: int, blocks: int, rate: float) -> None:
    store = RedisStore(url, fleet=fleet, config=StoreConfig())
    await _register(store, workers, blocks)
    print(json.dumps({"workers": workers}), flush=True)
    beating = asyncio.ensure_future(_beat(store, workers, blocks, rate))
    await asyncio.to_thread(sys.stdin.read)
    beating.cancel()
    await store.close()


def main() -> None:
    """Beat until standard input ends."""
    url, fleet, workers, blocks, rate = sys.argv[1:]
    uvloop.run(_run(url, fleet, int(workers), int(blocks), float(rate)))


if __name__ == "__main__":
    main()
