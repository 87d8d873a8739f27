"""
The table of promises, from the verdicts of runs.

Run as `python -m chaos.report FILE VERDICT.json ...` with `tests` on the path.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from chaos.judge import RULE_OF_THREE

_HEAD: Final = """\
# What is promised, and what was measured

Written by `make chaos` from the verdicts of its runs; do not edit it. Two routers, four prefill
workers in two datacenters and four decode workers are real processes on one machine, with a real
Redis-compatible server and a fault proxy between them. An open-loop client asks them at 60 % of
the capacity measured before, 70 % of it as streams; long answers at less. The right answer to each
prompt comes from a direct run of the engine before anything was broken. `tests/chaos` has all of it.

*Lost*: accepted, the client stayed, and no terminal event came in its time. *Broken*: the client's
own connection was cut. *Wrong*: any difference from the right answer, or from its beginning where
an answer was cut off. *Leak*: a claim, lease or job that is left after one time to live.

**0 of n** is no proof: with 95 % confidence the true share is below 3/n, which stands beside it.
Times are those of a machine with few cores that everything shares.

"""

_COLUMNS: Final = ("Promise", "Fault", "What", "Measured", "Bound", "n", "Verdict")

_LOADS: Final = """\
## Loads

Capacity is that of ordinary requests, in a closed loop of 16 clients, before anything was broken.

| Run | Requests | a second | Capacity a second |
| --- | --- | --- | --- |"""

_TAIL: Final = """
## Not promised

- that a prefill runs only once when Redis is lost: it may run twice, and is never mixed;
- that a client's own connection survives the death of its router;
- the same continuation of *sampled* output after a migration: it goes on from the same tokens, with
  other chance;
- anything while all workers of a model are away, but an answer that says so;
- any contents of Redis.
"""


def write_report(path: Path, verdicts: Sequence[Path]) -> None:
    """Write the table; runs in the order given."""
    rows = [row for file in verdicts for row in json.loads(file.read_text(encoding="utf-8"))]
    rows.sort(key=lambda row: (row["promise"], row["scenario"]))
    lines = [_line(_COLUMNS), _line(["---"] * len(_COLUMNS))]
    lines += [_line(_cells(row)) for row in rows]
    kept = sum(row["is_kept"] for row in rows)
    end = [f"\n{kept} of {len(rows)} kept.\n", _LOADS]
    end += [_line(_load(file.with_name("scenario.json"))) for file in verdicts]
    path.write_text(_HEAD + "\n".join([*lines, *end]) + "\n" + _TAIL, encoding="utf-8")


def _cells(row: dict[str, Any]) -> list[str]:
    unit = f" {row['unit']}" if row["unit"] else ""
    value = f"{row['value']:.4g}{unit}"
    if row["bound"] == 0 and row["value"] == 0 and row["n"]:
        value += f" (< {RULE_OF_THREE / row['n']:.1e})"
    sign = "≥" if row["is_floor"] else "≤"
    return [
        row["promise"],
        row["fault"],
        row["what"],
        value,
        f"{sign} {row['bound']:g}{unit}",
        str(row["n"]),
        "kept" if row["is_kept"] else "**broken**",
    ]


def _load(file: Path) -> list[str]:
    """What was asked of the fleet in a run."""
    scenario = json.loads(file.read_text(encoding="utf-8"))
    load, capacity = scenario["load"], f"{scenario['capacity_per_s']:.1f}"
    return [scenario["name"], str(load["count"]), f"{load['rate_per_s']:.1f}", capacity]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


if __name__ == "__main__":
    write_report(Path(sys.argv[1]), [Path(one) for one in sys.argv[2:]])
