"""Probes that bring a load of their own: what a fleet still bears, and a herd."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import aiohttp

from chaos.collect import samples_of
from chaos.injector import scrape
from chaos.load import Spec
from chaos.plant import FAR, HOST, Plant, short_session
from chaos.pool import Item, answer_all, make_prompts, write_pool
from chaos.processes import Helper

_PATIENCE_S: Final = 60.0
#: Between the command to the load and its first request.
_LEAD_S: Final = 0.5
_POLL_S: Final = 0.1
_EGRESS_S: Final = 0.25
#: Until the routers know that the workers of a datacenter are gone.
_NOTICED_S: Final = 20.0
#: What runs before the first is measured, and what is measured.
_WARM_S: Final = 3.0
_LEFT_S: Final = 15.0
_CONNECTIONS: Final = 24
#: Requests of one length, so that each costs the same and their number is a measure.
_PROMPT: Final = (240, 240)
_OUTPUT: Final = (4, 4)
_PROMPTS: Final = 60
#: Of what the fleet can still do; three fifths of it from one tenant.
_OVERLOAD: Final = 1.5
_TENANTS: Final = (0.6, 0.2, 0.2)

_HERD: Final = 1000
#: Two snapshots of a hybrid model's state and the token that is decoded: all of it can be resumed.
_HERD_TOKENS: Final = 2 * 256 + 1


async def load_what_is_left(
    plant: Plant, _: Sequence[Item], directory: Path, seconds: float
) -> None:
    """
    Measure what the fleet bears without its home prefill workers, then offer half as much again.

    Needs a plan that kills them, and workers without prefix caches.
    """
    prompts = make_prompts(_PROMPTS, seed=7, lengths=_PROMPT, outputs=_OUTPUT)
    pool = await _pool_of(plant, directory, [one for one in prompts if one.kind == "completion"])
    await _until_prefill_workers(plant, plant.topology.far_prefill)
    async with _a_load() as load, _beside(lambda: _note_egress(plant, directory)):
        rate_per_s = 0.0
        for take_s in (_WARM_S, _LEFT_S):
            question = {"op": "capacity", "seconds": take_s, "connections": _CONNECTIONS}
            answer = await load.ask(
                {**question, "target": _target(plant, pool)}, within_s=take_s + 2 * _PATIENCE_S
            )
            rate_per_s = answer["rate_per_s"]
        plant.events.tell("capacity_left", rate_per_s=rate_per_s)
        offered_per_s = _OVERLOAD * rate_per_s
        spec = Spec(
            seed=1,
            count=round(offered_per_s * seconds),
            rate_per_s=offered_per_s,
            tenants=_TENANTS,
            patience_s=_PATIENCE_S,
        )
        await _run(plant, load, spec, pool, directory)


async def send_same(plant: Plant, _: Sequence[Item], directory: Path, seconds: float) -> None:
    """A thousand times the same prompt within a moment, to all routers."""
    (one,) = make_prompts(1, seed=3, lengths=(_HERD_TOKENS, _HERD_TOKENS), outputs=(2, 2))
    prompt = (one.prompt * 2)[:_HERD_TOKENS]
    item = Item(kind="completion", prompt=prompt, output_tokens_max=2)
    pool = await _pool_of(plant, directory, [item])
    before = await _computed(plant)
    seen: dict[str, float] = {}
    async with _a_load() as load, _beside(lambda: _note_most(plant, seen)):
        spec = Spec(seed=1, count=_HERD, rate_per_s=_HERD / seconds, patience_s=_PATIENCE_S)
        await _run(plant, load, spec, pool, directory)
    after = await _computed(plant)
    plant.events.tell(
        "herd_served",
        head_tokens=len(item.tokens) - 1,
        computed={name: tokens - before[name] for name, tokens in after.items()},
        coalesced=sum([await _of_router(plant, name, _COALESCED) for name in plant.routers]),
        waiters_max=plant.fleet.limits.coalesce_waiters_max,
        queue_max=plant.fleet.limits.queue_requests_max,
        seen=seen,
    )


# --- Inside ---------------------------------------------------------------------------------------

_COALESCED: Final = "prfaas_coalesced_total"
_IN_FLIGHT: Final = "prfaas_requests_in_flight"
_QUEUED: Final = "prfaas_queue_depth_requests"


async def _pool_of(plant: Plant, directory: Path, items: Sequence[Item]) -> Path:
    """Answer prompts and put them where this run is judged."""
    path = directory / "pool.jsonl"
    write_pool(path, await asyncio.to_thread(answer_all, items, plant.fleet.model))
    return path


@contextlib.asynccontextmanager
async def _a_load() -> AsyncIterator[Helper]:
    load = Helper("chaos.load")
    await load.start()
    try:
        yield load
    finally:
        await load.stop()


@contextlib.asynccontextmanager
async def _beside(note: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Something that goes on until the block ends."""
    task = asyncio.create_task(note())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _run(plant: Plant, load: Helper, spec: Spec, pool: Path, directory: Path) -> None:
    start_s = time.monotonic() + _LEAD_S
    plant.events.tell("own_load", start_s=start_s, spec=asdict(spec))
    command = {
        "op": "run",
        "target": _target(plant, pool),
        "spec": asdict(spec),
        "history": str(directory / "history.jsonl"),
        "start_s": start_s,
    }
    await load.ask(command, within_s=spec.count / spec.rate_per_s + 2 * _PATIENCE_S)


