"""Two routers over one store: they see the same, respect each other, and die alone."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
from chaos.client import Client, Patience
from chaos.collect import held_claims, until_idle
from chaos.history import Attempt, Request
from chaos.injector import scrape
from chaos.plant import HOST, Plant, Topology, short_session
from chaos.pool import Item, answer_all, make_prompts
from fleets import parse_metrics

ROLES = ("prefill", "decode")
SMALL = Topology(far_prefill=1, home_prefill=1, decode=2)

#: Ends long after it began, so that others meet it on its way.
LONG = {"lengths": (700, 900), "outputs": (80, 100)}


async def items_of(topology: Topology, count: int, **sizes: Any) -> list[Item]:
    """Prompts with the answers of a direct run."""
    prompts = make_prompts(count, seed=2, **sizes)
    return await asyncio.to_thread(answer_all, prompts, topology.fleet().model)


async def send(
    plant: Plant, router: int, item: Item, *, key: str = "", patience_s: float = 40.0
) -> Attempt:
    """Send one request to one router, once; how it ended."""
    name, address = sorted(plant.routers.items())[router]
    request = Request(number=0, item=0, is_stream=True, key=key)
    async with Client([(name, address.url)], plant.fleet.model.name) as client:
        await client.send_once(request, item, Patience(total_s=patience_s))
    return request.attempts[0]


async def jobs(plant: Plant, role: str) -> dict[str, float]:
    """Jobs that all workers of a role have ended, by code."""
    found: dict[str, float] = {}
    for worker, port in plant.worker_ports.items():
        if f"/{role}-" not in worker:
            continue
        for name, value in parse_metrics(await scrape(f"http://{HOST}:{port}")).items():
            if name.startswith("prfaas_jobs_total{"):
                code = name.partition('code="')[2].partition('"')[0]
                found[code] = found.get(code, 0) + value
    return found


async def workers_seen(plant: Plant) -> list[set[str]]:
    """What each router's admin API says that there is."""
    seen = []
    async with short_session() as session:
        for address in plant.routers.values():
            async with session.get(f"{address.admin_url}/admin/v1/state") as answer:
                state = await answer.json()
            sites = state["datacenters"]
            seen.append({one["worker_id"] for site in sites for one in site["workers"]})
    return seen


def all_right(attempts: Sequence[Attempt], items: Sequence[Item]) -> bool:
    return [one.text for one in attempts] == [item.text for item in items]


async def test_both_see_all_workers_and_answer_the_same(tmp_path: Path) -> None:
    items = await items_of(SMALL, 4)
    async with Plant.running(SMALL, tmp_path, seed=1) as plant:
        seen = await workers_seen(plant)
        answers = [await send(plant, router, item) for item in items for router in (0, 1)]

    assert seen == [set(plant.workers)] * 2
    assert all_right(answers, [item for item in items for _ in range(2)])


async def test_claims_of_one_are_respected_by_the_other(tmp_path: Path) -> None:
    """Workers that take two requests are sent two, though each router alone would send more."""
    topology = replace(
        SMALL,
        far_prefill=0,
        decode=1,
        model=SMALL.model.model_copy(update={"queue_requests_max": 1, "decode_slots": 1}),
    )
    items = await items_of(topology, 8, **LONG)
    async with Plant.running(topology, tmp_path, seed=1) as plant:
        answers = await asyncio.gather(
            *(send(plant, number % 2, item) for number, item in enumerate(items))
        )
        refused = {role: (await jobs(plant, role)).get("worker_refused", 0) for role in ROLES}
        idle_s = await until_idle(plant, 10.0)

    done = [(one, item) for one, item in zip(answers, items, strict=True) if one.end == "done"]
    others = [one for one in answers if one.end != "done"]
    assert done
    assert all(one.text == item.text for one, item in done)
    assert all(one.end == "error" and one.status in {429, 503} for one in others), others
    # The store has said so before: at most a heartbeat's worth of requests reach a full worker.
    assert sum(refused.values()) <= 2, refused
    assert idle_s is not None


