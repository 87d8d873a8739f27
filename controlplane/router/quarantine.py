"""
Which requests kill workers, told from requests that happened to be there when workers died.

A request is named by a digest of its content, so that its retries are known again, by whichever
router and after whichever restart of a worker.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

#: Requests and deaths that are remembered; the oldest are forgotten beyond that.
_REMEMBERED_MAX = 4096

#: A request must have been present at this part of all deaths of the time. Workers that die of
#: something else meet each request rarely; a poisonous one is there each time.
_GUILTY_SHARE = 0.5


class Quarantine:
    """Deaths of worker lives by the requests that ran there, of the last `window_s`."""

    def __init__(self, *, deaths_max: int, window_s: float, clock: Callable[[], float]) -> None:
        """
        Nobody is suspected.

        Args:
            deaths_max: Different worker lives that a request may have ended, >= 1.
            window_s: Deaths count, and a quarantine lasts, for so long.
            clock: Monotonic seconds.
        """
        self._deaths_max = deaths_max
        self._window_s = window_s
        self._clock = clock
        #: Worker lives that ended, and when.
        self._deaths: OrderedDict[str, float] = OrderedDict()
        #: By digest: the lives that ended while it ran there.
        self._present: OrderedDict[str, set[str]] = OrderedDict()
        #: Digests that are refused, and until when.
        self._until_s: OrderedDict[str, float] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Quarantine {len(self._until_s)} refused, {len(self._deaths)} deaths>"

    def died(self, incarnation: str) -> None:
        """A worker's process has ended, whoever was there."""
        self._forget_old()
        self._deaths.setdefault(incarnation, self._clock())
        _bound(self._deaths)

    def blame(self, digest: str, incarnation: str) -> None:
        """A request made no progress on a worker life, and that life ended."""
        self.died(incarnation)
        present = self._present.setdefault(digest, set())
        present.add(incarnation)
        self._present.move_to_end(digest)
        _bound(self._present)
        present &= self._deaths.keys()
        is_often = len(present) >= self._deaths_max
        if is_often and len(present) >= _GUILTY_SHARE * len(self._deaths):
            self._until_s[digest] = self._clock() + self._window_s
            self._until_s.move_to_end(digest)
            _bound(self._until_s)

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


def _bound(remembered: OrderedDict[str, float] | OrderedDict[str, set[str]]) -> None:
    while len(remembered) > _REMEMBERED_MAX:
        remembered.popitem(last=False)
