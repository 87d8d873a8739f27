"""`prfaas worker`: one worker process."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from controlplane.cli.process import (
    EXIT_CONFIG,
    fail,
    fleet_option,
    need_redis,
    read_environment,
    read_fleet,
    run_process,
    supervised_option,
    until_stopped,
)
from controlplane.config import FleetConfig
from controlplane.store.redis_store import RedisStore


@click.command()
@fleet_option
@supervised_option
@click.option("--datacenter", required=True, help="Where it stands; a name of the fleet.")
@click.option("--role", required=True, type=click.Choice(["prefill", "decode"]))
@click.option("--name", required=True, help="Its name in the datacenter, such as prefill-0.")
@click.option("--host", help="Address to listen on. Default: the datacenter's host.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="HTTP port; 0 finds one.")
@click.option("--kv-port", type=click.IntRange(0, 65535), default=0, help="KV port; 0 finds one.")
def worker(
    *,
    fleet_path: Path | None,
    supervised: bool,
    datacenter: str,
    role: Literal["prefill", "decode"],
    name: str,
    host: str | None,
    port: int,
    kv_port: int,
) -> None:
    """Run one worker of a fleet. Needs REDIS_URL."""
    environment = read_environment()
    fleet = read_fleet(fleet_path, is_supervised=supervised)
    site = fleet.datacenter(datacenter)
    if site is None:
        known = ", ".join(one.name for one in fleet.datacenters)
        fail(f"--datacenter {datacenter!r} is not in the fleet; it has: {known}", EXIT_CONFIG)
    url = need_redis(environment)
    run_process(
        environment,
        _serve(
            fleet,
            url,
            is_supervised=supervised,
            datacenter=datacenter,
            role=role,
            name=name,
            host=host or site.host,
            port=port,
            kv_port=kv_port,
        ),
    )


async def _serve(
    fleet: FleetConfig,
    url: str,
    *,
    is_supervised: bool,
    datacenter: str,
    role: Literal["prefill", "decode"],
    name: str,
    host: str,
    port: int,
    kv_port: int,
) -> None:
    # Imported here: only a worker pays for NumPy and a model.
    from workers.app import WorkerAddress, run_worker  # noqa: PLC0415
    from workers.identity import Identity  # noqa: PLC0415

    store = RedisStore(url, fleet=fleet.name, config=fleet.store)
    identity = Identity.new(datacenter=datacenter, name=name, role=role)
    address = WorkerAddress(host=host, port=port, kv_port=kv_port)
    try:
        async with run_worker(fleet, store, identity, address):
            await until_stopped(is_supervised=is_supervised)
    finally:
        await store.close()
