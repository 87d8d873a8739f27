"""Watches that an engine which has something to do does something."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from workers.engine import Engine, EngineCounters

#: Looks in the time after which an engine counts as stuck.
_LOOKS: Final = 10


class EngineWatch:
    """
    Says that an engine hangs: jobs wait for it and its counters stand still, or it says so itself.

    Looks are counted instead of seconds, so that a process that was stopped and goes on does not
    take its own pause for one of the engine. A stuck engine counts as that until it has finished
    something, whether or not anybody waits for it meanwhile.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        waiting: Callable[[], int],
        stall_s: float,
        on_change: Callable[[bool], None],
    ) -> None:
        """
        Args:
            engine: What is watched.
            waiting: Jobs that wait for the engine now.
            stall_s: Time without progress after which it hangs, seconds > 0.
            on_change: Called with whether it hangs, each time that changes.
        """
        self._engine = engine
        self._waiting = waiting
        self._interval_s = stall_s / _LOOKS
        self._on_change = on_change
        self._seen: EngineCounters | None = None
        self._looks = 0
        self._is_stalled = False

    def __repr__(self) -> str:
        return f"<EngineWatch {'stalled' if self._is_stalled else 'well'}>"

    @property
    def is_stalled(self) -> bool:
        """Whether the engine hangs."""
        return self._is_stalled

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            self.look()

    def look(self) -> None:
        """Compare with the last look."""
        counters = self._engine.counters()
        has_moved = counters != self._seen
        self._seen = counters
        if has_moved:
            self._looks = 0
        elif self._waiting():
            self._looks += 1
        elif not self._is_stalled:
            self._looks = 0
        is_stalled = self._looks >= _LOOKS or self._engine.failure() is not None
        if is_stalled != self._is_stalled:
            self._is_stalled = is_stalled
            self._on_change(is_stalled)
