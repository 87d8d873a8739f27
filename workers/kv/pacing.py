"""Senders of a link stay within its budget: a shared bucket, a local ceiling, a floor without it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from controlplane.config import LinkConfig
from controlplane.errors import StoreError
from controlplane.store.api import BudgetGrant, StateStore
from workers.kv.timing import Clock, Sleep

#: Bytes a sender takes from the shared bucket at once, at least: a store call for each 256 KiB.
_QUANTUM_BYTES_MIN: Final = 256 << 10
#: The same as a time: 20 store calls per second and sender, at any rate.
_QUANTUM_S: Final = 0.05
#: What one transfer sends before the next one has its turn: 10 ms of the rate, within bounds that
#: keep the cost of a turn low on fast links and turns short on slow ones.
_SLICE_S: Final = 0.01
_SLICE_BYTES_MIN: Final = 16 << 10
_SLICE_BYTES_MAX: Final = 256 << 10
#: Waits for budget are cut into pieces of at most and at least so many seconds.
_WAIT_S_MAX: Final = 1.0
_WAIT_S_MIN: Final = 0.001
#: An empty bucket is asked again after so many seconds at the earliest. Asked at once, it would
#: answer with the few bytes of a millisecond, for ever: a thousand calls a second.
_STORE_INTERVAL_S: Final = 0.02
#: After a failure the store is left alone for so long: at most two calls per second.
_STORE_PAUSE_S: Final = 0.5
#: What a sender sent on its floor it pays for when the store is back, up to so many quanta: all of
#: a moment without an answer, and little of a long outage, in which nobody had the budget.
_OWED_QUANTA_MAX: Final = 2


class TokenBucket:
    """
    At most `rate * w + burst` bytes in any window of `w` seconds. Pure but for its own state.

    Starts full. Time may not run backwards; if it does, nothing is refilled.
    """

    def __init__(self, *, rate_bytes_per_s: float, burst_bytes: int, now_s: float) -> None:
        self._rate_bytes_per_s = rate_bytes_per_s
        self._burst_bytes = burst_bytes
        self._level_bytes = float(burst_bytes)
        self._refilled_s = now_s

    def wait_s(self, want_bytes: int, now_s: float) -> float:
        """Seconds until `want_bytes` (at most the burst) are there; 0 when they are."""
        self._refill(now_s)
        return max(0.0, (want_bytes - self._level_bytes) / self._rate_bytes_per_s)

    def take(self, want_bytes: int, now_s: float) -> bool:
        """Take all of `want_bytes`, or nothing."""
        self._refill(now_s)
        if want_bytes > self._level_bytes:
            return False
        self._level_bytes -= want_bytes
        return True

    def _refill(self, now_s: float) -> None:
        elapsed_s = max(0.0, now_s - self._refilled_s)
        self._refilled_s += elapsed_s
        self._level_bytes = min(
            self._burst_bytes, self._level_bytes + elapsed_s * self._rate_bytes_per_s
        )


class LinkBudget(Protocol):
    """The token bucket that all senders of one link share."""

    async def take(self, want_bytes: int) -> BudgetGrant:
        """
        Take between 0 and `want_bytes`.

        Raises:
            StoreError: Nobody can say now; the caller has a floor of its own.
        """


class StoreLinkBudget:
    """The shared bucket of a link in the state store."""

    def __init__(self, store: StateStore, link: LinkConfig) -> None:
        self._store = store
        self._link = link

    async def take(self, want_bytes: int) -> BudgetGrant:
        """See `LinkBudget.take`."""
        return await self._store.take_link_budget(
            self._link.link_id,
            want_bytes=want_bytes,
            rate_bytes_per_s=self._link.capacity_bps / 8,
            burst_bytes=quantum_bytes(self._link),
        )


@dataclass(slots=True)
class LinkCounters:
    """Totals of one sender on one link since its start."""

    #: Bytes granted for sending, frame headers included.
    bytes_total: int = 0
    #: Of those, bytes sent on the floor because the store did not answer.
    floor_bytes_total: int = 0
    #: Seconds in which the next transfer in line waited for budget.
    wait_s_total: float = 0.0
    #: Calls for budget that the store failed.
    store_failures_total: int = 0


def quantum_bytes(link: LinkConfig) -> int:
    """Bytes taken ahead from a link's bucket, and its burst: 50 ms of the rate or 256 KiB. Pure."""
    return max(_QUANTUM_BYTES_MIN, int(link.capacity_bps / 8 * _QUANTUM_S))