async def test_the_death_of_one_leaves_the_other_and_its_claims_expire(tmp_path: Path) -> None:
    topology = replace(SMALL, limits=SMALL.limits.model_copy(update={"reservation_ttl_s": 5.0}))
    items = await items_of(topology, 6, **LONG)
    async with Plant.running(topology, tmp_path, seed=1) as plant:
        sent = [
            asyncio.ensure_future(send(plant, number % 2, item))
            for number, item in enumerate(items)
        ]
        await until_claimed(plant, 2)
        plant.children["router-0"].restart_s = 60.0
        plant.children["router-0"].signal(signal.SIGKILL)
        answers = await asyncio.gather(*sent)
        idle_s = await until_idle(plant, 10.0)
        await asyncio.sleep(topology.limits.reservation_ttl_s)
        left = await held_claims(plant)

    assert [one.end for one in answers[0::2]] == ["broken"] * 3
    assert all_right(answers[1::2], items[1::2])
    assert idle_s is not None, "orphans still run"
    assert left["reserved"] == left["link"] == 0


async def test_a_policy_changed_at_one_decides_at_both_and_an_answer_says_so(
    tmp_path: Path,
) -> None:
    items = await items_of(SMALL, 1)
    change = {"policy": "local_only", "shadows": [{"policy": "prfaas"}], "by": "a test"}
    async with Plant.running(SMALL, tmp_path, seed=1) as plant, short_session() as session:
        urls = [address.admin_url for _, address in sorted(plant.routers.items())]
        began_s = time.monotonic()
        async with session.put(f"{urls[0]}/admin/v1/policy", json=change) as answer:
            assert answer.status == 200, await answer.text()
        for url in urls:
            await until_read(
                session, f"{url}/admin/v1/state", lambda state: state["policy"]["version"]
            )
        print(f"both routers followed within {time.monotonic() - began_s:.3f} s")
        sent = await send(plant, 1, items[0])
        log = f"{urls[1]}/admin/v1/decisions"
        page = await until_read(session, log, lambda page: page["decisions"])
        async with session.get(f"{log}/{page['decisions'][0]['decision_id']}") as answer:
            (attempt,) = (await answer.json())["attempts"]

    assert sent.text == items[0].text
    assert (attempt["policy"], attempt["policy_version"]) == ("local_only", 1)
    assert [(one["policy"], one["fault"]) for one in attempt["shadows"]] == [("prfaas", None)]


async def until_read(
    session: aiohttp.ClientSession, url: str, is_there: Callable[[dict[str, Any]], object]
) -> dict[str, Any]:
    """What an admin API says once that is there."""
    for _ in range(1000):
        async with session.get(url) as answer:
            document: dict[str, Any] = await answer.json()
        if is_there(document):
            return document
        await asyncio.sleep(0.02)
    raise AssertionError(f"{url} says {document}")


async def test_one_key_at_both_at_once_is_one_prefill(tmp_path: Path) -> None:
    (item,) = await items_of(SMALL, 1, **LONG)
    async with Plant.running(SMALL, tmp_path, seed=1) as plant:
        answers = await asyncio.gather(*(send(plant, n, item, key="the-same") for n in (0, 1)))
        prefills = sum((await jobs(plant, "prefill")).values())
        later = await send(plant, 1, item, key="the-same")
        other = await send(plant, 0, replace(item, prompt="another one"), key="the-same")

    first, second = sorted(answers, key=lambda one: one.status)
    assert (first.status, first.text) == (200, item.text)
    assert (second.status, second.code) == (409, "idempotency_key_in_use")
    assert prefills == 1
    # It is over: the same request may be asked again, another one may not take its name.
    assert later.text == item.text
    assert (other.status, other.code) == (422, "idempotency_key_reused")


async def until_claimed(plant: Plant, count: int) -> None:
    """Wait until so many claims are in the store."""
    async with asyncio.timeout(10.0):
        while (await held_claims(plant))["reserved"] < count:  # noqa: ASYNC110 - asked over a socket
            await asyncio.sleep(0.01)
