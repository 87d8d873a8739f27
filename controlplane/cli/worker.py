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
from workers.address import EngineAddress

_PORT_MAX = 65_535


class HostPort(click.ParamType[str]):
    """`host:port`, with a port that something can be reached at."""

    name = "host:port"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text itself, once it is one."""
        host, _, port = value.rpartition(":")
        if not host or not port.isdecimal() or not 1 <= int(port) <= _PORT_MAX:
            self.fail(f"{value!r} is not host:port, such as 10.1.0.7:9000", param, ctx)
        return value


@click.command()
@fleet_option
@supervised_option
@click.option("--datacenter", required=True, help="Where it stands; a name of the fleet.")
@click.option("--role", required=True, type=click.Choice(["prefill", "decode"]))
@click.option("--name", required=True, help="Its name in the datacenter, such as prefill-0.")
@click.option("--host", help="Address to listen on. Default: the datacenter's host.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="HTTP port; 0 finds one.")
@click.option("--kv-port", type=click.IntRange(0, 65535), default=0, help="KV port; 0 finds one.")
@click.option("--advertise", type=HostPort(), help="Where routers reach it, if not there.")
@click.option(
    "--advertise-kv", type=HostPort(), help="Where decode workers fetch KV, if not there."
)
@click.option("--engine", help="Of the fleet file; given here, it must be the same.")
@click.option(
    "--engine-url", help="Engine server that this agent speaks for; base URL without /v1."
)
@click.option(
    "--engine-kv-host",
    default="",
    help="Where other datacenters reach that server's KV, if not there.",
)
@click.option("--engine-kv-port", type=click.IntRange(0, 65535), default=0, help="And the port.")
@click.option(
    "--engine-kv-events-port",
    type=click.IntRange(0, 65535),
    default=0,
    help="Where that server publishes KV events; 0 for the fleet file's word.",
)
@click.option(
    "--engine-kv-replay-port",
    type=click.IntRange(0, 65535),
    default=0,
    help="And where it answers for past ones.",
)
@click.option(
    "--engine-profile",
    default="",
    help="How fast that server is: a file of `prfaas profile`, or the name of one that ships.",
)
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
    advertise: str | None,
    advertise_kv: str | None,
    engine: str | None,
    engine_url: str | None,
    engine_kv_host: str,
    engine_kv_port: int,
    engine_kv_events_port: int,
    engine_kv_replay_port: int,
    engine_profile: str,
) -> None:
    """Run one worker of a fleet, or the agent of an engine server. Needs REDIS_URL."""
    environment = read_environment()
    fleet = read_fleet(fleet_path, is_supervised=supervised)
    site = fleet.datacenter(datacenter)
    if site is None:
        known = ", ".join(one.name for one in fleet.datacenters)
        fail(f"--datacenter {datacenter!r} is not in the fleet; it has: {known}", EXIT_CONFIG)
    _check_engine(fleet, engine, engine_url)
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
            advertised=advertise,
            advertised_kv=advertise_kv,
            engine=None
            if engine_url is None
            else EngineAddress(
                url=engine_url,
                api_key=environment.engine_api_key,
                kv_host=engine_kv_host,
                kv_port=engine_kv_port,
                kv_events_port=engine_kv_events_port,
                kv_replay_port=engine_kv_replay_port,
                profile=engine_profile,
            ),
        ),
    )


def _check_engine(fleet: FleetConfig, engine: str | None, engine_url: str | None) -> None:
    if engine is not None and engine != fleet.model.engine:
        fail(
            f"--engine {engine!r}, but the fleet's model.engine is {fleet.model.engine!r}: all workers "
            "of a fleet have one engine",
            EXIT_CONFIG,
        )
    if engine_url is not None and not engine_url.startswith(("http://", "https://")):
        fail(f"--engine-url {engine_url!r} is no http:// or https:// URL", EXIT_CONFIG)
    if (engine_url is None) == fleet.model.is_served:
        advice = "needs --engine-url" if engine_url is None else "takes no --engine-url"
        fail(f"model.engine = {fleet.model.engine!r} {advice}", EXIT_CONFIG)


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
    advertised: str | None,
    advertised_kv: str | None,
    engine: EngineAddress | None,
) -> None:
    # Imported here: only a worker pays for NumPy and a model.
    from workers.app import WorkerAddress, run_worker  # noqa: PLC0415
    from workers.identity import Identity  # noqa: PLC0415

    store = RedisStore(url, fleet=fleet.name, config=fleet.store)
    identity = Identity.new(datacenter=datacenter, name=name, role=role)
    address = WorkerAddress(
        host=host,
        port=port,
        kv_port=kv_port,
        advertised=advertised,
        advertised_kv=advertised_kv,
        engine=engine,
    )
    try:
        async with run_worker(fleet, store, identity, address):
            await until_stopped(is_supervised=is_supervised)
    finally:
        await store.close()
