"""How many further attempts may run at the same time: a failure must not become a storm."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable


class RetryBudget:
    """
    Places for further attempts: a share of the requests in flight, and a floor.

    An attempt beyond them is not refused but waits, first come, first served: a worker that dies
    takes many streams at once, and each of them can be saved if they go one after the other. A
    place is held until the attempt has made its first token or has ended, because from then on it
    costs no more than any other request.
    """

    def __init__(self, *, share: float, floor: int, in_flight: Callable[[], int]) -> None:
        """
        An unused budget.

        Args:
            share: Further attempts per request in flight, 0 < share <= 1.
            floor: Places there always are, >= 1.
            in_flight: Requests in flight now.
        """
        self._share = share
        self._floor = floor
        self._in_flight = in_flight
        self._used = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    def __repr__(self) -> str:
        return f"<RetryBudget {self._used} of {self.limit}, {len(self._waiting)} waiting>"

    @property
    def limit(self) -> int:
        """Places now."""
        return max(self._floor, int(self._share * self._in_flight()))

    @property
    def used(self) -> int:
        """Places that are taken."""
        return self._used

    @property
    def waiting(self) -> int:
        """Attempts that wait for a place; each is a request in flight, so they are bounded."""
        return len(self._waiting)

    async def take(self, within_s: float) -> bool:
        """Take a place, waiting for it up to so many seconds; whether it was got."""
        if self._used < self.limit and not self._waiting:
            self._used += 1
            return True
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(within_s):
                await turn
        except TimeoutError:
            return self._left_the_queue(turn)
        except asyncio.CancelledError:
            if self._left_the_queue(turn):
                self.give_back()
            raise
        return True

    def give_back(self) -> None:
        """A further attempt is no more than a request now, or is over."""
        assert self._used > 0, "more places were given back than taken"
        self._used -= 1
        while self._waiting and self._used < self.limit:
            turn = self._waiting.popleft()
            if not turn.done():
                self._used += 1
                turn.set_result(None)

    def _left_the_queue(self, turn: asyncio.Future[None]) -> bool:
        """Whether the place was got in the very moment in which the waiting ended."""
        if turn.done() and not turn.cancelled():
            return True
        if turn in self._waiting:
            self._waiting.remove(turn)
        return False
