"""What the long-running commands share: their fleet, their logs, and how they are told to stop."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, NoReturn

import click
import uvloop
from pydantic import ValidationError

from controlplane.config import (
    DEFAULT_FLEET,
    Environment,
    FleetConfig,
    describe_validation,
    load_fleet,
)
from controlplane.errors import ConfigError
from controlplane.observe.logs import configure_logs
from policies.registry import PolicyError, load_policy

#: Exit statuses, listed in docs/cli.md.
EXIT_FAILED = 1
EXIT_CONFIG = 2

fleet_option = click.option(
    "--fleet",
    "fleet_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Fleet file (TOML). Default: two datacenters on this machine.",
)
supervised_option = click.option(
    "--supervised",
    is_flag=True,
    hidden=True,
    help="Read the fleet as one JSON line from standard input, and stop when it closes.",
)


def fail(message: str, status: int) -> NoReturn:
    """Say what is wrong and what to do, and exit."""
    click.echo(f"prfaas: {message}", err=True)
    raise SystemExit(status)


def read_environment() -> Environment:
    """Settings from environment variables, or a message and exit."""
    try:
        return Environment()
    except ValidationError as error:
        fail(f"environment: {describe_validation(error)}", EXIT_CONFIG)


def read_fleet(path: Path | None, *, is_supervised: bool = False) -> FleetConfig:
    """The fleet of a file, of the supervisor, or the default; or a message and exit."""
    try:
        if is_supervised:
            return FleetConfig.model_validate_json(sys.stdin.buffer.readline())
        return DEFAULT_FLEET if path is None else load_fleet(path)
    except ConfigError as error:
        fail(error.message, EXIT_CONFIG)
    except ValidationError as error:
        fail(f"fleet: {describe_validation(error)}", EXIT_CONFIG)


def check_policy(fleet: FleetConfig, path: Path | None) -> None:
    """Refuse a policy that cannot be loaded with a message, before anything is started."""
    try:
        load_policy(fleet.router.policy, fleet.router.policy_parameters)
    except PolicyError as error:
        file = "" if path is None else f"{path}: "
        fail(f"{file}router.policy: {error}", EXIT_CONFIG)


def need_redis(environment: Environment) -> str:
    """The store's URL for a single process, or a message and exit."""
    if not environment.redis_url:
        fail(
            "REDIS_URL is not set. Processes of one fleet meet in one Redis, for example "
            "REDIS_URL=redis://10.0.0.5:6379/0, several nodes of a cluster with commas between "
            "them, or redis+sentinel://10.0.0.5:26379,10.0.0.6:26379/mymaster/0; `prfaas up` "
            "starts its own.",
            EXIT_CONFIG,
        )
    return environment.redis_url


def run_process(environment: Environment, main: Coroutine[Any, Any, None]) -> None:
    """Run an asynchronous command on uvloop; configuration errors become exit status 2."""
    configure_logs(environment.log_format, environment.log_level)
    try:
        uvloop.run(main)
    except* ConfigError as errors:
        fail(str(errors.exceptions[0]), EXIT_CONFIG)


async def until_stopped(*, is_supervised: bool) -> None:
    """Wait for SIGTERM, SIGINT, or the end of the supervisor."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    if is_supervised:
        # The pipe closes when the supervisor ends, however it ends: no orphan stays behind.
        loop.add_reader(sys.stdin.fileno(), stopped.set)
    await stopped.wait()
    if is_supervised:
        loop.remove_reader(sys.stdin.fileno())
