"""Who may begin now, who waits, and who is refused: bounded, fair between tenants, and cheap."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import chain
from typing import Final, TypeAlias

from controlplane.config import LimitsConfig
from controlplane.domain.cluster import ClusterView
from controlplane.domain.fair_queue import FairQueue, Pace, time_to_place_s
from controlplane.domain.sites import sites_of
from controlplane.errors import DeadlineExceeded, Shed
from controlplane.observe.metrics import RouterMetrics

#: A place is free, or the reason why there will be none.
_Waiter: TypeAlias = "asyncio.Future[None]"

#: Places may grow without a request ending, when a worker joins: looked at this often while
#: somebody waits.
_LOOK_S: Final = 0.1


class Admission:
    """
    The door of a router.

    At most `places()` requests run. The others wait their tenant's turn: at most
    `limits.queue_requests_max` of them, each for at most `limits.queue_wait_s`. One that is
    cancelled while it waits leaves nothing behind.
    """

    def __init__(
        self,
        *,
        limits: LimitsConfig,
        metrics: RouterMetrics,
        clock: Callable[[], float],
        places: Callable[[], int],
    ) -> None:
        """
        Args:
            limits: Bounds of the queue.
            metrics: Gets depth, waits and refusals.
            clock: Monotonic seconds, the one of the deadlines.
            places: Requests that may run now, >= 1; asked whenever one comes or goes.
        """
        self._limits = limits
        self._metrics = metrics
        self._clock = clock
        self._places = places
        self._queue: FairQueue[_Waiter] = FairQueue(limits.queue_requests_max)
        self._running = 0
        self._pace = Pace(clock())
        self._look: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Admission {self._running} running, {self._queue!r}>"

    @property
    def running(self) -> int:
        """Requests that have a place."""
        return self._running

    @property
    def waiting(self) -> int:
        """Requests that wait for one."""
        return len(self._queue)

    @asynccontextmanager
    async def place(self, tenant: str, *, deadline_s: float) -> AsyncIterator[float]:
        """
        A place for the length of a block; yields the seconds that were waited for it.

        See `enter` for arguments and errors.
        """
        waited_s = await self.enter(tenant, deadline_s=deadline_s)
        try:
            yield waited_s
        finally:
            self.leave()

    async def enter(self, tenant: str, *, deadline_s: float) -> float:
        """
        Wait for a place; who gets one must `leave()` once.

        Args:
            tenant: Whose turn it uses.
            deadline_s: When the request must be over, on the clock.

        Returns:
            Seconds waited, >= 0.

        Raises:
            Shed: The queue is full, or somebody with a smaller share took this one's place in it,
                or it waited for too long. With `retry_after_s`.
            DeadlineExceeded: The request's own time ended while it waited.
            asyncio.CancelledError: The client left; nothing is held.
        """
        if len(self._queue):
            self._pump()
        if not len(self._queue) and self._running < self._places():
            self._set_running(self._running + 1)
            self._metrics.queue_wait_seconds.observe(0.0)
            return 0.0
        began_s = self._clock()
        limit_s = min(deadline_s, began_s + self._limits.queue_wait_s)
        waiter = self._join(tenant, limit_s)
        try:
            async with asyncio.timeout(limit_s - began_s):
                await waiter
        except TimeoutError:
            # A place that came in the same turn of the loop is used: nobody else knows of it.
            if not (waiter.done() and not waiter.cancelled()):
                raise self._too_late(began_s, deadline_s) from None
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.leave(is_finished=False)
            raise
        finally:
            self._forget(waiter)
        waiter.result()
        waited_s = self._clock() - began_s
        self._metrics.queue_wait_seconds.observe(waited_s)
        return waited_s

    def leave(self, *, is_finished: bool = True) -> None:
        """
        Give a place back; the next in turn gets it.

        Args:
            is_finished: The request used its place: it counts for how fast places become free.
        """
        assert self._running > 0, "a place was given back twice"
        self._set_running(self._running - 1, has_ended=is_finished)
        self._pump()

    def retry_after_s(self) -> float:
        """
        What a refused client is asked to wait at least: the time until a place would be free.

        The edge adds up to as much again at random, so that refused clients do not come back in
        step.
        """
        return time_to_place_s(
            ahead=len(self._queue),
            per_s=self._pace.per_s(self._clock()),
            longest_s=self._limits.retry_after_max_s / 2,
        )

    # --- Inside -------------------------------------------------------------------------------

    def _join(self, tenant: str, limit_s: float) -> _Waiter:
        """
        Queue up.

        Raises:
            Shed: There is no room.
        """
        waiter: _Waiter = asyncio.get_running_loop().create_future()
        offered = self._queue.offer(tenant, waiter, deadline_s=limit_s)
        if not offered.is_taken:
            raise self._shed(
                "full", f"{self._running} requests run and {self.waiting} wait, the limit"
            )
        if offered.evicted is not None and not offered.evicted.done():
            offered.evicted.set_exception(
                self._shed("evicted", "others with fewer waiting requests came first")
            )
        self._metrics.queue_depth.set(self.waiting)
        self._pump()
        return waiter

    def _set_running(self, running: int, *, has_ended: bool = False) -> None:
        self._running = running
        self._pace = self._pace.now(self._clock(), running=running, has_ended=has_ended)

    def _pump(self) -> None:
        """Hand out free places."""
        while len(self._queue) and self._running < self._places():
            waiter = self._queue.take(self._clock())
            if waiter is None:
                break
            if not waiter.done():
                self._set_running(self._running + 1)
                waiter.set_result(None)
        self._metrics.queue_depth.set(self.waiting)
        self._look_again()

    def _look_again(self) -> None:
        """Keep one timer while somebody waits, and none otherwise."""
        if len(self._queue) and self._look is None:
            self._look = asyncio.get_running_loop().call_later(_LOOK_S, self._looked)
        elif not len(self._queue) and self._look is not None:
            self._look.cancel()
            self._look = None

    def _looked(self) -> None:
        self._look = None
        self._pump()

    def _forget(self, waiter: _Waiter) -> None:
        if self._queue.remove(waiter):
            self._metrics.queue_depth.set(self.waiting)
            self._look_again()

    def _too_late(self, began_s: float, deadline_s: float) -> Shed | DeadlineExceeded:
        waited_s = self._clock() - began_s
        if deadline_s <= began_s + self._limits.queue_wait_s:
            self._metrics.shed_total.labels("deadline").inc()
            return DeadlineExceeded(
                f"its time was over after {waited_s:.1f} s in the queue, before it was begun",
                retry_after_s=self.retry_after_s(),
            )
        return self._shed("waited", f"no place was free within {waited_s:.1f} s")

    def _shed(self, cause: str, why: str) -> Shed:
        self._metrics.shed_total.labels(cause).inc()
        return Shed(
            f"too many requests: {why}; try again later", retry_after_s=self.retry_after_s()
        )


def decode_places(view: ClusterView, *, requests_max: int) -> int:
    """
    Requests that may run at once: what the live decode workers take, at most the router's limit.

    At least 1: when no worker is left, a request must be let in to be told so. Pure.
    """
    taken = 0
    for site in sites_of(view):
        for pool in site.pools:
            if pool.kind.role != "decode":
                continue
            for worker in chain(pool.by_load, *pool.out.values()):
                taken += 0 if worker.is_draining else worker.requests_max
                if taken >= requests_max:
                    return max(1, requests_max)
    return max(1, taken)
