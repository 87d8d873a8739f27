"""`python -m benchmarks`: what the router costs, against direct access and a bare proxy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import click
from rich.console import Console

from benchmarks.cells import SIZES, Size
from benchmarks.children import Child, cores, pin
from benchmarks.deployment import Deployment, deploy
from benchmarks.measure import Plan, measure, memory_mb
from benchmarks.report import Results, machine, show

_QUICK: Final = Plan(rounds=1, seconds=0.15, warm_s=0.05)
_FULL: Final = Plan(rounds=3, seconds=1.5, warm_s=0.3)
_STEPS_S: Final = 120.0


@click.command()
@click.option("--quick", is_flag=True, help="A fraction of a second per cell: does it run at all.")
@click.option("--rounds", type=click.IntRange(1, 100), help="Default: 3, or 1 with --quick.")
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--pin/--no-pin",
    default=True,
    help="Keep the measured process on one core and all others on another. Default: yes.",
)
def main(*, quick: bool, rounds: int | None, json_path: Path | None, pin: bool) -> None:
    """Measure the router's CPU per request and the latency it adds."""
    plan = _QUICK if quick else _FULL
    if rounds is not None:
        plan = Plan(rounds=rounds, seconds=plan.seconds, warm_s=plan.warm_s)
    console = Console(width=max(120, Console().width))
    results = _run(console, plan, pinned_to=cores() if pin else None)
    show(console, results)
    if json_path is not None:
        json_path.write_text(json.dumps(results.as_json(), indent=2) + "\n", encoding="utf-8")
    if results.errors:
        raise SystemExit(1)


def _run(console: Console, plan: Plan, *, pinned_to: tuple[int, int] | None) -> Results:
    results = Results(plan=plan, is_pinned=pinned_to is not None)
    said = ", ".join(f"{name} {value}" for name, value in machine().items())
    console.print(f"{said}; {plan.rounds} rounds of {plan.seconds:g} s per cell and system")
    with Child("load", "benchmarks.load") as load, console.status("starting ...") as status:
        if pinned_to is not None:
            pin(load.pid, pinned_to[1])
        for size in SIZES:
            with deploy(size, pinned_to) as deployment:
                rows, answered = measure(deployment, load, plan, status.update)
                results.rows += rows
                results.memory_mb[size.name] = memory_mb(deployment)
                results.complaints += _complaints(deployment, answered)
                status.update(f"{size.name}: where the time goes")
                results.steps[size.name] = _steps(deployment, size, plan, pinned_to)
    return results


def _steps(
    deployment: Deployment, size: Size, plan: Plan, pinned_to: tuple[int, int] | None
) -> dict[str, float]:
    calls = max(64, int(plan.seconds * 400))
    command = ("benchmarks.steps", size.name, deployment.redis_url, str(calls))
    with Child("steps", *command) as steps:
        if pinned_to is not None:
            pin(steps.pid, pinned_to[0])
        measured: dict[str, float] = steps.read(_STEPS_S)
        return measured


def _complaints(deployment: Deployment, answered: int) -> list[str]:
    """What would make the figures worthless: requests that were not recorded or not reserved."""
    name = deployment.size.name
    complaints = []
    written = deployment.records_written()
    if written != answered:
        complaints.append(f"{name}: {answered} requests were answered, {written} recorded")
    if errors := deployment.store_errors():
        complaints.append(f"{name}: {errors} store calls failed; those requests went without it")
    return complaints


main()
