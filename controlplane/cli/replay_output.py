"""A replay's results as a table for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from rich.console import Console
from rich.table import Table

from controlplane.replay.results import Latency, PolicyResult

_Row: TypeAlias = tuple[str, Callable[[PolicyResult], str]]


def _times(latency: Latency) -> str:
    return f"{latency.p50:.2f} / {latency.p90:.2f} / {latency.p99:.2f}"


_ROWS: Final[tuple[_Row, ...]] = (
    ("requests served", lambda one: f"{one.done:,} of {one.requests:,}"),
    ("throughput, requests/s", lambda one: f"{one.throughput_per_s:.3f}"),
    ("goodput, requests/s", lambda one: f"{one.goodput_per_s:.3f}"),
    ("within the objective", lambda one: f"{one.within_slo:.1%}"),
    ("TTFT p50 / p90 / p99, s", lambda one: _times(one.ttft_s)),
    ("mean TTFT, s", lambda one: f"{one.ttft_s.mean:.3f}"),
    ("prefill queue p50 / p90 / p99, s", lambda one: _times(one.prefill_queue_s)),
    ("time per output token p50, ms", lambda one: f"{one.tpot_s.p50 * 1000:.1f}"),
    ("prefix hits, part of prompt tokens", lambda one: f"{one.prefix_hit_ratio:.1%}"),
    ("offloaded requests", lambda one: f"{one.offloaded:.1%}"),
    ("offloaded tokens", lambda one: f"{one.offloaded_tokens:.1%}"),
    ("further attempts", lambda one: f"{one.retries:,}"),
)


def print_results(results: Sequence[PolicyResult], console: Console) -> None:
    """One column for each policy, one line for each figure."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for result in results:
        table.add_column(result.policy, justify="right")
    for name, figure in _ROWS:
        table.add_row(name, *map(figure, results))
    for link in sorted({name for result in results for name in result.links}):
        table.add_row(
            f"{link}, GB and utilisation",
            *(
                f"{one.links[link].bytes_total / 1e9:,.1f}, {one.links[link].utilisation:.1%}"
                for one in results
            ),
        )
    if any(use.egress_cost for result in results for use in result.links.values()):
        table.add_row("egress cost", *(f"{one.egress_cost:,.2f}" for one in results))
    for role in sorted({name for result in results for name in result.roles}):
        table.add_row(f"{role}, workers and utilisation", *(_role(one, role) for one in results))
    console.print(table)
    for result in results:
        lost = {name: count for name, count in result.outcomes.items() if name != "done"}
        if lost:
            told = ", ".join(f"{count:,} {name}" for name, count in lost.items())
            console.print(f"{result.policy}: not served: {told}")


def _role(result: PolicyResult, role: str) -> str:
    used = result.roles.get(role)
    return f"{used.workers:g} x {used.utilisation:.1%}" if used is not None else "-"
