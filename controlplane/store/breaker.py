"""When to stop asking a store that does not answer."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

#: Replicas that lost the store together must not come back together.
PROBE_JITTER: Final = 0.2


class Breaker:
    """
    Circuit breaker: consecutive failures open it, then one probe at a time is let through.

    Probes are spaced by the clock and not by their outcome, so a probe that was cancelled and
    reports nothing delays the next one by nothing.
    """

    def __init__(
        self, *, failures_max: int, probe_s: float, clock: Callable[[], float], rng: Random
    ) -> None:
        """
        A closed breaker.

        Args:
            failures_max: Consecutive failures that open it, >= 1.
            probe_s: Mean seconds between two probes while open, > 0; each +- 20 %.
            clock: Monotonic seconds.
            rng: Source of the jitter.
        """
        self._failures_max = failures_max
        self._probe_s = probe_s
        self._clock = clock
        self._rng = rng
        self._failures = 0
        self._probe_at = 0.0
        #: Times it went from closed to open.
        self.opened_total = 0

    def __repr__(self) -> str:
        return f"<Breaker {'open' if self.is_open else 'closed'}, {self._failures} failures>"

    @property
    def is_open(self) -> bool:
        """Calls are refused, but for probes."""
        return self._failures >= self._failures_max

    @property
    def probe_in_s(self) -> float:
        """Seconds until a call may pass; 0 while closed."""
        return max(0.0, self._probe_at - self._clock()) if self.is_open else 0.0

    def allows(self) -> bool:
        """Whether a call may go out now. While open, True means: this call is the probe."""
        if not self.is_open:
            return True
        if self._clock() < self._probe_at:
            return False
        self._schedule_probe()
        return True

    def succeeded(self) -> None:
        """A call was answered."""
        self._failures = 0

    def failed(self) -> None:
        """A call was not answered."""
        was_open = self.is_open
        self._failures += 1
        if self.is_open and not was_open:
            self.opened_total += 1
            self._schedule_probe()

    def _schedule_probe(self) -> None:
        spread = self._rng.uniform(1 - PROBE_JITTER, 1 + PROBE_JITTER)
        self._probe_at = self._clock() + self._probe_s * spread
