"""Who waits for whom at a server that tells only when a request has ended."""

from __future__ import annotations

from collections.abc import Callable


class Turns:
    """
    Divides the time of each request into waiting and computing, as if the server took one at a time.

    That is how prefills run that fill the server by themselves; where it runs several at once,
    each is charged for its part of the time in which any of them ended.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last_end_s = clock()

    def take(self) -> Turn:
        """A request is sent now."""
        return Turn(self, self._clock())

    def ended(self, began_s: float) -> tuple[float, float]:
        """A request that began then has ended now: seconds of waiting, seconds of computing."""
        now_s = self._clock()
        start_s = min(now_s, max(began_s, self._last_end_s))
        self._last_end_s = now_s
        return start_s - began_s, now_s - start_s


class Turn:
    """One request's."""

    def __init__(self, turns: Turns, began_s: float) -> None:
        self._turns = turns
        self._began_s = began_s
        self._times_s: tuple[float, float] | None = None

    def times_s(self) -> tuple[float, float]:
        """It has ended well: seconds of waiting, seconds of computing."""
        if self._times_s is None:
            self._times_s = self._turns.ended(self._began_s)
        return self._times_s

    def end(self) -> None:
        """It has ended, well or not. Idempotent."""
        self.times_s()
