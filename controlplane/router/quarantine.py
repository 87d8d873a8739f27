"""
Which requests kill workers, told from requests that happened to be there when workers died.

A request is named by a digest of its content, so that its retries are known again, by whichever
router and after whichever restart of a worker.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Collection

#: Requests and deaths that are remembered; the oldest are forgotten beyond that.
_REMEMBERED_MAX = 4096

#: A request is blamed when the chance that it met so many deaths by accident is below this.
_ACCIDENT_MAX = 1e-4

#: Deaths of a shorter time than this say nothing of how often workers die of something else.
_SPAN_MIN_S = 30.0

#: How long a request is taken to have run where it met a death that another router tells of.
_EXPOSURE_S = 1.0


class Quarantine:
    """Deaths of worker lives by the requests that ran there, of the last `window_s`."""

    def __init__(
        self,
        *,
        deaths_max: int,
        window_s: float,
        workers: Callable[[], int],
        clock: Callable[[], float],
    ) -> None:
        """
        Nobody is suspected.

        Args:
            deaths_max: Different worker lives that a request may have ended, >= 1; more while
                workers die of something else.
            window_s: Deaths count, and a quarantine lasts, for so long.
            workers: How many there are, >= 1.
            clock: Monotonic seconds.
        """
        self._deaths_max = deaths_max
        self._window_s = window_s
        self._workers = workers
        self._clock = clock
        #: Worker lives that ended, and when.
        self._deaths: OrderedDict[str, float] = OrderedDict()
        #: By digest: the lives that ended while it ran there, and how long it had been there.
        self._present: OrderedDict[str, dict[str, float]] = OrderedDict()
        #: Digests that are refused, and until when.
        self._until_s: OrderedDict[str, float] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Quarantine {len(self._until_s)} refused, {len(self._deaths)} deaths>"

    def died(self, incarnation: str) -> None:
        """A worker's process has ended, whoever was there."""
        self._forget_old()
        self._deaths.setdefault(incarnation, self._clock())
        _bound(self._deaths)

    def blame(self, digest: str, incarnation: str, exposure_s: float | None = None) -> None:
        """
        A request made no progress on a worker life, and that life ended.

        Args:
            digest: Names the request.
            incarnation: The life.
            exposure_s: How long the request was there; None when another router tells of it.
        """
        self.died(incarnation)
        present = self._present.get(digest, {})
        if exposure_s is None:
            # What was seen here is known better; a router hears its own words again, too.
            present.setdefault(incarnation, _EXPOSURE_S)
        else:
            present[incarnation] = exposure_s
        # What was forgotten must not pile up here.
        present = {life: there_s for life, there_s in present.items() if life in self._deaths}
        self._present[digest] = present
        self._present.move_to_end(digest)
        _bound(self._present)
        if len(present) >= self._deaths_max and self._is_no_accident(present.values()):
            self._until_s[digest] = self._clock() + self._window_s
            self._until_s.move_to_end(digest)
            _bound(self._until_s)

    def _is_no_accident(self, exposures_s: Collection[float]) -> bool:
        """
        Whether a bystander would hardly have met so many deaths.

        The other deaths of the time say how often a worker dies of something else; so often a
        bystander meets one during its time there, and all of them with the product of these chances.
        Deaths that another request has met as often as would end it say nothing: they may be its own.
        """
        others = len(self._deaths.keys() - self._of_suspects())
        span_s = max(_SPAN_MIN_S, self._clock() - next(iter(self._deaths.values())))
        rate_per_s = others / (span_s * max(1, self._workers()))
        return math.prod(min(1.0, rate_per_s * each) for each in exposures_s) <= _ACCIDENT_MAX

    def _of_suspects(self) -> set[str]:
        """Lives that ended where a request was that has met so many deaths."""
        suspects = (lives for lives in self._present.values() if len(lives) >= self._deaths_max)
        return {life for lives in suspects for life in lives}

    def refuses(self, digest: str) -> bool:
        """Whether a request is not to be tried (again)."""
        until_s = self._until_s.get(digest)
        if until_s is None:
            return False
        if self._clock() < until_s:
            return True
        del self._until_s[digest]
        self._present.pop(digest, None)
        return False

    def _forget_old(self) -> None:
        oldest_s = self._clock() - self._window_s
        while self._deaths:
            incarnation, at_s = next(iter(self._deaths.items()))
            if at_s >= oldest_s:
                return
            del self._deaths[incarnation]


def _bound(remembered: OrderedDict[str, float] | OrderedDict[str, dict[str, float]]) -> None:
    while len(remembered) > _REMEMBERED_MAX:
        remembered.popitem(last=False)
