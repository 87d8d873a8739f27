"""`prfaas router`: one router process."""

from __future__ import annotations

from pathlib import Path

import click

from controlplane.app import run_router
from controlplane.cli.process import (
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
def router(*, fleet_path: Path | None, supervised: bool) -> None:
    """Run one router of a fleet. Needs REDIS_URL."""
    environment = read_environment()
    fleet = read_fleet(fleet_path, is_supervised=supervised)
    url = need_redis(environment)
    run_process(environment, _serve(fleet, url, is_supervised=supervised))


async def _serve(fleet: FleetConfig, url: str, *, is_supervised: bool) -> None:
    store = RedisStore(url, fleet=fleet.name, config=fleet.store)
    try:
        async with run_router(fleet, store):
            await until_stopped(is_supervised=is_supervised)
    finally:
        await store.close()
