"""`prfaas status`, `workers`, `links` and `top`: what a fleet does now, as one of its routers sees it."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

import click
from rich.console import Group
from rich.live import Live

from controlplane.cli.admin_client import (
    EXIT_REFUSED,
    Unreachable,
    admin_option,
    ask,
    checked,
    json_option,
    read,
    stop,
)
from controlplane.cli.explain_output import output_console
from controlplane.cli.fleet_state import (
    STATE,
    FleetState,
    WorkerState,
    links_table,
    sites_table,
    summary,
    workers_table,
)

_INTERVAL_S: Final = 1.0
#: Workers that fit a screen; those with the most to do.
_TOP_WORKERS: Final = 20


@click.command()
@admin_option
@json_option
def status(admin: str, *, is_json: bool) -> None:
    """
    Show a fleet in short: router, store, policy, plan, datacenters.

    Exit status: 0 answered, 2 wrong usage, 3 no answer from the admin API.
    """
    state, found = read("status", admin, "state", STATE)
    if is_json:
        _print_json(found)
        return
    console = output_console()
    console.print(summary(state))
    console.print(sites_table(state))


@click.command()
@click.option("--datacenter", help="Only those there.")
@click.option("--role", type=click.Choice(["prefill", "decode"]), help="Only those that do this.")
@admin_option
@json_option
def workers(admin: str, datacenter: str | None, role: str | None, *, is_json: bool) -> None:
    """
    List workers with their queues.

    Exit status: 0 answered, 1 no such datacenter, 2 wrong usage, 3 no answer from the admin API.
    """
    state, found = read("workers", admin, "state", STATE)
    names = [site.name for site in state.datacenters]
    if datacenter is not None and datacenter not in names:
        stop("workers", EXIT_REFUSED, f"there is no datacenter {datacenter!r}, but {names}")
    if is_json:
        _print_json(
            [
                worker
                for site in found["datacenters"]
                for worker in site["workers"]
                if datacenter in {None, site["name"]} and role in {None, worker["role"]}
            ]
        )
        return
    output_console().print(workers_table(_chosen(state, datacenter, role)))


@click.command()
@admin_option
@json_option
def links(admin: str, *, is_json: bool) -> None:
    """
    List links: budget, use, goodput, round trip, bytes.

    Exit status: 0 answered, 2 wrong usage, 3 no answer from the admin API.
    """
    state, found = read("links", admin, "state", STATE)
    if is_json:
        _print_json(found["links"])
        return
    output_console().print(links_table(state))


@click.command()
@admin_option
@click.option(
    "--seconds", type=click.FloatRange(0, 86_400), default=0.0, help="Stop after so long; 0: never."
)
def top(admin: str, seconds: float) -> None:
    """
    Show a fleet live, until Ctrl-C.

    Exit status: 0 stopped, 2 wrong usage, 3 no answer from the admin API at the beginning.
    """
    # The first answer as any other command has it: what listens there, if anything does.
    state, _ = read("top", admin, "state", STATE)
    try:
        asyncio.run(_follow(admin, state, seconds))
    except KeyboardInterrupt:
        return


async def _follow(admin: str, state: FleetState, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    ends_s = loop.time() + seconds if seconds else None
    note = ""
    with Live(_screen(state, note), console=output_console(), auto_refresh=False) as live:
        while ends_s is None or loop.time() < ends_s:
            await asyncio.sleep(_INTERVAL_S)
            try:
                code, found = await ask(admin, "state")
                note = "" if code == 200 else f"the admin API answers {code}"  # noqa: PLR2004 - HTTP
                if not note:
                    state = checked("top", admin, found, STATE)
            except Unreachable:
                # A router that is started anew comes back; until then its last word stands.
                note = f"no answer from {admin}"
            live.update(_screen(state, note), refresh=True)


def _screen(state: FleetState, note: str) -> Group:
    busy = sorted(_chosen(state, None, None), key=lambda one: -one.busy_ratio)[:_TOP_WORKERS]
    parts: list[Any] = [summary(state), sites_table(state), links_table(state), workers_table(busy)]
    return Group(*parts, note) if note else Group(*parts)


def _chosen(state: FleetState, datacenter: str | None, role: str | None) -> list[WorkerState]:
    return [
        worker
        for site in state.datacenters
        for worker in site.workers
        if datacenter in {None, site.name} and role in {None, worker.role}
    ]


def _print_json(found: object) -> None:
    click.echo(json.dumps(found, indent=2))
