"""The `prfaas` command."""

from __future__ import annotations

from importlib.metadata import version

import click

from controlplane.cli.config_commands import config
from controlplane.cli.explain import explain
from controlplane.cli.fleet_commands import links, status, top, workers
from controlplane.cli.plan import plan
from controlplane.cli.policy_commands import policy
from controlplane.cli.profile import profile
from controlplane.cli.replay import replay
from controlplane.cli.router import router
from controlplane.cli.up import up
from controlplane.cli.worker import worker

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("prfaas"), prog_name="prfaas")
def main() -> None:
    """Route LLM prefill to where it is cheapest, across datacenters, and say why."""


for command in (
    up, router, worker, status, workers, links, top, policy, explain, replay, plan, profile, config,
):  # fmt: skip
    main.add_command(command)


@main.command("version")
def show_version() -> None:
    """Print the version."""
    click.echo(version("prfaas"))
