"""The tables that people read, and the JSON that programs read."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks.measure import Plan, Row

#: Steps of which a whole flight is made; what is left of it is life cycle and bookkeeping.
_PARTS: Final = (
    "match prefixes, decide, claim",
    "reserve (round trip)",
    "prefill job (round trip)",
    "decode job, relay",
    "record, log, measure, finish (batched)",
)
_PARSE: Final = "parse, tokenize, hash"
_FLIGHT: Final = "whole flight"


@dataclass(slots=True, kw_only=True)
class Results:
    """Everything that was measured."""

    plan: Plan
    is_pinned: bool
    rows: list[Row] = field(default_factory=list)
    #: Microseconds of CPU by step, by size.
    steps: dict[str, dict[str, float]] = field(default_factory=dict)
    #: Resident megabytes by system, by size.
    memory_mb: dict[str, dict[str, float]] = field(default_factory=dict)
    #: What should not be, by size: records that are missing, store calls that failed.
    complaints: list[str] = field(default_factory=list)

    @property
    def errors(self) -> int:
        """Wrong answers and missing ones."""
        return sum(row.errors for row in self.rows)

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "machine": machine(),
            "plan": asdict(self.plan),
            "is_pinned": self.is_pinned,
            "rows": [asdict(row) for row in self.rows],
            "steps_cpu_us": self.steps,
            "memory_mb": self.memory_mb,
            "complaints": self.complaints,
        }


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def show(console: Console, results: Results) -> None:
    """Print all tables."""
    console.print(_cells(results.rows))
    console.print(_steps(results))
    for size, memory in results.memory_mb.items():
        said = ", ".join(f"{system} {size_mb:.0f} MB" for system, size_mb in memory.items())
        console.print(f"resident memory after {size}: {said}")
    for row in results.rows:
        if row.errors:
            console.print(f"[red]{row.cell} {row.system}: {row.errors} errors: {row.example}[/]")
    for complaint in results.complaints:
        console.print(f"[yellow]{complaint}[/]")


def _cells(rows: Sequence[Row]) -> Table:
    table = Table(title="Per cell: size / n(ot streamed) or s(treamed) / connections")
    for name in ("cell", "system"):
        table.add_column(name)
    for name in (
        *("req/s", "x direct", "p50 ms", "p99 ms", "added p50 ms"),
        *("CPU us/req", "x bare", "Redis us/req", "errors"),
    ):
        table.add_column(name, justify="right")
    bare = {row.cell: row.cpu_us for row in rows if row.system == "bare"}
    for row in rows:
        is_direct = row.system == "direct"
        table.add_row(
            row.cell if is_direct else "",
            row.system,
            f"{row.requests_per_s:,.0f}",
            f"{row.ratio:.3f}",
            f"{row.p50_ms:.2f}",
            f"{row.p99_ms:.2f}",
            "" if is_direct else f"+{row.added_p50_ms:.2f}",
            "" if is_direct else f"{row.cpu_us:.0f}",
            "" if is_direct or not bare[row.cell] else f"{row.cpu_us / bare[row.cell]:.1f}",
            f"{row.redis_cpu_us:.0f}" if row.system == "prfaas" else "",
            str(row.errors),
            end_section=row.system == "prfaas",
        )
    return table


def _steps(results: Results) -> Table:
    table = Table(title="Where the time goes: router CPU us/request, each step measured alone")
    table.add_column("step")
    for size in results.steps:
        table.add_column(size, justify="right")
    measured = {row.cell: row.cpu_us for row in results.rows if row.system == "prfaas"}
    columns = {
        size: _breakdown(steps, measured[f"{size}/n/32"]) for size, steps in results.steps.items()
    }
    names = list(next(iter(columns.values()), {}))
    for name in names:
        table.add_row(
            name,
            *(f"{column[name]:.0f}" for column in columns.values()),
            end_section=name in {_PARSE, "rest of the flight"},
        )
    return table


def _breakdown(steps: Mapping[str, float], measured_us: float) -> dict[str, float]:
    """The steps in order, with what is left of the flight and of the whole request."""
    parts = {name: steps[name] for name in _PARTS}
    flight = steps[_FLIGHT]
    return {
        _PARSE: steps[_PARSE],
        **parts,
        "rest of the flight": flight - sum(parts.values()),
        _FLIGHT: flight,
        "HTTP to the client, and what sharing cores costs": measured_us - flight - steps[_PARSE],
        "measured in n/32": measured_us,
    }
