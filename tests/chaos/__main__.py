"""
Runs scenarios and says which promises are kept.

`python -m chaos [--form short|long] [--out DIR] [--requests N] [SCENARIO ...]`, with `tests` on the
path. Each scenario leaves a directory that `python -m chaos.judge` reads again.
"""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Final

from chaos.judge import Verdict, show
from chaos.plant import Topology
from chaos.pool import answer_all, make_pool
from chaos.report import write_report
from chaos.run import Bench
from chaos.scenario import Scenario
from chaos.scenarios import all_scenarios

_CAPACITY_S: Final = 6.0


def main() -> None:
    """Run what the command line names; exit status 1 when a promise is not kept."""
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--form", choices=("short", "long"), default="long")
    parser.add_argument("--out", type=Path, default=Path("chaos-out"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--requests", type=int, default=0, help="of the main scenario")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--report", type=Path, help="write the table of promises there")
    parser.add_argument("scenario", nargs="*", help="names; all of them without any")
    given = parser.parse_args()
    # Processes are started in directories of their own.
    given.out = given.out.resolve()
    chosen = [
        scenario
        for scenario in all_scenarios(given.form)
        if not given.scenario or scenario.name in given.scenario
    ]
    if given.requests:
        chosen = [_with_requests(scenario, given.requests) for scenario in chosen]
    verdicts = asyncio.run(_run(given, chosen))
    print()
    are_kept = show(verdicts)
    kept = sum(verdict.is_kept for verdict in verdicts)
    print(f"chaos: {kept} of {len(verdicts)} promises kept")
    if given.report is not None:
        write_report(given.report, sorted(given.out.glob("*/verdict.json")))
    raise SystemExit(0 if are_kept else 1)


def _with_requests(scenario: Scenario, requests: int) -> Scenario:
    return replace(scenario, requests=requests) if scenario.requests else scenario


async def _run(given: argparse.Namespace, chosen: list[Scenario]) -> list[Verdict]:
    pool = make_pool(given.prompts, max(8, given.prompts // 8), seed=given.seed)
    items = await asyncio.to_thread(answer_all, pool, Topology().fleet().model)
    verdicts: list[Verdict] = []
    groups = groupby(chosen, key=lambda scenario: scenario.topology)
    for number, (topology, scenarios) in enumerate(groups):
        folder = given.out / f"plant-{number}"
        async with Bench.running(
            topology, folder, items, seed=given.seed, capacity_s=_CAPACITY_S
        ) as bench:
            print(f"{folder.name}: capacity {bench.capacity_per_s:.1f} requests/s", flush=True)
            for scenario in scenarios:
                found = await bench.run(scenario, given.out / scenario.name, seed=given.seed)
                show(found)
                verdicts += found
    return verdicts


if __name__ == "__main__":
    main()
