"""`prfaas config`: check a fleet file, show it with all defaults, and what it may say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import click

from controlplane.cli.process import EXIT_CONFIG, check_policy, fail, fleet_option, read_fleet
from controlplane.config import DEFAULT_FLEET, FleetConfig, load_fleet
from controlplane.errors import ConfigError

_HIDDEN: Final = "(hidden)"


@click.group()
def config() -> None:
    """Check fleet files, show them with all defaults, print what they may say."""


@config.command()
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False))
def check(path: Path) -> None:
    """
    Check a fleet file and its policy, without starting anything.

    Exit status: 0 it can be started, 2 it is wrong; says each field.
    """
    try:
        fleet = load_fleet(path)
    except ConfigError as error:
        fail(error.message, EXIT_CONFIG)
    check_policy(fleet, path)
    sites = ", ".join(
        f"{site.name} ({site.prefill_workers} prefill, {site.decode_workers} decode)"
        for site in fleet.datacenters
    )
    click.echo(
        f"{path} is right: {fleet.name} with {sites}; {len(fleet.links)} "
        f"{'link' if len(fleet.links) == 1 else 'links'}, policy {fleet.router.policy}"
    )


@config.command()
@fleet_option
def show(fleet_path: Path | None) -> None:
    """
    Print a fleet as JSON, with all defaults; secrets are hidden.

    Exit status: 0 printed, 2 the file is wrong.
    """
    fleet = DEFAULT_FLEET if fleet_path is None else read_fleet(fleet_path)
    shown = fleet.model_dump(mode="json")
    # Whoever knows the salt can tell which prompts share prefixes.
    shown["router"]["tenant_salt"] = _HIDDEN
    _print(shown)


@config.command()
def schema() -> None:
    """Print the JSON schema of fleet files: every field with its type, bounds and default."""
    _print(FleetConfig.model_json_schema())


def _print(value: dict[str, Any]) -> None:
    click.echo(json.dumps(value, indent=2))
