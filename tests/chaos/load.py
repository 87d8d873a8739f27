"""
The load: a process of its own that sends requests at their times, whatever becomes of the others.

Run as `python -m chaos.load`. It reads commands from standard input, one JSON object a line, and
answers each with one line when it is done:

    {"op": "capacity", "seconds": S, "connections": N, ...}  -> {"rate_per_s": R}   a closed loop
    {"op": "run", "history": FILE, "start_s": T, ...}        -> {"requests": N}     an open one
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

import uvloop

from chaos.client import Client, Patience
from chaos.history import Request
from chaos.pool import Item, read_pool

#: Requests open at the same time; one more is a failure of the test, not of the product.
_OPEN_MAX: Final = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Whom to ask what."""

    #: Names and URLs.
    routers: tuple[tuple[str, str], ...]
    model: str
    pool: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """An open-loop load."""

    seed: int
    #: Requests in all, and how many a second on average.
    count: int
    rate_per_s: float
    stream_share: float = 0.7
    key_share: float = 0.3
    #: Part of the requests that hang up within `leave_s_max`.
    leave_share: float = 0.0
    #: The part of the pool that is asked: from this place, so many.
    first: int = 0
    items: int = 0
    leave_s_max: float = 1.0
    patience_s: float = 60.0
    #: The part of each tenant; none for one without a name.
    tenants: Sequence[float] = ()


async def measure_capacity(target: Target, *, seconds: float, connections: int) -> float:
    """Requests a second when so many clients each send their next request after an answer."""
    items, random = read_pool(Path(target.pool)), Random(0)
    stop_s, done = time.monotonic() + seconds, 0

    async def one(client: Client) -> None:
        nonlocal done
        while time.monotonic() < stop_s:
            number = random.randrange(len(items))
            request = Request(number=0, item=number, is_stream=random.random() < 0.7)
            await client.send(request, items[number], Patience())
            done += time.monotonic() < stop_s and request.last.end == "done"

    async with Client(target.routers, target.model) as client, asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(one(client))
    return done / seconds


async def run_load(target: Target, spec: Spec, *, history: Path, start_s: float) -> int:
    """Send all requests at their times; how many were sent, each with a line in the history."""
    items, random = read_pool(Path(target.pool)), Random(spec.seed)
    tenants = _tenants(spec)
    due_s = start_s
    with history.open("w", encoding="utf-8") as out:

        async def one(client: Client, request: Request, item: Item, patience: Patience) -> None:
            async with room:
                await client.send(request, item, patience)
            out.write(request.to_line() + "\n")

        room = asyncio.Semaphore(_OPEN_MAX)
        async with Client(target.routers, target.model) as client, asyncio.TaskGroup() as group:
            for number in range(spec.count):
                due_s += random.expovariate(spec.rate_per_s)
                request, patience = _drawn(number, start_s, due_s, len(items), spec, random)
                request.tenant = next(tenants)
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                group.create_task(one(client, request, items[request.item], patience))
    return spec.count


def _drawn(
    number: int, start_s: float, due_s: float, items: int, spec: Spec, random: Random
) -> tuple[Request, Patience]:
    # Every value is drawn, used or not: one seed gives one load whatever the shares are.
    item = spec.first + random.randrange(spec.items or items)
    stream, keyed, leaves, leave_s = _four(random)
    request = Request(
        number=number,
        item=item,
        is_stream=stream < spec.stream_share,
        key=f"chaos-{start_s}-{number}" if keyed < spec.key_share else "",
        due_s=due_s,
    )
    is_leaving = leaves < spec.leave_share
    return request, Patience(
        total_s=spec.patience_s, leave_s=leave_s * spec.leave_s_max if is_leaving else None
    )


def _tenants(spec: Spec) -> Iterator[str]:
    """Whose each request is; from a source of its own, so that the load is that of its seed."""
    random, names = Random(f"{spec.seed} tenants"), [f"t{n}" for n in range(len(spec.tenants))]
    while True:
        yield random.choices(names, spec.tenants)[0] if names else ""


def _four(random: Random) -> tuple[float, float, float, float]:
    return random.random(), random.random(), random.random(), random.random()


async def _do(command: dict[str, Any]) -> dict[str, Any]:
    target = Target(
        routers=tuple((name, url) for name, url in command["target"]["routers"]),
        model=command["target"]["model"],
        pool=command["target"]["pool"],
    )
    if command["op"] == "capacity":
        rate = await measure_capacity(
            target, seconds=command["seconds"], connections=command["connections"]
        )
        return {"rate_per_s": rate}
    spec = Spec(**command["spec"])
    sent = await run_load(
        target, spec, history=Path(command["history"]), start_s=command["start_s"]
    )
    return {"requests": sent}


async def _main() -> None:
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(commands), sys.stdin
    )
    while line := await commands.readline():
        print(json.dumps(await _do(json.loads(line))), flush=True)


if __name__ == "__main__":
    uvloop.run(_main())
