"""
Sums in which what is old counts less: by 1/e after one window, in constant time per event. Pure.

New events weigh more instead of old ones less, and all are scaled back when they are read.
"""

from __future__ import annotations

import math
from typing import Final

from controlplane.planner.histogram import Bin, Histogram, bin_of

#: Weights are scaled back before they grow beyond this.
_WEIGHT_MAX: Final = 1e12
#: What counts for less than this part of a request is forgotten when they are.
_FORGOTTEN: Final = 1e-9


class Fading:
    """Sums by key, each a list of numbers, that fade together."""

    def __init__(self, window_s: float, now_s: float) -> None:
        """
        Nothing yet.

        Args:
            window_s: After this an event weighs 1/e, seconds > 0.
            now_s: Monotonic seconds.
        """
        self._window_s = window_s
        self._began_s = self._base_s = now_s
        self._sums: dict[int, list[float]] = {}

    def __repr__(self) -> str:
        return f"<Fading {len(self._sums)} sums over {self._window_s:g} s>"

    def add(self, key: int, now_s: float, *amounts: float) -> None:
        """Add an event to a sum; all events of a key have equally many amounts."""
        weight = math.exp(min(700.0, (now_s - self._base_s) / self._window_s))
        if weight > _WEIGHT_MAX:
            self._rebase(now_s)
            weight = 1.0
        sums = self._sums.setdefault(key, [0.0] * len(amounts))
        for place, amount in enumerate(amounts):
            sums[place] += weight * amount

    def read(self, now_s: float) -> dict[int, tuple[float, ...]]:
        """All sums as they stand now."""
        scale = self._scale(now_s)
        return {key: tuple(each * scale for each in sums) for key, sums in self._sums.items()}

    def seen_s(self, now_s: float) -> float:
        """
        Seconds that the weights stand for: an event each second adds up to this number.

        It is the window once that has passed, and the time there was until then.
        """
        return self._window_s * -math.expm1(-(now_s - self._began_s) / self._window_s)

    def _scale(self, now_s: float) -> float:
        return math.exp(-max(0.0, now_s - self._base_s) / self._window_s)

    def _rebase(self, now_s: float) -> None:
        scale = self._scale(now_s)
        kept = {key: [each * scale for each in sums] for key, sums in self._sums.items()}
        # Bins do not pile up.
        self._sums = {key: sums for key, sums in kept.items() if max(map(abs, sums)) > _FORGOTTEN}
        self._base_s = now_s


class FadingHistogram:
    """A histogram of lengths that forgets."""

    def __init__(self, window_s: float, now_s: float) -> None:
        self._fading = Fading(window_s, now_s)

    def add(self, tokens: float, now_s: float) -> None:
        """A request of this length."""
        self._fading.add(bin_of(tokens), now_s, 1.0, tokens)

    def read(self, now_s: float) -> Histogram:
        """The lengths as they count now."""
        sums = self._fading.read(now_s)
        return Histogram(bins={key: Bin(each[0], each[1]) for key, each in sums.items()})
