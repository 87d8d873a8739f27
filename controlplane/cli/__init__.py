"""The `prfaas` command."""

from __future__ import annotations

from importlib.metadata import version

import click

from controlplane.cli.explain import explain
from controlplane.cli.plan import plan
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


for command in (up, router, worker, explain, replay, plan, profile):
    main.add_command(command)
