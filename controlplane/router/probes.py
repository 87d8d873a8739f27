"""
Asks workers themselves how they are while the store cannot tell.

A worker that dies, drains or starts anew while the store is away would be noticed only by the
requests that it fails. Once a second each known worker is asked, and what it answers counts as a
heartbeat, but for its prefix cache. The same when most workers are silent at once: a store that is
too slow for heartbeats must not make a fleet disappear. Else nobody is asked anything.

A router that starts while the store is away knows nobody: it asks whoever it knew in its life before
(`last_known.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Final, Literal, Protocol, TypeAlias

from controlplane.config_health import HealthConfig
from controlplane.observe.logs import get_logger
from controlplane.observe.metrics import RouterMetrics
from controlplane.router.last_known import LastAddress
from controlplane.router.view import ViewTracker
from controlplane.wire import WorkerBeat

_log = get_logger()

#: Intervals differ by so much, up or down, so that routers do not ask in step.
_JITTER: Final = 0.2

#: What a probe without a beat says: nobody listens there, nobody answered in time, or somebody is
#: there that cannot tell (a worker before 0.3).
NoBeat: TypeAlias = Literal["refused", "silent", "mute"]


class Prober(Protocol):
    """Asks one worker how it is."""

    async def ask(self, url: str) -> WorkerBeat | NoBeat:
        """
        What the process at a worker's URL says of itself; never raises for what it meets there.

        Bounded by `health.probe_timeout_s`.
        """

    async def close(self) -> None:
        """Close all connections; whoever is asked later is silent."""


class Probes:
    """The task that asks all workers while the store is away."""

    def __init__(
        self,
        prober: Prober,
        tracker: ViewTracker,
        metrics: RouterMetrics,
        config: HealthConfig,
        rng: Random,
        *,
        last_known: Callable[[], Sequence[LastAddress]] = tuple,
    ) -> None:
        """
        Nobody is asked before `run`.

        Args:
            prober: Asks one.
            tracker: Says who is known, and is told.
            metrics: Counts answers.
            config: How often, and how many at a time.
            rng: Spreads the asking.
            last_known: Who is asked besides those that are known.
        """
        self._prober = prober
        self._tracker = tracker
        self._metrics = metrics
        self._config = config
        self._rng = rng
        self._last_known = last_known

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            jitter = 1 + _JITTER * (2 * self._rng.random() - 1)
            await asyncio.sleep(self._config.probe_interval_s * jitter)
            if self._tracker.needs_probes:
                await self.ask_all()

    async def ask_all(self) -> None:
        """Ask each worker that is known or remembered once, so many at a time."""
        known, remembered = self._tracker.beats(), self._last_known()
        names = {beat.worker_id for beat in known}
        asked: list[WorkerBeat | LastAddress] = [*known]
        asked += (one for one in remembered if one.worker_id not in names)
        waiting = iter(asked)
        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._config.probes_max, len(asked))):
                group.create_task(self._ask_in_turn(waiting))

    async def _ask_in_turn(self, waiting: Iterator[WorkerBeat | LastAddress]) -> None:
        for one in waiting:
            answer = await self._prober.ask(one.url)
            if not self._tracker.needs_probes:
                # The store is back and knows more than this answer, which is as old as its way.
                return
            self._take(one, answer)

    def _take(self, asked: WorkerBeat | LastAddress, answer: WorkerBeat | NoBeat) -> None:
        said = answer if isinstance(answer, str) else "answered"
        self._metrics.probes_total.labels(said).inc()
        if isinstance(asked, LastAddress):
            if not isinstance(answer, str) and answer.worker_id == asked.worker_id:
                self._tracker.probed(asked.worker_id, answer)
                _log.info("worker.registered", worker=asked.worker_id)
        elif answer == "mute":
            self._tracker.alive(asked.worker_id, asked.incarnation)
        elif isinstance(answer, str):
            is_gone = self._tracker.probe_failed(
                asked.worker_id, asked.incarnation, is_refused=answer == "refused"
            )
            if is_gone:
                _log.warning("worker.lost", worker=asked.worker_id)
        elif self._tracker.probed(asked.worker_id, answer):
            _log.info("worker.registered", worker=asked.worker_id)
