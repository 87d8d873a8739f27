"""A load that asks more of the link between the datacenters than it gives when it is slow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Final

from chaos.client import Client, Patience
from chaos.history import Request
from chaos.plant import Plant
from chaos.pool import Item, make_prompts, write_pool

#: Half a megabyte of KV each, which 10 % of the link carries in a fifth of a second.
_PROMPT: Final = (900, 900)
_OUTPUT: Final = (2, 2)
#: So many that none is in a cache when it comes again.
_PROMPTS: Final = 400
_CLIENTS: Final = 16
_PATIENCE_S: Final = 30.0


async def fill_link(plant: Plant, _: Sequence[Item], directory: Path, seconds: float) -> None:
    """Clients that each ask for the next long prompt as soon as they are answered."""
    items = make_prompts(_PROMPTS, seed=5, lengths=_PROMPT, outputs=_OUTPUT)
    write_pool(directory / "pool.jsonl", items)
    routers = [(name, address.url) for name, address in plant.routers.items()]
    until_s, numbers = time.monotonic() + seconds, count()
    with (directory / "history.jsonl").open("w", encoding="utf-8") as out:

        async def ask_on(client: Client) -> None:
            while time.monotonic() < until_s:
                number = next(numbers)
                item = number % _PROMPTS
                request = Request(number=number, item=item, is_stream=True)
                await client.send(request, items[item], Patience(total_s=_PATIENCE_S))
                out.write(request.to_line() + "\n")

        async with (
            Client(routers, plant.fleet.model.name) as client,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(_CLIENTS):
                group.create_task(ask_on(client))
