"""`make sim-recall`: every planted bug must be caught."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import NamedTuple

from sim.bugs.catalogue import BUGS, planted
from sim.faults import draw_plan
from sim.world import run_world

SEEDS_MAX = 2000


class Catch(NamedTuple):
    """How a bug was seen."""

    seed: int
    #: Worlds that were run for it, this one included.
    worlds: int
    invariant: str
    said: str


def hunt(name: str, seeds: Iterable[int], *, worlds_max: int = SEEDS_MAX) -> Catch | None:
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


def main(arguments: list[str]) -> int:
    """Hunt all; 0 when none got away."""
    parser = argparse.ArgumentParser(prog="make sim-recall")
    parser.add_argument("--seeds", type=int, default=SEEDS_MAX)
    parser.add_argument("--worlds", type=int, default=SEEDS_MAX, help="at most so many for a bug")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args(arguments)
    names = options.names or sorted(BUGS)
    caught = 0
    for name in names:
        found = hunt(name, range(options.seeds), worlds_max=options.worlds)
        if found is None:
            print(f"{name:30} NOT CAUGHT", flush=True)
            continue
        caught += 1
        print(
            f"{name:30} {found.invariant:6} {found.worlds:4} worlds, seed {found.seed:4}  "
            f"{found.said[:90]}",
            flush=True,
        )
    print(f"sim-recall: {caught}/{len(names)} planted bugs caught")
    return 0 if caught == len(names) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
