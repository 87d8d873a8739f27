"""
The order of one source's batches: gaps, replays, and servers that begin anew. Pure.

What is missed may be a removal, so nothing that a source told before a gap is believed after it unless
the gap is closed. Live batches wait while a replay runs: a removal that came before the storing it
undoes would bring a dead block back.
"""

from __future__ import annotations

from typing import Final, TypeAlias

#: One thing to do: take a batch, or (None) forget all that the source has told.
Step: TypeAlias = bytes | None

#: Live batches that wait for a replay; more of them, and it is asked for again. An engine's own ring
#: has 10,000.
LIVE_MAX: Final = 10_000


class EventOrder:
    """One source. Used as `live`, `replayed` and `replay_ended` are heard."""

    def __init__(self, *, can_replay: bool) -> None:
        """
        Args:
            can_replay: The source answers questions for batches of the past.
        """
        self._can_replay = can_replay
        #: Last batch taken.
        self._last: int | None = None
        #: Last one that came live: a lower one after it is of another life.
        self._last_live: int | None = None
        self._waiting: list[tuple[int, bytes]] = []
        #: First batch that a replay has to bring; None while none is needed.
        self.replay_from: int | None = None
        #: Batches were lost for good, so often.
        self.losses_total = 0
        self.restart()

    def __repr__(self) -> str:
        return f"<EventOrder at {self._last}, replay from {self.replay_from}>"

    def restart(self) -> None:
        """The source begins a new life; what it told is void. Its past is asked for from 0."""
        self._last = self._last_live = None
        self._waiting.clear()
        self.replay_from = 0 if self._can_replay else None

    def live(self, number: int, payload: bytes) -> list[Step]:
        """A batch has come as it was made."""
        if self._last_live is not None and number <= self._last_live:
            self.restart()
            return [None, *self.live(number, payload)]
        self._last_live = number
        if self.replay_from is not None:
            if len(self._waiting) >= LIVE_MAX:
                self.restart()
                return [None]
            self._waiting.append((number, payload))
            return []
        if self._last is not None and number > self._last + 1 and self._can_replay:
            self.replay_from = self._last + 1
            self._waiting.append((number, payload))
            return []
        return self._take(number, payload)

    def replayed(self, number: int, payload: bytes) -> list[Step]:
        """A batch of the past has come."""
        if self.replay_from is None or number < self.replay_from:
            return []
        self.replay_from = number + 1
        return self._take(number, payload)

    def replay_ended(self) -> list[Step]:
        """The past is complete, or all that can be had of it."""
        self.replay_from = None
        waiting, self._waiting = self._waiting, []
        return [step for one in waiting for step in self._take(*one)]

    def _take(self, number: int, payload: bytes) -> list[Step]:
        last = self._last
        if last is not None and number <= last:
            # It came by replay already.
            return []
        self._last = number
        if last is None or number == last + 1:
            return [payload]
        self.losses_total += 1
        return [None, payload]
