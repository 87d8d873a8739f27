"""Line and bar charts as inline SVG: no script, no font, nothing from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

#: Told apart also by those who do not see red and green (Okabe and Ito).
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000", "#777")

_WIDTH, _HEIGHT = 640, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 12, 36
_TICKS: Final = 5


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class _Axis:
    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def at(self, value: float) -> float:
        """Where a value stands."""
        low, high, value = self.low, self.high, min(max(value, self.low), self.high)
        if self.is_log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        part = (value - low) / (high - low) if high > low else 0.0
        return self.start + part * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values to write beside it."""
        if self.is_log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            return [10.0**e for e in range(first, last + 1) if self.low <= 10.0**e <= self.high]
        span = self.high - self.low
        if span <= 0:
            return [self.low]
        step = 10 ** math.floor(math.log10(span / _TICKS))
        step *= next(m for m in (1, 2, 5, 10) if span / (step * m) <= _TICKS)
        first = math.ceil(self.low / step)
        return [step * n for n in range(first, int(self.high / step) + 1)]


def line_chart(
    lines: Sequence[Line], *, x_name: str, y_name: str, x_log: bool = False, y_max: float = 0.0
) -> str:
    """
    Lines over one another, with a legend.

    Args:
        lines: Points in growing order of x.
        x_name: Below, with its unit.
        y_name: Above, with its unit.
        x_log: The horizontal axis is logarithmic; points at 0 are left out.
        y_max: Top of the vertical axis; 0 is that of the highest point.
    """
    shown = [Line(one.name, [p for p in one.points if not x_log or p[0] > 0]) for one in lines]
    points = [point for line in shown for point in line.points]
    if not points:
        return "<p>nothing to draw</p>"
    x = _Axis(
        min(p[0] for p in points), max(p[0] for p in points), _LEFT, _WIDTH - _RIGHT, is_log=x_log
    )
    y = _Axis(0.0, y_max or max(p[1] for p in points) or 1.0, _HEIGHT - _BOTTOM, _TOP)
    drawn = [_grid(x, y)]
    for place, line in enumerate(shown):
        path = " ".join(f"{x.at(px):.1f},{y.at(py):.1f}" for px, py in line.points)
        colour = COLOURS[place % len(COLOURS)]
        drawn.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>'
        )
    drawn.append(_text((_LEFT + _WIDTH) / 2, _HEIGHT - 4, x_name, "middle"))
    body = "".join(drawn)
    return (
        f"<figure><figcaption>{escape(y_name)}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(y_name)}">{body}</svg>'
        f"{_legend([line.name for line in shown])}</figure>"
    )


def bar_chart(bars: Sequence[tuple[str, float]], *, name: str, form: str = "{:.3g}") -> str:
    """Bars from left to right, each with its name and value."""
    highest = max((value for _, value in bars), default=0.0) or 1.0
    height = 22 * len(bars) + 6
    drawn = []
    for place, (label, value) in enumerate(bars):
        top = 22 * place + 4
        length = max(0.0, value) / highest * (_WIDTH - 280)
        colour = COLOURS[place % len(COLOURS)]
        drawn.append(_text(190, top + 13, label, "end"))
        drawn.append(f'<rect x="196" y="{top}" width="{length:.1f}" height="16" fill="{colour}"/>')
        drawn.append(_text(200 + length, top + 13, form.format(value), "start"))
    return (
        f"<figure><figcaption>{escape(name)}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(name)}">'
        f"{''.join(drawn)}</svg></figure>"
    )


def _grid(x: _Axis, y: _Axis) -> str:
    drawn = []
    for value in y.ticks():
        at = y.at(value)
        drawn.append(f'<path d="M{x.start} {at:.1f}H{x.end}" stroke="#ddd"/>')
        drawn.append(_text(x.start - 6, at + 4, f"{value:g}", "end"))
    for value in x.ticks():
        at = x.at(value)
        drawn.append(f'<path d="M{at:.1f} {y.start}v4" stroke="#888"/>')
        drawn.append(_text(at, y.start + 16, f"{value:g}", "middle"))
    drawn.append(f'<path d="M{x.start} {y.end}V{y.start}H{x.end}" fill="none" stroke="#888"/>')
    return "".join(drawn)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _legend(names: Sequence[str]) -> str:
    items = "".join(
        f'<li><i style="background:{COLOURS[place % len(COLOURS)]}"></i>{escape(name)}</li>'
        for place, name in enumerate(names)
    )
    return f"<ul>{items}</ul>"
