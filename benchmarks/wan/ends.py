"""
The two ends of one transfer, each a process: `python -m benchmarks.wan.ends owner|reader`, settings as JSON on stdin.

They are the product's own: segment store, KV server, pacer and fetch.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from typing import Any

import uvloop

from controlplane.config import KvConfig, LinkConfig, StoreConfig
from controlplane.store.memory_store import MemoryStore
from controlplane.wire import KvGroup, KvLocation, KvManifest, PrefillReport
from workers.engine import KvPiece
from workers.kv.client import fetch_segment
from workers.kv.layout import chunk_plan
from workers.kv.pacing import LinkPacer, StoreLinkBudget
from workers.kv.segments import SegmentStore
from workers.kv.server import KvServer
from workers.links import LinkMeters

CHUNK_BYTES = 4 << 20
BLOCK_TOKENS = 256
STATE_BYTES = 16 << 20


def _link(settings: dict[str, Any]) -> LinkConfig:
    return LinkConfig(
        from_datacenter="east",
        to_datacenter="west",
        capacity_mbit_per_s=settings["mbit_per_s"],
    )


def a_manifest(total_bytes: int) -> KvManifest:
    """Attention KV in chunks of 4 MiB, and a state."""
    blocks = max(1, (total_bytes - STATE_BYTES) // CHUNK_BYTES)
    return KvManifest(
        fingerprint="f",
        scope="s",
        token_count=blocks * BLOCK_TOKENS,
        block_tokens=BLOCK_TOKENS,
        groups=(
            KvGroup(name="attention", bytes_per_token=CHUNK_BYTES // BLOCK_TOKENS, fixed_bytes=0),
            KvGroup(name="state", bytes_per_token=0, fixed_bytes=STATE_BYTES),
        ),
    )


async def own(settings: dict[str, Any]) -> None:
    """Hold a filled segment until standard input ends; prints its location."""
    config = KvConfig(segment_bytes_max=1 << 40)
    pacers = []
    if settings["mbit_per_s"]:
        link = _link(settings)
        pacers.append(
            LinkPacer(
                link,
                StoreLinkBudget(MemoryStore(config=StoreConfig()), link),
                floor_share=config.floor_share,
            )
        )
    store = SegmentStore(incarnation="i", config=config)
    server = KvServer(store, worker_id="east/p", datacenter="east", pacers=pacers, config=config)
    server.start(settings["host"])
    manifest = a_manifest(settings["total_bytes"])
    segment = store.open(manifest)
    data = {size: bytes(size) for size in (CHUNK_BYTES, STATE_BYTES)}
    for spec in chunk_plan(manifest):
        segment.fill(
            KvPiece(
                group=spec.group, token_start=spec.token_start, token_end=spec.token_end,
                data=data[spec.size_bytes],
            )
        )  # fmt: skip
    computed = manifest.token_count
    segment.complete(
        PrefillReport(queue_s=0, compute_s=0, cached_tokens=0, computed_tokens=computed)
    )
    location = server.location(segment, settings["host"])
    begun = resource.getrusage(resource.RUSAGE_SELF)
    print(location.model_dump_json(), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    print(json.dumps({"cpu_s": _cpu_s(begun)}), flush=True)
    await server.close()


async def read(settings: dict[str, Any]) -> None:
    """Fetch it, and print what came when."""
    location = KvLocation.model_validate(settings["location"])
    config, destination = KvConfig(), "east"
    if settings["mbit_per_s"]:
        destination = "west"
        meters = LinkMeters(destination, [_link(settings)])
        # As after a first transfer, which tells the round trip.
        meters.add("east", moved_bytes=0, goodput_bps=0.0, rtt_s=settings["rtt_s"])
        with meters.fetching("east", config) as striped:
            config = striped
    if settings["connections"]:
        config = KvConfig(connections=settings["connections"])
    begun, began_s = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    found = await fetch_segment(
        location,
        held_tokens=0,
        destination=destination,
        on_piece=lambda _: None,
        config=config,
        arrived_s=began_s,
    )
    took_s = time.monotonic() - began_s
    print(json.dumps({
        "bytes": found.transfer.bytes, "took_s": took_s, "connections": config.connections,
        "goodput_bps": found.goodput_bps,
        "first_byte_s": found.transfer.first_byte_s,
        "refetched": found.transfer.refetched_chunks, "cpu_s": _cpu_s(begun),
    }))  # fmt: skip


def _cpu_s(begun: resource.struct_rusage) -> float:
    now = resource.getrusage(resource.RUSAGE_SELF)
    return now.ru_utime + now.ru_stime - begun.ru_utime - begun.ru_stime


if __name__ == "__main__":
    given = json.loads(sys.stdin.readline())
    uvloop.run((own if sys.argv[1] == "owner" else read)(given))