class LinkPacer:
    """
    One process's sender side of a link, shared by all its transfers in the order they ask.

    Three things bound what `acquire` lets through: the shared budget, taken ahead in quanta; while
    the store is away, a floor of `capacity * floor_share` of this process alone; and in any case a
    local ceiling of the link's capacity, so that no answer of the store lets a single process send
    more than `rate * w + quantum_bytes` in a window of `w` seconds. Over all senders of a link the
    bound is `rate * w + quantum_bytes * (1 + senders)`: each may hold one quantum it took before.
    What a sender sends on its floor it takes from the shared bucket afterwards, so that a store
    that fails one of them now and then adds nothing to that but the two quanta it may owe.
    """

    def __init__(
        self,
        link: LinkConfig,
        budget: LinkBudget,
        *,
        floor_share: float,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        """
        Args:
            link: Capacity and emulated delay.
            budget: The bucket shared by all senders of the link.
            floor_share: Part of the capacity to use while the budget fails, 0 < share <= 1.
            clock: Monotonic seconds.
            sleep: Waits seconds of that clock.
        """
        self.link = link
        self.counters = LinkCounters()
        self.quantum_bytes = quantum_bytes(link)
        self._budget = budget
        self._clock = clock
        self._sleep = sleep
        self._rate_bytes_per_s = rate = link.capacity_bps / 8
        self._slice_bytes = int(min(_SLICE_BYTES_MAX, max(_SLICE_BYTES_MIN, rate * _SLICE_S)))
        now_s = clock()
        self._ceiling = TokenBucket(
            rate_bytes_per_s=rate, burst_bytes=self.quantum_bytes, now_s=now_s
        )
        self._floor = TokenBucket(
            rate_bytes_per_s=rate * floor_share, burst_bytes=self.quantum_bytes, now_s=now_s
        )
        #: Granted by the shared bucket and not yet used, at most one quantum.
        self._ahead_bytes = 0
        #: Sent on the floor and not yet taken from the shared bucket.
        self._owed_bytes = 0
        self._store_back_s = now_s
        #: asyncio's locks are first come, first served: that is the fairness among transfers.
        self._turn = asyncio.Lock()
        #: Transfers that requests wait for and that want a turn now; set while there is none.
        self._urgent = 0
        self._is_calm = asyncio.Event()
        self._is_calm.set()

    @property
    def delay_s(self) -> float:
        """Emulated one-way delay of the link, seconds."""
        return self.link.emulated_delay_ms / 1000

    @property
    def window_bytes(self) -> int:
        """Bytes that can be on their way when the link is full: rate times delay and one burst."""
        return int(self.link.capacity_bps / 8 * self.delay_s) + 2 * self.quantum_bytes

    @property
    def slice_bytes(self) -> int:
        """The most that a transfer may acquire in one turn."""
        return self._slice_bytes

    async def acquire(self, want_bytes: int, *, is_urgent: bool = True) -> None:
        """
        Wait for the turn and the budget of `want_bytes`, 0 <= `want_bytes` <= `slice_bytes`.

        Cancelling gives back what it had taken.

        Args:
            want_bytes: For one turn.
            is_urgent: A request waits for these bytes. Others take their turns only while none of
                those wants one.

        Raises:
            ValueError: More than `slice_bytes`.
        """
        if not 0 <= want_bytes <= self._slice_bytes:
            raise ValueError(f"a turn is 0 to {self._slice_bytes} bytes, got {want_bytes}")
        if is_urgent:
            with self._hurrying():
                async with self._turn:
                    await self._pass(want_bytes)
            return
        while True:
            await self._is_calm.wait()
            async with self._turn:
                # Somebody may have come while this one stood in line.
                if self._is_calm.is_set():
                    await self._pass(want_bytes)
                    return

    @contextmanager
    def _hurrying(self) -> Iterator[None]:
        self._urgent += 1
        self._is_calm.clear()
        try:
            yield
        finally:
            self._urgent -= 1
            if not self._urgent:
                self._is_calm.set()

    async def _pass(self, want_bytes: int) -> None:
        """Let a turn through. Holds the turn's lock."""
        began_s = self._clock()
        await self._take_budget(want_bytes)
        try:
            while not self._ceiling.take(want_bytes, self._clock()):
                await self._pause(self._ceiling.wait_s(want_bytes, self._clock()))
        except asyncio.CancelledError:
            self._ahead_bytes += want_bytes
            raise
        self.counters.wait_s_total += self._clock() - began_s
        self.counters.bytes_total += want_bytes

    async def _take_budget(self, want_bytes: int) -> None:
        """Make `_ahead_bytes` cover the turn and take it off, or let the floor pay for it."""
        while self._ahead_bytes < want_bytes:
            if self._clock() < self._store_back_s:
                if self._floor.take(want_bytes, self._clock()):
                    self.counters.floor_bytes_total += want_bytes
                    owed_max = _OWED_QUANTA_MAX * self.quantum_bytes
                    self._owed_bytes = min(owed_max, self._owed_bytes + want_bytes)
                    return
                await self._pause(self._floor.wait_s(want_bytes, self._clock()))
                continue
            room_bytes = self.quantum_bytes - self._ahead_bytes
            try:
                grant = await self._budget.take(room_bytes)
            except StoreError:
                self.counters.store_failures_total += 1
                self._store_back_s = self._clock() + _STORE_PAUSE_S
                continue
            granted_bytes = min(max(0, grant.granted_bytes), room_bytes)
            # For this sender alone the store was away: others may have had the whole budget.
            paid_bytes = min(granted_bytes, self._owed_bytes)
            self._owed_bytes -= paid_bytes
            self._ahead_bytes += granted_bytes - paid_bytes
            if (lack_bytes := want_bytes - self._ahead_bytes) > 0:
                # The store thinks of the whole quantum, the turn needs less.
                wait_s = min(grant.retry_after_s, lack_bytes / self._rate_bytes_per_s)
                await self._pause(max(_STORE_INTERVAL_S, wait_s))
        self._ahead_bytes -= want_bytes

    async def _pause(self, seconds: float) -> None:
        await self._sleep(min(_WAIT_S_MAX, max(_WAIT_S_MIN, seconds)))
