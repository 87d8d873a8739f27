"""What `prfaas plan` prints for people."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from controlplane.cli.plan_answer import Answer, Change, Cost
from controlplane.domain.throughput.solution import BINDING, Solution

_BITS_PER_GBIT = 1e9
_THOUSAND = 1000
_BAR = 24
_PERCENT = 100
#: A smaller gap of a complete answer is not worth a line.
_WORTH_SAYING = 0.01


def print_answer(found: Answer, console: Console) -> None:
    """Print the sentence, and tables of thresholds, roles, use, cost and changes."""
    console.print(Text(_sentence(found), "bold"))
    solution = found.solution
    if said := how_sure(solution):
        console.print(Text(said, "yellow"))
    console.print(_roles(solution))
    if solution.threshold_tokens:
        console.print(_links(found))
    console.print(_use(solution, is_ascii=console.options.ascii_only))
    console.print(_costs(found))
    console.print(_changes(found))


def _sentence(found: Answer) -> str:
    solution = found.solution
    limits = ", ".join(solution.binding) or "nothing in particular"
    arrival = found.question.traffic.arrival_per_s
    if found.load <= 1:
        room = f"{arrival:g} requests/s arrive, {found.load:.0%} of that"
    else:
        room = f"{arrival:g} requests/s arrive, {found.load - 1:.0%} more than that: too many"
    return (
        f"{found.question.name} takes {solution.throughput_per_s:.3g} requests/s; "
        f"{room}. Limited by {limits}."
    )


def how_sure(solution: Solution) -> str:
    """How far the answer may be from the best, in words; empty where it is as good as that."""
    below = f"at most {_PERCENT * solution.gap:.2g} % below the best there may be"
    if not solution.is_complete:
        return f"Stopped early: {below}."
    return f"Solved to the end: {below}." if solution.gap >= _WORTH_SAYING else ""


def _roles(solution: Solution) -> Table:
    table = _table("Roles", "datacenter", "hardware")
    for label in ("prefill", "decode", "lent to prefill"):
        table.add_column(label, justify="right")
    for group in solution.groups:
        lent = f"{group.lent_workers:.2f}" if group.lent_workers else ""
        table.add_row(
            group.site,
            group.hardware,
            str(group.prefill_workers),
            str(group.decode_workers),
            lent,
        )
    return table


def _links(found: Answer) -> Table:
    solution = found.solution
    table = _table("Links", "link", "prefill there")
    for label in ("egress", "of", "used", "egress now"):
        table.add_column(label, justify="right")
    now = solution.egress_at(min(found.question.traffic.arrival_per_s, solution.throughput_per_s))
    for link, threshold in solution.threshold_tokens.items():
        table.add_row(
            link,
            tokens(threshold, before="above "),
            gbit(solution.egress_bps[link]),
            gbit(solution.capacity_bps[link]),
            f"{solution.egress_bps[link] / solution.capacity_bps[link]:.0%}",
            gbit(now[link]),
        )
    return table


def _use(solution: Solution, *, is_ascii: bool) -> Table:
    mark, rest = ("#", ".") if is_ascii else ("█", "·")
    table = _table("Use at saturation", "resource", "")
    table.add_column("used", justify="right")
    for name, used in solution.utilisation.items():
        width = min(_BAR, round(_BAR * used))
        bar = Text(mark * width, "red" if used >= BINDING else "blue")
        bar.append(rest * (_BAR - width), "dim")
        table.add_row(name, bar, f"{used:.0%}")
    return table


def _costs(found: Answer) -> Table:
    currency = found.question.currency
    table = _table(f"Cost in {currency}", "at")
    for label in ("workers/h", "egress/h", "per 1M tokens", "per 1M output tokens"):
        table.add_column(label, justify="right")
    rows: list[tuple[str, Cost]] = [("saturation", found.at_saturation)]
    if found.at_arrival is not None:
        rows.append((f"{found.at_arrival.rate_per_s:g} requests/s", found.at_arrival))
    for label, cost in rows:
        table.add_row(
            label,
            f"{cost.workers_per_hour:.4g}",
            f"{cost.egress_per_hour:.4g}",
            f"{cost.per_million_tokens:.4g}",
            f"{cost.per_million_output_tokens:.4g}",
        )
    return table


def _changes(found: Answer) -> Table:
    table = _table("With more", "change")
    for label in ("requests/s", "gain", "per 1M tokens", "egress"):
        table.add_column(label, justify="right")
    for label in ("thresholds", "prefill/decode", "limited by"):
        table.add_column(label, overflow="fold")
    for change in found.changes:
        table.add_row(*_change(found, change))
    return table


def _change(found: Answer, change: Change) -> list[str]:
    before = found.solution
    return [
        change.what,
        f"{change.throughput_per_s:.3g}",
        f"{change.gain:+.1%}",
        f"{change.cost_per_million_tokens:.4g}",
        gbit(sum(change.egress_bps.values())),
        _moved(before.threshold_tokens, change.threshold_tokens),
        ", ".join(f"{site} {p}/{d}" for site, (p, d) in change.roles.items()),
        change.bottleneck,
    ]


def _moved(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """Thresholds of links that are used, before or after."""
    return ", ".join(
        f"{link} {tokens(threshold)}"
        for link, threshold in after.items()
        if math.isfinite(threshold) or math.isfinite(before.get(link, math.inf))
    )


def tokens(count: float, *, before: str = "") -> str:
    """A length for people; K is 1,000."""
    if math.isinf(count):
        return "never"
    if count < 1:
        return "always" if before else "0"
    said = f"{count / _THOUSAND:.3g}K" if count >= _THOUSAND else f"{count:.0f}"
    return f"{before}{said}"


def gbit(bps: float) -> str:
    """A rate for people."""
    return f"{bps / _BITS_PER_GBIT:.3g} Gbit/s"


def _table(title: str, *labels: str) -> Table:
    table = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, title_style="bold", padding=(0, 1, 0, 0)
    )
    for label in labels:
        table.add_column(label, overflow="fold")
    return table
