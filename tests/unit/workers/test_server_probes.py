"""A worker dials another one's KV port when a router asks it to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial

import aiohttp
import pytest
from builders import a_beat

from controlplane.router.memory_workers import Gate
from controlplane.serving import listen
from controlplane.wire import KvAddress, LinkProbe, LinkProbeReply
from workers import server as server_module
from workers.metrics import WorkerMetrics
from workers.server import Desk, WorkerServer

ASKED = LinkProbe(target=KvAddress(host="10.0.0.1", port=9), timeout_s=1.0)


class Rig:
    """A worker that answers at a gate, and a client of it."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.asked: list[LinkProbe] = []
        self.session = aiohttp.ClientSession()
        self.url = ""

    async def probe(self, asked: LinkProbe) -> LinkProbeReply:
        self.asked.append(asked)
        await self.gate.wait()
        return LinkProbeReply(sign="answered", rtt_s=0.04)

    async def ask(self, body: str) -> tuple[int, bytes]:
        async with self.session.post(f"{self.url}/worker/v1/probe-link", data=body) as answer:
            return answer.status, await answer.read()


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with AsyncExitStack() as stack:
        rig = Rig()
        stack.push_async_callback(rig.session.close)
        server = WorkerServer(
            desk=partial(Desk, beat=a_beat, prefill=None, decode=None),
            metrics=WorkerMetrics(),
            refresh_metrics=lambda: None,
            alive_interval_s=60.0,
            probe=rig.probe,
        )
        rig.url = await listen(stack, server.application(), "127.0.0.1", 0)
        yield rig


async def test_a_router_is_told_what_the_worker_found(rig: Rig) -> None:
    rig.gate.open()

    status, answer = await rig.ask(ASKED.model_dump_json())

    assert (status, rig.asked) == (200, [ASKED])
    assert LinkProbeReply.model_validate_json(answer) == LinkProbeReply(sign="answered", rtt_s=0.04)


@pytest.mark.parametrize(
    "body",
    [
        "{",
        "[]",
        '{"target": {"host": "", "port": 9}, "timeout_s": 1}',
        '{"target": {"host": "10.0.0.1", "port": 0}, "timeout_s": 1}',
        '{"target": {"host": "10.0.0.1", "port": 9}, "timeout_s": 1e9}',
    ],
)
async def test_what_is_no_probe_is_refused(rig: Rig, body: str) -> None:
    status, _ = await rig.ask(body)

    assert (status, rig.asked) == (400, [])


async def test_probes_under_way_are_bounded(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_PROBES_MAX", 1)
    first = asyncio.ensure_future(rig.ask(ASKED.model_dump_json()))
    await rig.gate.reached()

    refused, _ = await rig.ask(ASKED.model_dump_json())
    rig.gate.open()
    taken, _ = await first

    assert (refused >= 400, taken) == (True, 200)
