"""The command behind `make sim`."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from dataclasses import replace

from sim.faults import Plan
from sim.world import Result, run_world

#: Lines of a story that are told.
_LINES_MAX = 200


def main(arguments: list[str]) -> int:
    """Run seeds; 0 when nothing was violated."""
    parser = argparse.ArgumentParser(prog="make sim")
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--whole", action="store_true", help="tell of all requests")
    options = parser.parse_args(arguments)
    if options.seed is None:
        return _run_many(range(options.first, options.first + options.seeds))
    result = run_world(options.seed)
    print("\n".join(telling(result, is_whole=options.whole)))
    return 0 if result.is_right else 1


def _run_many(seeds: range) -> int:
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    outcomes: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    wrong: list[Result] = []
    virtual_s = 0.0
    for seed in seeds:
        result = run_world(seed)
        outcomes += result.outcomes
        faults += result.faults
        virtual_s += result.virtual_s
        if not result.is_right:
            wrong.append(result)
            names = ", ".join(sorted({name for name, _ in result.violations}))
            print(f"seed {seed}: {names}; {result.violations[0][1][:300]}", flush=True)
    took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    print("faults injected:")
    for kind, count in sorted(faults.items()):
        print(f"  {kind:32} {count}")
    print("how requests ended, as their clients saw it:")
    for outcome, count in outcomes.most_common():
        print(f"  {outcome:32} {count}")
    if wrong:
        print("\n".join(telling(wrong[0])))
    verdict = "all invariants hold" if not wrong else f"{len(wrong)} seeds FAILED"
    print(
        f"sim: {verdict}; {len(seeds)} seeds, {outcomes.total()} requests, {virtual_s:.0f} virtual "
        f"s in {took_s:.1f} s ({cpu_s:.1f} s of one core): {len(seeds) / took_s:.2f} seeds/s"
    )
    return 1 if wrong else 0


def telling(result: Result, *, is_whole: bool = False) -> list[str]:
    """A run's plan, its violations with the smallest plan for them, and a request's story."""
    lines = [f"seed {result.seed}, digest {result.digest}; plan:", *_indented(result.plan)]
    lines += [f"VIOLATED {name}: {said}" for name, said in result.violations]
    if result.violations:
        name, _ = result.violations[0]
        small = shrink(result)
        lines += [f"{name} is violated by this much of the plan:", *_indented(small)]
    told = _named(result.violations[0][1], result) if result.violations else None
    lines.append("the story" + (f" of {told} and the world around it:" if told else ":"))
    lines += result.story.of(None if is_whole else told)[-_LINES_MAX:]
    return [*lines, f"again: make sim SEED={result.seed}"]


def shrink(result: Result) -> Plan:
    """The plan without whatever its first violation does not need."""
    plan, name = result.plan, result.violations[0][0]

    def is_enough(smaller: Plan) -> bool:
        found = run_world(result.seed, smaller).violations
        return any(invariant == name for invariant, _ in found)

    for changes in ({"clocks": ()}, {"old": ()}, {"leavers": 0.0}, {"slow_readers": 0.0}):
        smaller = replace(plan, **changes)
        if smaller != plan and is_enough(smaller):
            plan = smaller
    for fault in plan.faults:
        smaller = replace(plan, faults=tuple(one for one in plan.faults if one is not fault))
        if is_enough(smaller):
            plan = smaller
    return plan


def _indented(plan: Plan) -> list[str]:
    return [f"  {line}" for line in str(plan).splitlines()]


def _named(said: str, result: Result) -> str | None:
    """The request that a violation names."""
    known = {request_id for _, request_id, _ in result.story.lines}
    words = "".join(
        letter if letter.isalnum() or letter in "-." else " " for letter in said
    ).split()
    return next((word.partition(".")[0] for word in words if word.partition(".")[0] in known), None)
