"""`prfaas up`: a whole fleet on this machine."""

from __future__ import annotations

import asyncio
import errno
import socket
from pathlib import Path

import click
from rich.console import Console

from controlplane.cli.process import (
    EXIT_CONFIG,
    EXIT_FAILED,
    check_policy,
    fail,
    fleet_option,
    read_environment,
    read_fleet,
)
from controlplane.cli.supervisor import FleetFailed, Supervisor
from controlplane.config import Environment, FleetConfig
from controlplane.errors import ConfigError
from controlplane.store.embedded import EmbeddedServer

_READY = """
[bold green]prfaas is up[/]: {fleet}

  endpoint   {url}/v1
  console    {admin}/
  metrics    {url_metrics}

Ask something short; it is prefilled near you:

  curl -sN {url}/v1/chat/completions -H 'content-type: application/json' -d \\
    '{{"model":"{model}","stream":true,"max_tokens":40,"messages":[{{"role":"user","content":"Hello"}}]}}'

Ask something long; it is prefilled in another datacenter, and its answer says where:

  python3 -c 'import json; print(json.dumps({{"model": "{model}", "max_tokens": 40, "prompt": "long ago " * 400}}))' |
    curl -si {url}/v1/completions -H 'content-type: application/json' -d @- | grep -i x-

Then ask why (or open the console):

  {command} explain REQUEST_ID      (the x-request-id of an answer)

Ctrl-C stops everything. The log follows.
"""


@click.command()
@fleet_option
@click.option("--no-restart", is_flag=True, help="Leave a process that died dead.")
def up(*, fleet_path: Path | None, no_restart: bool) -> None:
    """
    Start Redis, routers and all workers of a fleet on this machine; Ctrl-C stops them.

    A process that dies is started again, after 1 s and then twice as long each time.
    """
    environment = read_environment()
    fleet = read_fleet(fleet_path)
    check_policy(fleet, fleet_path)
    _check_ports(fleet)
    try:
        asyncio.run(_up(fleet, environment, is_restarting=not no_restart))
    except ConfigError as error:
        fail(error.message, EXIT_CONFIG)
    except FleetFailed as error:
        fail(str(error), EXIT_FAILED)


async def _up(fleet: FleetConfig, environment: Environment, *, is_restarting: bool) -> None:
    if environment.redis_url:
        await _supervise(fleet, environment.redis_url, is_restarting=is_restarting)
        return
    async with EmbeddedServer() as server:
        await _supervise(fleet, server.url, is_restarting=is_restarting)


async def _supervise(fleet: FleetConfig, redis_url: str, *, is_restarting: bool) -> None:
    console = Console(stderr=True)
    async with Supervisor(
        fleet, redis_url=redis_url, console=console, is_restarting=is_restarting
    ) as supervisor:
        with console.status("starting workers ..."):
            await supervisor.until_ready()
        if supervisor.is_stopping:
            return
        config = fleet.router
        url = f"http://{config.host}:{config.port}"
        admin = f"http://{config.admin_host}:{config.admin_port}"
        console.print(
            _READY.format(
                fleet=_describe(fleet),
                url=url,
                admin=admin,
                url_metrics=f"{admin}/metrics",
                model=fleet.model.name,
                command=_command(),
            ),
            highlight=False,
            soft_wrap=True,
        )
        await supervisor.until_stopped()


def _describe(fleet: FleetConfig) -> str:
    sites = [
        f"{site.name} ({site.prefill_workers} prefill, {site.decode_workers} decode)"
        for site in fleet.datacenters
    ]
    links = [
        f"{link.link_id} {link.capacity_mbit_per_s:g} Mbit/s, {link.emulated_delay_ms:g} ms"
        for link in fleet.links
    ]
    return "; ".join([", ".join(sites), *links])


def _command() -> str:
    """How this program can be called from here: with its path when it is not on PATH."""
    import shutil  # noqa: PLC0415 - once, for a message
    import sys  # noqa: PLC0415 - the same

    if shutil.which("prfaas"):
        return "prfaas"
    beside = Path(sys.executable).with_name("prfaas")
    try:
        return str(beside.relative_to(Path.cwd()))
    except ValueError:
        return str(beside)


def _check_ports(fleet: FleetConfig) -> None:
    """Say that a port cannot be used before anything starts."""
    config = fleet.router
    if (config.host, config.port) == (config.admin_host, config.admin_port):
        fail(
            f"router.port and router.admin_port are both {config.port}. Set two different ones.",
            EXIT_CONFIG,
        )
    listeners = [
        listener
        for one in config.each()
        for listener in (
            ("router.port", one.host, one.port),
            ("router.admin_port", one.admin_host, one.admin_port),
        )
    ]
    for name, host, port in listeners:
        if port == 0:
            fail(f"{name} is 0, a port that nobody could know. Set another {name}.", EXIT_CONFIG)
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                taken = error.errno == errno.EADDRINUSE
                why = "is already in use" if taken else f"cannot be used: {error.strerror}"
                fail(
                    f"{host}:{port} ({name}) {why}. Stop what uses it, or set another {name} in a "
                    "fleet file and start with --fleet FILE.",
                    EXIT_CONFIG,
                )
