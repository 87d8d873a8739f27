"""`prfaas router`: one router process."""

from __future__ import annotations

import gc
import re
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


#: A name goes into keys and logs.
_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")


def _name(_: click.Context, __: click.Parameter, value: str) -> str:
    if not _NAME.fullmatch(value):
        raise click.BadParameter("a name has small letters, digits and -, and 32 of them at most")
    return value


@click.command()
@fleet_option
@supervised_option
@click.option("--port", type=click.IntRange(0, 65535), help="Instead of the fleet's; 0 finds one.")
@click.option("--admin-port", type=click.IntRange(0, 65535), help="Instead of the fleet's.")
@click.option(
    "--name", callback=_name, default="router", help="Its name in logs; a number is added to it."
)
def router(
    *,
    fleet_path: Path | None,
    supervised: bool,
    port: int | None,
    admin_port: int | None,
    name: str,
) -> None:
    """Run one router of a fleet. Needs REDIS_URL."""
    environment = read_environment()
    fleet = read_fleet(fleet_path, is_supervised=supervised)
    check_policy(fleet, fleet_path)
    url = need_redis(environment)
    fleet = fleet.model_copy(update={"router": fleet.router.at(port=port, admin_port=admin_port)})
    run_process(environment, _serve(fleet, url, name, environment.state_dir, supervised))


async def _serve(
    fleet: FleetConfig,
    url: str,
    name: str,
    state_dir: Path | None,
    is_supervised: bool,  # noqa: FBT001 - as the command has it
) -> None:
    store = RedisStore(url, fleet=fleet.name, config=fleet.store)
    try:
        async with run_router(fleet, store, name=name, state_dir=state_dir):
            # What is there now stays: collections of garbage need not visit it each time, which
            # would stop all requests for 50 ms every few thousand of them.
            gc.collect()
            gc.freeze()
            gc.set_threshold(_YOUNG_MAX)
            await until_stopped(is_supervised=is_supervised)
    finally:
        await store.close()
