"""`prfaas replay TRACE`: what policies would have made of a trace, on production's own router."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from controlplane.cli.replay_output import print_results
from controlplane.config_planner import PlannerConfig
from controlplane.errors import ConfigError
from controlplane.observe.logs import configure_logs
from controlplane.planfile import load_planning_fleet
from controlplane.replay.fleet import solved_roles, world_of
from controlplane.replay.html import html_report
from controlplane.replay.link_steps import check_changes, load_changes
from controlplane.replay.report import digest_of, document, write_whole
from controlplane.replay.results import PolicyResult, Slo
from controlplane.replay.run import NamedPolicy, OnProgress, ReplayOptions
from controlplane.replay.run import replay as replay_trace
from controlplane.replay.spec import WorldSpec
from controlplane.replay.traces.opening import open_trace
from controlplane.replay.traces.request import Trace
from controlplane.replay.world import BEAT_S, WorldOptions
from policies.registry import PolicyError, load_policy

_BAD_INPUT = 2

_PLANNERS = {
    "roles": PlannerConfig(),
    "plan": PlannerConfig(changes_roles=False),
    "off": None,
}

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_NEW_FILE = click.Path(dir_okay=False, path_type=Path)

#: Requests of the trace that the roles are solved for.
_SAMPLED_REQUESTS = 2000


def _policies(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> list[NamedPolicy]:
    return [_policy(one) for one in given]


def _policy(text: str) -> NamedPolicy:
    """`name`, or `name:parameter=value,...`."""
    name, _, rest = text.partition(":")
    parameters: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise click.BadParameter(f"{part!r} is not parameter=value")
        try:
            parameters[key] = json.loads(value)
        except ValueError:
            parameters[key] = value
    try:
        load_policy(name, parameters)
    except PolicyError as error:
        raise click.BadParameter(str(error)) from error
    return NamedPolicy(name=name, parameters=parameters, label=text)


def _roles(
    _: click.Context, __: click.Parameter, given: tuple[str, ...]
) -> dict[str, tuple[int, int]]:
    roles = {}
    for text in given:
        site, counts = (*text.split("=", 1), "")[:2]
        prefill, decode = (*counts.split("/", 1), "")[:2]
        if not (site and prefill.isdecimal() and decode.isdecimal()):
            raise click.BadParameter(f"{text!r} is not DATACENTER=PREFILL/DECODE, like west=3/5")
        roles[site] = (int(prefill), int(decode))
    return roles


@click.command("replay")
@click.argument("trace")
@click.option("--fleet", type=_FILE, required=True, help="Planning file of a fleet.")
@click.option(
    "--policy", "policies", multiple=True, required=True, callback=_policies,
    metavar="NAME[:PARAMETER=VALUE,...]", help="Replay under this policy; several times for several.",
)  # fmt: skip
@click.option("--speed", type=click.FloatRange(1e-3, 1e4), default=1.0, help="Multiplies the load.")
@click.option("--requests", type=click.IntRange(1), help="Only the first so many.")
@click.option("--clients", type=click.IntRange(1, 100_000), help="Closed loop of so many clients.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--slo-ttft", type=click.FloatRange(0), help="Seconds to the first token.")
@click.option("--slo-tpot", type=click.FloatRange(0), help="Seconds of each further token.")
@click.option("--link-steps", type=_FILE, help="Changes of links and losses of workers.")
@click.option(
    "--roles", multiple=True, callback=_roles, metavar="SITE=P/D",
    help="Workers of a datacenter that prefill and that decode, of those that can do both; solved "
    "for the trace otherwise.",
)  # fmt: skip
@click.option("--home", help="The router's datacenter.")
@click.option(
    "--planner", type=click.Choice(["roles", "plan", "off"]), default="roles", show_default=True,
    help="The slow loop plans and changes roles, plans alone, or is off.",
)  # fmt: skip
@click.option(
    "--beat", type=click.FloatRange(0.1, 60), default=BEAT_S, help="Seconds between beats."
)
@click.option("--json", "json_path", type=_NEW_FILE, help="Write all figures to this file.")
@click.option("--html", "html_path", type=_NEW_FILE, help="Write a report with charts.")
def replay(
    trace: str,
    fleet: Path,
    policies: list[NamedPolicy],
    speed: float,
    requests: int | None,
    clients: int | None,
    seed: int,
    slo_ttft: float | None,
    slo_tpot: float | None,
    link_steps: Path | None,
    roles: dict[str, tuple[int, int]],
    home: str | None,
    planner: str,
    beat: float,
    json_path: Path | None,
    html_path: Path | None,
) -> None:
    """
    Replay TRACE under each policy, on a virtual clock, and compare them.

    TRACE is a file in Mooncake's format, Azure's CSV, our own decision records (each may be
    compressed with gzip), or `synthetic:rate=3,requests=5000` for the paper's distribution.
    Exit status: 0 replayed, 2 wrong input; nothing is written then.
    """
    configure_logs("json", "error")
    options = ReplayOptions(
        seed=seed,
        speed=speed,
        requests=requests,
        clients=clients,
        slo=Slo(ttft_s=slo_ttft, tpot_s=slo_tpot),
        world=WorldOptions(beat_s=beat, planner=_PLANNERS[planner]),
    )
    console = Console()
    began_s = time.perf_counter()
    try:
        opened = open_trace(trace)
        world = _world(fleet, opened, roles=roles, home=home, link_steps=link_steps)
        results = _replay_all(opened, world, policies, options)
        print_results(results, console)
        settings = {
            "trace": opened.name,
            "fleet": fleet.name,
            "speed": speed,
            "seed": seed,
            "requests": requests,
            "clients": clients,
            "slo_ttft_s": slo_ttft,
            "slo_tpot_s": slo_tpot,
            "planner": planner,
        }
        if json_path is not None:
            write_whole(json_path, json.dumps(document(results, settings), indent=1) + "\n")
        if html_path is not None:
            write_whole(html_path, html_report(results, settings))
    except ConfigError as error:
        _stop(error.message)
    total = sum(result.requests for result in results)
    took_s = time.perf_counter() - began_s
    console.print(
        f"digest {digest_of(results)[:16]}, {total:,} requests replayed in {took_s:.1f} s "
        f"({total / took_s:,.0f} a second)"
    )


def _world(
    path: Path,
    trace: Trace,
    *,
    roles: dict[str, tuple[int, int]],
    home: str | None,
    link_steps: Path | None,
) -> WorldSpec:
    planned = load_planning_fleet(path)
    sample = list(islice(trace.requests(seed=0), _SAMPLED_REQUESTS))
    if not sample:
        raise ConfigError(f"{trace.name} has no request")
    world = world_of(
        planned,
        block_tokens=trace.block_tokens,
        roles=solved_roles(planned, sample) | roles,
        home=home,
        changes=load_changes(link_steps) if link_steps is not None else (),
    )
    check_changes(world, link_steps)
    return world


def _replay_all(
    trace: Trace, world: WorldSpec, policies: Sequence[NamedPolicy], options: ReplayOptions
) -> list[PolicyResult]:
    results = []
    for policy in policies:
        with _progress(policy.shown, options.requests or trace.count) as tell:
            results.append(replay_trace(trace, world, policy, options, on_progress=tell))
    return results


@contextmanager
def _progress(policy: str, total: int | None) -> Iterator[OnProgress]:
    """A bar on standard error while it is a terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,} requests"),
        TextColumn("{task.fields[virtual]:,.0f} s of the trace"),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(policy, total=total, virtual=0.0)
        yield lambda ended, now_s: bar.update(task, completed=ended, virtual=now_s)


def _stop(message: str) -> NoReturn:
    click.echo(f"prfaas replay: {message}", err=True)
    raise SystemExit(_BAD_INPUT)
