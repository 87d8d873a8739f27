"""A replay as one HTML file: table and charts, nothing loaded from anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any, Final

from controlplane.replay.charts import Line, bar_chart, line_chart
from controlplane.replay.results import PolicyResult

_STYLE: Final = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; color: #222 }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left }
section { display: grid; grid-template-columns: repeat(auto-fit, minmax(26rem, 1fr)); gap: 1rem }
figure { margin: 0 } figcaption { font-weight: 600 }
svg { width: 100%; height: auto } svg text { font: 11px system-ui, sans-serif; fill: #444 }
ul { list-style: none; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1rem }
li i { display: inline-block; width: .8rem; height: .8rem; margin-right: .3rem }
"""

#: Points of a line over time; more are not seen.
_POINTS_MAX: Final = 200


def html_report(results: Sequence[PolicyResult], settings: Mapping[str, Any]) -> str:
    """
    The whole document.

    Args:
        results: One for each policy, at least one.
        settings: What was replayed, and how.
    """
    said = ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>Replay of {escape(str(settings.get('trace', 'a trace')))}</title>"
        f"<style>{_STYLE}</style></head><body><h1>Replay</h1><p>{escape(said)}</p>"
        f"{_table(results)}<section>{''.join(_charts(results))}</section></body></html>\n"
    )


def _table(results: Sequence[PolicyResult]) -> str:
    heads = (
        "policy", "served", "throughput /s", "goodput /s", "within objective", "TTFT p50 s",
        "p90 s", "p99 s", "TPOT p50 ms", "prefix hits", "offloaded", "further attempts",
    )  # fmt: skip
    rows = [
        (
            one.policy,
            f"{one.done:,} of {one.requests:,}",
            f"{one.throughput_per_s:.3f}",
            f"{one.goodput_per_s:.3f}",
            f"{one.within_slo:.1%}",
            f"{one.ttft_s.p50:.2f}",
            f"{one.ttft_s.p90:.2f}",
            f"{one.ttft_s.p99:.2f}",
            f"{one.tpot_s.p50 * 1000:.1f}",
            f"{one.prefix_hit_ratio:.1%}",
            f"{one.offloaded:.1%}",
            f"{one.retries:,}",
        )
        for one in results
    ]
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _charts(results: Sequence[PolicyResult]) -> Iterator[str]:
    yield line_chart(
        [Line(one.policy, one.ttft_curve) for one in results],
        x_name="time to the first token, s",
        y_name="Part of the requests that had their first token by then",
        x_log=True,
        y_max=1.0,
    )
    yield line_chart(
        [Line(one.policy, _rate(one, "within")) for one in results],
        x_name="virtual time, s",
        y_name="Goodput, requests/s",
    )
    yield line_chart(
        [Line(one.policy, _mean_ttft(one)) for one in results],
        x_name="virtual time, s",
        y_name="Mean time to the first token, by when it came, s",
    )
    yield bar_chart(
        [(one.policy, one.goodput_per_s) for one in results], name="Goodput, requests/s"
    )
    yield bar_chart(
        [(one.policy, 100 * one.offloaded) for one in results], name="Offloaded requests, %"
    )
    for link in sorted({name for one in results for name in one.links}):
        yield bar_chart(
            [(one.policy, 100 * one.links[link].utilisation) for one in results],
            name=f"Utilisation of the link {link}, %",
        )
    for role in sorted({name for one in results for name in one.roles})[:16]:
        yield bar_chart(
            [
                (one.policy, 100 * one.roles[role].utilisation)
                for one in results
                if role in one.roles
            ],
            name=f"Utilisation of the workers {role}, %",
        )


def _grouped(result: PolicyResult, name: str) -> list[tuple[float, float, float]]:
    """Beginning, length and sum of up to so many steps of time as a chart shows."""
    values = result.series.get(name, [])
    every = max(1, -(-len(values) // _POINTS_MAX))
    length_s = every * result.step_s
    return [
        (place * result.step_s, length_s, sum(values[place : place + every]))
        for place in range(0, len(values), every)
    ]


def _rate(result: PolicyResult, name: str) -> list[tuple[float, float]]:
    return [(at_s, amount / length_s) for at_s, length_s, amount in _grouped(result, name)]


def _mean_ttft(result: PolicyResult) -> list[tuple[float, float]]:
    times, counts = _grouped(result, "ttft_s"), _grouped(result, "started")
    return [
        (at_s, total / count)
        for (at_s, _, total), (_, _, count) in zip(times, counts, strict=True)
        if count
    ]
