"""Seeded worlds under faults: nothing lost, nothing wrong, nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sim.command import telling
from sim.faults import Plan, draw_plan
from sim.world import run_world

HERE = Path(__file__).parent

#: Seeds of every run of the suite; `make sim` runs more.
SEEDS, BATCH = 200, 10


def _fail_on_violations(seed: int) -> None:
    result = run_world(seed)
    if not result.is_right:
        pytest.fail("\n".join(telling(result)), pytrace=False)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_no_invariant_is_violated(first: int) -> None:
    """Two routers, eight workers, a store and their clients, whatever breaks."""
    for seed in range(first, first + BATCH):
        _fail_on_violations(seed)


@pytest.mark.timeout(180)
def test_seeds_that_once_failed_do_not_fail_again() -> None:
    """Each line is a seed and what it found."""
    for line in (HERE / "regressions.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            _fail_on_violations(int(line.split()[0]))


def test_without_faults_nothing_fails() -> None:
    """What is asked is answered, but for what has no time for it."""
    result = run_world(1, Plan())

    assert result.violations == []
    assert result.outcomes["done"] > 0.8 * result.requests


def test_a_seed_repeats_itself() -> None:
    """Twice in one process, and once more in another with other hashes of its strings."""
    first, second = run_world(11), run_world(11)
    code = "from sim.world import run_world; print(run_world(11).digest)"
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "PYTHONHASHSEED": "77"}
    other = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )

    assert first.story.lines == second.story.lines
    assert first.digest == second.digest == other.stdout.strip()
    assert first.digest != run_world(12).digest


def test_the_seeds_of_the_suite_have_every_kind_of_fault() -> None:
    """A kind that is never drawn proves nothing."""
    drawn: set[str] = set()
    for seed in range(SEEDS):
        drawn |= draw_plan(seed).kinds

    assert drawn >= {
        "kill", "pause", "hang", "drain", "cut", "cut_one_way", "swizzle", "delay", "duplicate",
        "corrupt", "store_error", "store_lost_answer", "store_lost_call", "store_slow",
        "store_kill", "store_pause", "store_flush", "store_failover", "store_split", "clock",
        "version_skew", "client_leaves", "client_slow", "poison", "stale_reader",
        "policy_switch", "role",
    }  # fmt: skip
