"""`prfaas plan`: what thresholds, roles and links a fleet needs for its traffic, on paper."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import click

from controlplane.cli.explain_output import output_console
from controlplane.cli.plan_answer import answer, as_json
from controlplane.cli.plan_inputs import read_question
from controlplane.cli.plan_output import print_answer
from controlplane.cli.plan_plot import PlotError, draw
from controlplane.cli.process import EXIT_CONFIG, EXIT_FAILED, fail
from controlplane.domain.throughput.equations import Form
from controlplane.domain.throughput.layout import InfeasibleError
from controlplane.errors import ConfigError

_FORMS: Final[dict[str, Form]] = {"exact": "exact", "mean-length": "mean_length"}
_PLOTS: Final = (".png", ".svg")

_file = click.Path(path_type=Path, dir_okay=False)


def _plot_path(_: click.Context, __: click.Parameter, value: Path | None) -> Path | None:
    if value is not None and value.suffix.lower() not in _PLOTS:
        raise click.BadParameter(f"its name must end with {' or '.join(_PLOTS)}")
    return value


@click.command()
@click.option("--fleet", "fleet_path", type=_file, required=True, help="Planning file (TOML).")
@click.option("--traffic", "traffic_path", type=_file, required=True, help="Traffic file (TOML).")
@click.option(
    "--form",
    type=click.Choice([*_FORMS]),
    default="exact",
    show_default=True,
    help="Exact expectations, or mean lengths as in the paper, which promise a few % too much.",
)
@click.option(
    "--lend",
    "lend_max",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Part of its time that a decode worker may lend to local prefill.",
)
@click.option("--json", "is_json", is_flag=True, help="Print the whole answer as JSON.")
@click.option(
    "--plot",
    "plot_path",
    type=_file,
    callback=_plot_path,
    help="Draw it into FILE.png or FILE.svg; needs the extra `plot`.",
)
def plan(
    fleet_path: Path,
    traffic_path: Path,
    form: str,
    lend_max: float,
    *,
    is_json: bool,
    plot_path: Path | None,
) -> None:
    """
    Say what a fleet can take, and how to set it up for that.

    Thresholds, roles, throughput, egress, what limits, cost per million tokens, and how each moves
    with one more worker of each kind and twice each link. Exit status: 0 answered, 1 the fleet
    cannot serve this traffic at all or the plot could not be drawn, 2 wrong usage or a wrong file.
    """
    try:
        question = read_question(fleet_path, traffic_path)
    except ConfigError as error:
        fail(error.message, EXIT_CONFIG)
    try:
        found = answer(question, form=_FORMS[form], lend_max=lend_max)
    except InfeasibleError as error:
        fail(f"{fleet_path} cannot serve {traffic_path}: {error}", EXIT_FAILED)
    if plot_path is not None:
        try:
            draw(found, plot_path)
        except PlotError as error:
            fail(str(error), EXIT_FAILED)
    if is_json:
        click.echo(json.dumps(as_json(found), indent=2, allow_nan=False))
    else:
        print_answer(found, output_console())
        if plot_path is not None:
            click.echo(f"drawn into {plot_path}")
