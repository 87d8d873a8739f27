"""What is left when a load is over: metrics of all processes, claims in Redis, decision records."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import aiohttp

from chaos.injector import scrape
from chaos.plant import HOST, Plant, short_session

_PAGE: Final = 500
#: Records asked for at the same time; the router serves requests beside.
_AT_ONCE: Final = 8


async def collect_end(plant: Plant, path: Path, *, ttl_s: float) -> None:
    """Write what is held now, by whom; `ttl_s` says how long everything had to expire."""
    document = {
        "ttl_s": ttl_s,
        "redis": await held_claims(plant),
        "workers": {
            name: samples_of(await scrape(f"http://{HOST}:{port}"), _WORKER_GAUGES)
            for name, port in plant.worker_ports.items()
        },
        "routers": {
            name: samples_of(await scrape(address.admin_url), _ROUTER_SAMPLES)
            for name, address in plant.routers.items()
        },
        "deaths": {name: child.deaths for name, child in plant.children.items()},
    }
    _write(path, document)


async def collect_records(plant: Plant, path: Path) -> None:
    """Write the decision records that routers remember, cut down to what is judged."""
    with path.open("w", encoding="utf-8") as out:
        for address in plant.routers.values():
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30.0)) as session:
                ids = [one async for one in _decision_ids(session, address.admin_url)]
                for start in range(0, len(ids), _AT_ONCE):
                    part = ids[start : start + _AT_ONCE]
                    records = await asyncio.gather(
                        *(_record(session, address.admin_url, one) for one in part)
                    )
                    for record in filter(None, records):
                        out.write(json.dumps(record) + "\n")


def cut_logs(plant: Plant, directory: Path, offsets: dict[str, int]) -> None:
    """Copy what each process has logged since its offset."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, child in plant.children.items():
        with child.log.open("rb") as log:
            log.seek(offsets.get(name, 0))
            (directory / child.log.name).write_bytes(log.read())


def log_offsets(plant: Plant) -> dict[str, int]:
    """Where each process's log ends now."""
    return {name: child.log.stat().st_size for name, child in plant.children.items()}


def _write(path: Path, document: object) -> None:
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


_WORKER_GAUGES: Final = (
    "prfaas_leases_active",
    "prfaas_segment_bytes",
    "prfaas_queue_depth_requests",
    "prfaas_queue_depth_tokens",
    "prfaas_jobs_total",
)
_ROUTER_SAMPLES: Final = (
    "prfaas_requests_in_flight",
    "prfaas_requests_total",
    "prfaas_retries_total",
    "prfaas_store_errors_total",
    "prfaas_records_dropped_total",
    "prfaas_link_reserved_bytes",
)


def samples_of(text: str, names: Iterable[str]) -> dict[str, float]:
    """Samples of metrics whose names begin so."""
    begins = tuple(names)
    found = {}
    for line in text.splitlines():
        if line.startswith(begins) and "_created" not in line:
            name, _, value = line.rpartition(" ")
            found[name] = float(value)
    return found


async def held_claims(plant: Plant) -> dict[str, int]:
    """Members that are left, by kind of key; those that have expired and lie there count not."""
    prefix = f"prfaas:{{{plant.fleet.name}}}:"
    counts = {"reserved": 0, "link": 0, "segments": 0}
    async with plant.redis() as redis:
        seconds, micros = await redis.time()
        now_ms = seconds * 1000 + micros // 1000
        async for key in redis.scan_iter(match=prefix + "*", count=_PAGE):
            kind = key.decode().removeprefix(prefix).partition(":")[0]
            if kind in counts and await redis.type(key) == b"zset":
                counts[kind] += await redis.zcount(key, now_ms, "+inf")
    return counts


async def _decision_ids(session: aiohttp.ClientSession, url: str) -> Any:
    before: str | None = None
    while True:
        query = {"limit": str(_PAGE)} | ({"before": before} if before else {})
        async with session.get(f"{url}/admin/v1/decisions", params=query) as answer:
            page = await answer.json()
        for row in page["decisions"]:
            yield row["decision_id"]
        before = page["next"]
        if before is None:
            return


async def _record(
    session: aiohttp.ClientSession, url: str, decision_id: str
) -> dict[str, Any] | None:
    async with session.get(f"{url}/admin/v1/decisions/{decision_id}") as answer:
        if answer.status != 200:
            return None
        document = await answer.json()
    record = document.get("record", document)
    return {
        "request_id": record["request_id"],
        "router": record["router"],
        "wall_s": record["at"],
        "outcome": record["outcome"],
        "code": record["code"],
        "timeline": record["timeline"],
        "story": record["story"],
        "attempts": [
            {
                "ended_by": attempt["ended_by"],
                "placement": attempt["decision"]["placement"],
                "uncached_tokens": (attempt["decision"]["prediction"] or {}).get("uncached_tokens"),
                "links": attempt["view"]["links"],
            }
            for attempt in record["attempts"]
        ],
    }


async def until_idle(plant: Plant, within_s: float) -> float | None:
    """Seconds until no worker has a job or a segment any more; None if it takes longer."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    async with short_session() as session:
        while loop.time() < began_s + within_s:
            held = await asyncio.gather(
                *(_held(session, port) for port in plant.worker_ports.values())
            )
            if not any(held):
                return loop.time() - began_s
            await asyncio.sleep(0.02)
    return None


async def _held(session: aiohttp.ClientSession, port: int) -> float:
    """Jobs and readable segments of a worker; one that does not answer is busy."""
    try:
        async with session.get(f"http://{HOST}:{port}/metrics") as answer:
            text = await answer.text()
    except (aiohttp.ClientError, TimeoutError):
        return 1.0
    names = ("prfaas_queue_depth_requests", "prfaas_leases_active")
    return sum(samples_of(text, names).values())