def _target(plant: Plant, pool: Path) -> dict[str, Any]:
    routers = [(name, address.url) for name, address in plant.routers.items()]
    return {"routers": routers, "model": plant.fleet.model.name, "pool": str(pool)}


async def _until_prefill_workers(plant: Plant, count: int) -> None:
    """Until all routers know of so many."""
    async with asyncio.timeout(_NOTICED_S), short_session() as session:
        for address in plant.routers.values():
            while await _prefill_workers(session, address.url) != count:  # noqa: ASYNC110 - asked over HTTP
                await asyncio.sleep(_POLL_S)


async def _prefill_workers(session: aiohttp.ClientSession, url: str) -> int:
    async with session.get(f"{url}/ready") as response:
        return int((await response.json())["prefill_workers"])


async def _note_egress(plant: Plant, directory: Path) -> None:
    """Bytes that have left the far datacenter, again and again, as lines of JSON."""
    with (directory / "probes.jsonl").open("w", encoding="utf-8") as out:
        while True:
            links = (await plant.proxy.ask({"op": "stats"}))["links"]
            sent = [
                one["bytes_down"] for name, one in links.items() if name.startswith(f"kv-{FAR}-")
            ]
            line = {"at_s": time.monotonic(), "egress_bytes": sum(sent), "senders": len(sent)}
            out.write(json.dumps(line) + "\n")
            await asyncio.sleep(_EGRESS_S)


async def _note_most(plant: Plant, seen: dict[str, float]) -> None:
    """The most that was open and that waited at any router."""
    while True:
        for router in plant.routers:
            for name in (_IN_FLIGHT, _QUEUED):
                seen[name] = max(seen.get(name, 0.0), await _of_router(plant, router, name))
        await asyncio.sleep(_POLL_S)


async def _of_router(plant: Plant, router: str, name: str) -> float:
    text = await scrape(plant.routers[router].admin_url)
    return sum(samples_of(text, (name,)).values())


async def _computed(plant: Plant) -> dict[str, float]:
    """Prompt tokens that each prefill worker has computed in its life."""
    key = 'prfaas_prompt_tokens_computed{phase="prefill"}'
    return {
        name: sum(samples_of(await scrape(f"http://{HOST}:{port}"), (key,)).values())
        for name, port in plant.worker_ports.items()
        if "/prefill-" in name
    }
