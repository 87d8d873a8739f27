"""`prfaas profile`: how fast an engine server is, written down for plans, replays and agents."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from controlplane.cli.explain_output import output_console
from controlplane.cli.plan_plot import PlotError
from controlplane.cli.process import EXIT_CONFIG, EXIT_FAILED, fail, read_environment
from controlplane.cli.profile_output import differences, print_profile, profile_text, shipped_table
from controlplane.cli.profile_plot import draw_profile
from controlplane.domain.kv_sizes import kv_size_of
from controlplane.domain.throughput.profile import KvSize
from controlplane.errors import ConfigError, PrfaasError
from controlplane.profilefile import ProfileFile, load_profile
from controlplane.replay.report import write_whole

if TYPE_CHECKING:
    from workers.profiling.measure import Measured, OnProgress, Options

_PLOTS: Final = (".png", ".svg")

_file = click.Path(path_type=Path, dir_okay=False)


def _list(context: click.Context, _: click.Parameter, is_wanted: bool) -> None:  # noqa: FBT001 - click's
    if is_wanted:
        output_console().print(shipped_table())
        context.exit()


def _lengths(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    parts = [part.strip() for part in value.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise click.BadParameter("whole numbers > 0 with commas between them, such as 512,4096")
    return tuple(int(part) for part in parts)


def _plot_path(_: click.Context, __: click.Parameter, value: Path | None) -> Path | None:
    if value is not None and value.suffix.lower() not in _PLOTS:
        raise click.BadParameter(f"its name must end with {' or '.join(_PLOTS)}")
    return value


@click.command()
@click.argument("url")
@click.option("--engine", type=click.Choice(["vllm"]), default="vllm", show_default=True)
@click.option("--model", help="Which of the server's models. Default: its only one.")
@click.option("--name", default="profile", show_default=True, help="Of the profile.")
@click.option(
    "--out", type=_file, default=Path("profile.toml"), show_default=True, help="Where it goes."
)
@click.option(
    "--lengths", callback=_lengths, help="Prompt lengths. Default: powers of two from 256 on."
)
@click.option(
    "--slo-tpot",
    type=click.FloatRange(0, 60, min_open=True),
    default=0.05,
    show_default=True,
    help="Objective of decode, seconds of each further token: how many streams run side by side.",
)
@click.option("--batch-max", type=click.IntRange(1, 4096), default=256, show_default=True)
@click.option(
    "--tolerance",
    type=click.FloatRange(0.001, 1),
    default=0.05,
    show_default=True,
    help="Measured again until each median is known this well.",
)
@click.option("--runs-max", type=click.IntRange(6, 1000), default=20, show_default=True)
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    help="The model's config.json, or its directory: sizes of KV.",
)
@click.option("--decode-url", help="A server that pulls KV from it: its bytes are counted.")
@click.option("--plot", "plot_path", type=_file, callback=_plot_path, help="Draw it; extra `plot`.")
@click.option("--compare", help="A profile to compare with: a file, or the name of one that ships.")
@click.option("--json", "is_json", is_flag=True, help="Print the profile as JSON.")
@click.option("--list", is_flag=True, is_eager=True, callback=_list, expose_value=False,
              help="List the profiles that ship, and end.")  # fmt: skip
def profile(
    *,
    url: str,
    engine: str,
    model: str | None,
    name: str,
    out: Path,
    lengths: tuple[int, ...] | None,
    slo_tpot: float,
    batch_max: int,
    tolerance: float,
    runs_max: int,
    config_path: Path | None,
    decode_url: str | None,
    plot_path: Path | None,
    compare: str | None,
    is_json: bool,
) -> None:
    """
    Measure the engine server at URL (base, without /v1), which must do nothing else.

    Prefill time by length, decode step by batch, bytes of KV by length. The file is what `plan`, `replay`
    and agents read. A key comes from PRFAAS_ENGINE_API_KEY. Exit status: 0 written, 1 the server failed or
    did something else meanwhile, 2 wrong usage or a wrong file.
    """
    # Imported here: only this needs an engine's client.
    from workers.profiling.measure import Options  # noqa: PLC0415

    del engine  # the only one so far
    for given in (url, decode_url):
        if given is not None and not given.startswith(("http://", "https://")):
            fail(f"{given!r} is no http:// or https:// URL", EXIT_CONFIG)
    try:
        configured = None if config_path is None else _sizes(config_path)
        former = None if compare is None else load_profile(compare, beside=Path.cwd())
    except ConfigError as error:
        fail(error.message, EXIT_CONFIG)
    options = Options(
        lengths=lengths,
        tpot_s=slo_tpot,
        batch_max=batch_max,
        tolerance=tolerance,
        runs_max=runs_max,
    )
    key = read_environment().engine_api_key
    try:
        with _progress() as tell:
            measured, found = asyncio.run(
                _measure(url, decode_url, key, model, name, options, configured, tell)
            )
    except PrfaasError as error:
        fail(error.message, EXIT_FAILED)
    try:
        write_whole(out, profile_text(found))
        if plot_path is not None:
            draw_profile(found, measured, plot_path)
    except (ConfigError, PlotError) as error:
        fail(str(error), EXIT_FAILED)
    if is_json:
        click.echo(json.dumps(found.model_dump(mode="json", exclude_none=True), indent=2))
        return
    console = output_console()
    print_profile(found, measured, tolerance, console)
    if former is not None:
        console.print(differences(found, former))
    click.echo(f"written to {out}")


async def _measure(
    url: str,
    decode_url: str | None,
    key: str,
    model: str | None,
    name: str,
    options: Options,
    configured: KvSize | None,
    tell: OnProgress,
) -> tuple[Measured, ProfileFile]:
    from workers.app import measurable  # noqa: PLC0415 - as above
    from workers.profiling.measure import measure, profile_of  # noqa: PLC0415

    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(measurable(url, key, model))
        decode = None
        if decode_url is not None:
            decode = await stack.enter_async_context(measurable(decode_url, key, server.model))
        measured = await measure(server, options, decode=decode, on_progress=tell)
    return measured, profile_of(measured, options, name=name, server=server, configured=configured)


def _sizes(path: Path) -> KvSize:
    """
    Of a model's configuration.

    Raises:
        ConfigError: It cannot be read, or is of a model that is not known here.
    """
    file = path / "config.json" if path.is_dir() else path
    try:
        return kv_size_of(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--config {file}: {error}") from error


@contextmanager
def _progress() -> Iterator[OnProgress]:
    """A bar on standard error while it is a terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed} of {task.total} settled"),
        TimeElapsedColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, settled, of: bar.update(
            task, description=what, completed=settled, total=of
        )
