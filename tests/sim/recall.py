"""`make sim-recall`: every planted bug must be caught."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from sim.bugs.catalogue import BUGS, planted
from sim.faults import draw_plan
from sim.world import run_world

#: Seeds that a bug is looked for in, and worlds that are run for one bug at most.
SEEDS_MAX, WORLDS_MAX = 1000, 100

#: Each bug with the seed that showed it last.
CATCHES = Path(__file__).parent / "bugs" / "catches.txt"


class Catch(NamedTuple):
    """How a bug was seen."""

    seed: int
    #: Worlds that were run for it, this one included.
    worlds: int
    invariant: str
    said: str


def hunt(name: str, seeds: Iterable[int], *, worlds_max: int = WORLDS_MAX) -> Catch | None:
    """
    The first world that sees a bug; seeds with the faults that bring it out come first.

    A world that is violated without the bug too has seen something else, and does not count.
    """
    needs = BUGS[name].needs
    order = sorted(seeds, key=lambda seed: not needs <= draw_plan(seed).kinds)
    for number, seed in enumerate(order[:worlds_max], 1):
        with planted(name):
            result = run_world(seed)
        if result.violations and not run_world(seed).violations:
            return Catch(seed, number, *result.violations[0])
    return None


def known_catches() -> dict[str, int]:
    """Seed of each bug that was caught before."""
    lines = CATCHES.read_text().splitlines()
    pairs = [line.split() for line in lines if line and not line.startswith("#")]
    return {name: int(seed) for name, seed in pairs}


def _keep(catches: dict[str, int]) -> None:
    lines = [f"{name} {seed}" for name, seed in sorted(catches.items()) if name in BUGS]
    text = "\n".join(["# Planted bug, and a seed whose world shows it.", *lines])
    CATCHES.write_text(text + "\n")


def main(arguments: list[str]) -> int:
    """Hunt all, each within its bounds; 0 when none got away."""
    parser = argparse.ArgumentParser(prog="make sim-recall")
    parser.add_argument("--seeds", type=int, default=SEEDS_MAX)
    parser.add_argument("--worlds", type=int, default=WORLDS_MAX, help="at most so many for a bug")
    parser.add_argument("--keep", action="store_true", help="write the seeds to catches.txt")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args(arguments)
    names = options.names or sorted(BUGS)
    catches, missed = known_catches(), []
    for name in names:
        first = [catches[name]] if name in catches else []
        found = hunt(name, first) or hunt(name, range(options.seeds), worlds_max=options.worlds)
        if found is None:
            missed.append(name)
            print(f"{name:30} NOT CAUGHT in {options.worlds} worlds", flush=True)
            continue
        catches[name] = found.seed
        print(
            f"{name:30} {found.invariant:6} {found.worlds:4} worlds, seed {found.seed:4}  "
            f"{found.said[:90]}",
            flush=True,
        )
    if options.keep:
        _keep(catches)
    said = f"; not caught: {', '.join(missed)}" if missed else ""
    print(f"sim-recall: {len(names) - len(missed)}/{len(names)} planted bugs caught{said}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
