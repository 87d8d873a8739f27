"""
Each scenario in its short form, and the judge's word on it; `make chaos` runs the long ones.

A run leaves a directory for each scenario, which can be judged again at any time:
`PYTHONPATH=tests python -m chaos.judge DIR`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from chaos.judge import Verdict, show
from chaos.plant import Topology
from chaos.pool import Item, answer_all, make_pool
from chaos.run import Bench
from chaos.scenario import Scenario
from chaos.scenarios import short_scenarios

_SEED = 1
_CAPACITY_S = 2.0


async def verdicts_on(
    scenarios: Sequence[Scenario], items: list[Item], directory: Path
) -> list[Verdict]:
    """Run scenarios one after another on one fleet."""
    found = []
    async with Bench.running(
        scenarios[0].topology, directory / "plant", items, seed=_SEED, capacity_s=_CAPACITY_S
    ) as bench:
        for scenario in scenarios:
            some = await bench.run(scenario, directory / scenario.name, seed=_SEED)
            show(some)
            found += some
    return found


@pytest.fixture(scope="module")
def items() -> list[Item]:
    """Prompts and what must be answered, known before anything is broken."""
    return answer_all(make_pool(60, 8, seed=_SEED), Topology().fleet().model)


# One fleet for many scenarios: its start takes longer than some of them.
@pytest.mark.timeout(600)
@pytest.mark.parametrize("has_sentinels", [False, True], ids=["one redis", "sentinels"])
def test_every_promise_is_kept(tmp_path: Path, items: list[Item], *, has_sentinels: bool) -> None:
    scenarios = [
        scenario
        for scenario in short_scenarios()
        if scenario.topology.has_sentinels is has_sentinels
    ]
    assert len({id(scenario.topology) for scenario in scenarios}) == 1

    verdicts = asyncio.run(verdicts_on(scenarios, items, tmp_path))

    assert [str(verdict) for verdict in verdicts if not verdict.is_kept] == []
