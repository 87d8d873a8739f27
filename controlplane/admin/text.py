"""Numbers as people read them; the same forms in sentences, on pages and in the terminal."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

_SIZES: Final = ("B", "kB", "MB", "GB", "TB")
_RATES: Final = ("bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s")

#: What stands where nothing is known.
NOTHING: Final = "-"


def count(value: float) -> str:
    """`1,503`."""
    return f"{value:,.0f}"


def size(value: float) -> str:
    """Bytes in decimal units, as links are sold: `1.6 MB`."""
    return _scaled(value, _SIZES)


def rate(value: float) -> str:
    """Bits per second: `200 Mbit/s`."""
    return _scaled(value, _RATES)


def seconds(value: float) -> str:
    """`0.61 s`; below a tenth of a second `72 ms`, below a millisecond `0.4 ms`."""
    size_s = abs(value)
    if size_s < 0.000_05:  # noqa: PLR2004 - rounds to nothing
        return "0 ms"
    if size_s < 0.000_95:  # noqa: PLR2004 - would round to 1 ms
        return f"{value * 1000:.1f} ms"
    if size_s < 0.0995:  # noqa: PLR2004 - would round to 100 ms
        return f"{value * 1000:.0f} ms"
    if size_s < 9.995:  # noqa: PLR2004 - three figures are enough
        return f"{value:.2f} s"
    return f"{value:.1f} s"


def percent(ratio: float) -> str:
    """`6 %`; one decimal below ten."""
    value = ratio * 100
    return f"{value:.1f} %" if 0 < abs(value) < 9.95 else f"{value:.0f} %"  # noqa: PLR2004 - as said


def clock(at: float) -> str:
    """Unix seconds as a time of day, UTC: `12:03:04`."""
    return f"{datetime.fromtimestamp(at, UTC):%H:%M:%S}"


def date_and_clock(at: float) -> str:
    """Unix seconds as `2026-05-09 12:03:04.512 UTC`."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S.%f}"[:-3] + " UTC"


def words(name: str) -> str:
    """A code as words: `uncached_over_threshold` is `uncached over threshold`."""
    return name.replace("_", " ")


def _scaled(value: float, units: tuple[str, ...]) -> str:
    step = 0
    while abs(value) >= 999.5 and step < len(units) - 1:  # noqa: PLR2004 - would round to 1000
        value /= 1000
        step += 1
    if step == 0:
        return f"{value:.0f} {units[0]}"
    return f"{value:.1f} {units[step]}" if abs(value) < 99.95 else f"{value:.0f} {units[step]}"  # noqa: PLR2004 - three figures
