"""
Our router with an agent for each server: `python -m conformance.ours --port P --prefill URL ... --decode URL ...`.

As `prfaas up` starts it, each agent a process of its own; of many servers all agents are in one process, because
a machine for tests has no room for hundreds.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Literal

import click
from fleets import free_port, to_toml

from conformance.servers import MODEL
from controlplane.app import run_router
from controlplane.config import (
    DatacenterConfig,
    FleetConfig,
    HeartbeatConfig,
    ModelConfig,
    RouterConfig,
)
from controlplane.config_server import EngineServerConfig, ListedServer
from controlplane.observe.logs import configure_logs
from controlplane.store.embedded import EmbeddedServer
from controlplane.store.redis_store import RedisStore
from workers.address import EngineAddress, WorkerAddress
from workers.app import run_worker
from workers.identity import Identity

#: More agents than this share a process.
_PROCESSES_MAX = 16
#: Agents that begin side by side.
_BEGIN_MAX = 16


#: What a fleet file lists is what `prfaas up` starts on one machine; agents elsewhere just register.
_LISTED_MAX = 64


def _listed(url: str) -> ListedServer:
    return ListedServer(url=url)


def a_fleet(port: int, tokenizer: str, prefill: list[str], decode: list[str]) -> FleetConfig:
    """One datacenter with all servers."""
    many = len(prefill) + len(decode) > _PROCESSES_MAX
    return FleetConfig(
        name="conformance",
        router=RouterConfig(datacenter="here", port=port, admin_port=free_port()),
        # Hundreds of agents on one core speak and look less often.
        heartbeat=HeartbeatConfig(interval_s=4.0, ttl_s=15.0) if many else HeartbeatConfig(),
        model=ModelConfig(
            engine="vllm",
            name=MODEL,
            tokenizer=tokenizer,
            context_tokens_max=4096,
            server=EngineServerConfig(
                poll_interval_s=10.0 if many else 0.5, silent_s=60.0 if many else 3.0
            ),
        ),
        datacenters=(
            DatacenterConfig(
                name="here",
                prefill_servers=tuple(map(_listed, prefill[:_LISTED_MAX])),
                decode_servers=tuple(map(_listed, decode[:_LISTED_MAX])),
            ),
        ),
    )


@click.command()
@click.option("--port", type=int, required=True)
@click.option("--tokenizer", required=True)
@click.option("--prefill", multiple=True, required=True)
@click.option("--decode", multiple=True, required=True)
def main(port: int, tokenizer: str, prefill: tuple[str, ...], decode: tuple[str, ...]) -> None:
    """Run until SIGTERM."""
    fleet = a_fleet(port, tokenizer, [*prefill], [*decode])
    if len(prefill) + len(decode) > _PROCESSES_MAX:
        configure_logs("json", "warning")
        asyncio.run(_together(fleet, prefill, decode))
        return
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "fleet.toml"
        path.write_text(to_toml(fleet), encoding="utf-8")
        from controlplane.cli import main as prfaas  # noqa: PLC0415 - the other way needs no commands

        prfaas(["up", "--fleet", str(path)], prog_name="prfaas")


async def _together(fleet: FleetConfig, prefill: tuple[str, ...], decode: tuple[str, ...]) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    async with EmbeddedServer() as redis, AsyncExitStack() as stack:
        store = RedisStore(redis.url, fleet=fleet.name, config=fleet.store)
        stack.push_async_callback(store.close)
        site, turns = fleet.datacenters[0], asyncio.Semaphore(_BEGIN_MAX)

        async def begin(role: Literal["prefill", "decode"], number: int, url: str) -> None:
            identity = Identity.new(datacenter=site.name, name=f"{role}-{number}", role=role)
            address = WorkerAddress(host=site.host, engine=EngineAddress(url=url))
            async with turns:
                await stack.enter_async_context(run_worker(fleet, store, identity, address))

        async with asyncio.TaskGroup() as group:
            for number, url in enumerate(prefill):
                group.create_task(begin("prefill", number, url))
            for number, url in enumerate(decode):
                group.create_task(begin("decode", number, url))
        await stack.enter_async_context(run_router(fleet, store))
        await stopped.wait()


if __name__ == "__main__":
    sys.exit(main())
