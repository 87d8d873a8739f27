"""`prfaas router`: one router process."""

from __future__ import annotations

import gc
from pathlib import Path

import click

from controlplane.app import run_router
from controlplane.cli.process import (
    check_policy,
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

#: New objects that may gather before the young ones are looked through: about fifty requests.
_YOUNG_MAX = 5_000


@click.command()
@fleet_option
@supervised_option
def router(*, fleet_path: Path | None, supervised: bool) -> None:
    """Run one router of a fleet. Needs REDIS_URL."""
    environment = read_environment()
    fleet = read_fleet(fleet_path, is_supervised=supervised)
    check_policy(fleet, fleet_path)
    url = need_redis(environment)
    run_process(environment, _serve(fleet, url, is_supervised=supervised))


async def _serve(fleet: FleetConfig, url: str, *, is_supervised: bool) -> None:
    store = RedisStore(url, fleet=fleet.name, config=fleet.store)
    try:
        async with run_router(fleet, store):
            # What is there now stays: collections of garbage need not visit it each time, which
            # would stop all requests for 50 ms every few thousand of them.
            gc.collect()
            gc.freeze()
            gc.set_threshold(_YOUNG_MAX)
            await until_stopped(is_supervised=is_supervised)
    finally:
        await store.close()
