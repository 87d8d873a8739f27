"""Questions asked beside a load, one at a time; what came of each is a line of JSON."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from random import Random
from typing import Any, Final, TypeAlias

from chaos_worker import DIES_IN_DECODE, DIES_IN_PREFILL, HANGS_IN_DECODE

from chaos.client import Client, Patience
from chaos.collect import until_idle
from chaos.history import Request
from chaos.link_loads import fill_link
from chaos.own_loads import load_what_is_left, send_same
from chaos.plant import Plant
from chaos.pool import Item, make_prompts

Probe: TypeAlias = Callable[[Plant, Sequence[Item], Path, float], Coroutine[Any, Any, None]]

_IDLE_WITHIN_S: Final = 5.0
#: What one router has found out, the other has heard after this.
_HEARSAY_S: Final = 0.5
#: Streams beside a hanging engine have gone on elsewhere by then.
_AFTER_HANG_S: Final = 4.0


async def leave_at_any_stage(
    plant: Plant, _: Sequence[Item], directory: Path, seconds: float
) -> None:
    """
    Clients that hang up after 0 to 600 ms: before prefill, in it, in transfer, while decoding.

    Needs a plant without other load: it waits until no worker has anything to do.
    """
    random, until_s = Random(0), time.monotonic() + seconds
    # Long enough that a second of hanging up meets every stage of them.
    items = make_prompts(50, seed=1, lengths=(1000, 1600), outputs=(100, 200))
    routers = [(name, address.url) for name, address in plant.routers.items()]
    with (directory / "probes.jsonl").open("w", encoding="utf-8") as out:
        async with Client(routers, plant.fleet.model.name) as client:
            while time.monotonic() < until_s:
                number = random.randrange(len(items))
                request = Request(number=0, item=number, is_stream=True)
                patience = Patience(leave_s=random.uniform(0.001, 0.6))
                await client.send(request, items[number], patience)
                await until_idle(plant, _IDLE_WITHIN_S)
                line: dict[str, Any] = {
                    "end": request.last.end,
                    "pieces": len(request.last.pieces),
                    "left_after_s": patience.leave_s,
                    "idle_after_s": time.monotonic() - request.last.ended_s,
                }
                out.write(json.dumps(line) + "\n")


async def send_poison(plant: Plant, _: Sequence[Item], directory: Path, seconds: float) -> None:
    """Requests that end the process that runs them, sent again and again as the API allows."""
    with (directory / "probes.jsonl").open("w", encoding="utf-8") as out:
        for marker in (DIES_IN_PREFILL, DIES_IN_DECODE):
            # Twice: after it was refused, it is refused by the other router as well.
            for first in range(2):
                plant.events.tell("marked", marker=marker)
                request = await _send_marked(plant, marker, Patience(), first=first)
                out.write(request.to_line() + "\n")
                await asyncio.sleep(_HEARSAY_S)
            await asyncio.sleep(seconds / 3)


async def send_hanging(plant: Plant, _: Sequence[Item], directory: Path, seconds: float) -> None:
    """A request whose engine never comes back, and whose client leaves: one worker hangs."""
    until_s = time.monotonic() + seconds
    await asyncio.sleep(seconds / 4)
    plant.events.tell("marked", marker=HANGS_IN_DECODE)
    request = await _send_marked(plant, HANGS_IN_DECODE, Patience(leave_s=1.0), first=0)
    (directory / "probes.jsonl").write_text(request.to_line() + "\n", encoding="utf-8")
    await asyncio.sleep(max(0.0, until_s + _AFTER_HANG_S - time.monotonic()))
    # What hangs would hang for ever; its supervisor ends it, as a probe of life would have it.
    for name, child in plant.children.items():
        if "/decode-" in name:
            plant.events.tell("kill", target=name, hit=child.signal(signal.SIGKILL))


async def _send_marked(plant: Plant, marker: str, patience: Patience, *, first: int) -> Request:
    routers = [(name, address.url) for name, address in plant.routers.items()]
    item = Item(kind="completion", prompt=f"go {marker} on", output_tokens_max=8)
    request = Request(number=0, item=0, is_stream=True)
    async with Client(routers, plant.fleet.model.name) as client:
        await client.send(request, item, patience, first=first)
    return request


PROBES: Final[dict[str, Probe]] = {
    probe.__name__: probe
    for probe in (
        leave_at_any_stage,
        send_poison,
        send_hanging,
        load_what_is_left,
        send_same,
        fill_link,
    )
}
