"""What links give, without the tremor of single measurements. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Final

#: Of so many looks the middle one counts: a step shows after two of them, a spike never.
_LOOKS: Final = 3


def looked(
    history: Mapping[str, tuple[float, ...]], now_bps: Mapping[str, float]
) -> dict[str, tuple[float, ...]]:
    """
    The history with one more look; links that are gone are forgotten.

    A link that is down is no measurement: it counts at once, and what was before it no more.
    """
    return {
        link: (*history.get(link, ()), bps)[-_LOOKS:] if bps > 0 else (0.0,)
        for link, bps in now_bps.items()
    }


def steady_bps(history: Mapping[str, tuple[float, ...]]) -> dict[str, float]:
    """Bits per second by link: 0 for one that is down, else the middle of the last looks."""
    return {
        link: median(up) if (up := [each for each in looks if each > 0]) and looks[-1] > 0 else 0.0
        for link, looks in history.items()
    }
