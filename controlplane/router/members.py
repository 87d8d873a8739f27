"""
The workers a router knows, kept in order, so that a change costs what changed and no more.

A view is asked for with every request, and of thousands of workers a few have changed since the
last one: those are looked at anew and put in their places (`domain/sites.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from random import Random
from typing import Final, TypeAlias

from controlplane.domain.health import (
    HealthRules,
    Outcome,
    WorkerState,
    after,
    deserves_ejection,
    ejected,
    is_panic,
    may_eject,
)
from controlplane.domain.sites import Site, SiteKeeper
from controlplane.router.known import KnownWorker, Pool

#: Times that have moved since are cleared away when there are so many entries for each worker.
_DUE_EACH: Final = 8
_DUE_MIN: Final = 1024

#: Told when a worker is another one than before: its id, its incarnation, from what, to what.
OnState: TypeAlias = Callable[[str, str, WorkerState, WorkerState], None]


class Members:
    """Known workers by id, and their views in order."""

    def __init__(self, rules: HealthRules, rng: Random, on_state: OnState | None) -> None:
        """
        Nobody yet.

        Args:
            rules: What makes a worker suspect, ejected, needed.
            rng: Spreads the ends of ejections.
            on_state: Told of every change of state.
        """
        self.rules = rules
        self._rng = rng
        self._on_state = on_state
        self._known: dict[str, KnownWorker] = {}
        #: As policies saw them last, by datacenter and kind.
        self.keeper = SiteKeeper()
        #: Workers whose view has to be made anew, in the order they changed.
        self._stale: dict[str, None] = {}
        self._pools: dict[Pool, dict[str, KnownWorker]] = {}
        self._doubtful: dict[Pool, None] = {}
        #: When to look at whom again, the next first; entries of times that have moved are left in.
        self._due: list[tuple[float, str]] = []
        #: Grows when a worker comes, goes, or is another one than before.
        self.generation = 0

    def __repr__(self) -> str:
        return f"<Members {len(self._known)} in {len(self._pools)} pools>"

    def __len__(self) -> int:
        return len(self._known)

    def __iter__(self) -> Iterator[KnownWorker]:
        return iter(self._known.values())

    def get(self, worker_id: str) -> KnownWorker | None:
        """A worker, whatever its incarnation."""
        return self._known.get(worker_id)

    def living(self, worker_id: str, incarnation: str) -> KnownWorker | None:
        """A worker, if it is still this very process."""
        known = self._known.get(worker_id)
        return known if known is not None and known.beat.incarnation == incarnation else None

    def add(self, known: KnownWorker) -> None:
        """Take a worker that is not there."""
        worker_id = known.beat.worker_id
        self._known[worker_id] = known
        self._join(known)
        self.touch(worker_id)

    def remove(self, worker_id: str) -> bool:
        """Forget a worker; false when it was not there."""
        known = self._known.pop(worker_id, None)
        if known is None:
            return False
        self.keeper.drop(worker_id)
        self._stale.pop(worker_id, None)
        self._leave(known, known.pool)
        return True

    def moved_pool(self, known: KnownWorker, before: Pool) -> None:
        """A worker says that it is of another kind than before."""
        self._leave(known, before)
        self._join(known)

    def touch(self, worker_id: str) -> None:
        """Something of a worker has changed."""
        self._stale[worker_id] = None

    def touch_all(self) -> None:
        """Something of all workers has changed."""
        self._stale = dict.fromkeys(self._known)

    def touch_due(self, now_s: float) -> bool:
        """Whether time alone has changed a worker."""
        is_changed = False
        while self._due and self._due[0][0] <= now_s:
            due_s, worker_id = heappop(self._due)
            known = self._known.get(worker_id)
            if known is not None and known.due_s == due_s:
                self._stale[worker_id] = None
                is_changed = True
        return is_changed

    def judge(self, known: KnownWorker, outcome: Outcome, now_s: float) -> bool:
        """Take in how a request ended; whether that changes what policies see."""
        before = known.health
        health = after(before, outcome, now_s, self.rules)
        if deserves_ejection(health, now_s, self.rules):
            pool = self._pools[known.pool]
            out = sum(now_s < one.health.ejected_until_s for one in pool.values())
            if may_eject(len(pool), out, self.rules):
                health = ejected(health, now_s, self.rules, chance=self._rng.random())
        known.health = health
        is_seen = (
            health.suspect_until_s != before.suspect_until_s
            or health.ejected_until_s != before.ejected_until_s
        )
        if is_seen:
            self.touch(known.beat.worker_id)
        return is_seen

    def sites(self, now_s: float, heard_s: float) -> tuple[Site, ...]:
        """As policies see them, by datacenter and kind; the same tuple until something changes."""
        self._renew(now_s, heard_s)
        if self._doubtful:
            self._weigh()
            self._renew(now_s, heard_s)
        return self.keeper.sites()

    # --- Inside -------------------------------------------------------------------------------

    def _renew(self, now_s: float, heard_s: float) -> None:
        if not self._stale:
            return
        stale, self._stale = self._stale, {}
        for worker_id in stale:
            self._look(self._known[worker_id], now_s, heard_s)

    def _look(self, known: KnownWorker, now_s: float, heard_s: float) -> None:
        before = known.state
        view = known.look(now_s, heard_s, self.rules)
        self.keeper.put(view)
        self._expect(known)
        if known.state != before:
            self._doubtful[known.pool] = None
            if self._on_state is not None:
                self._on_state(view.worker_id, view.incarnation, before, known.state)

    def _expect(self, known: KnownWorker) -> None:
        """Look at a worker again when time alone may have changed it."""
        if known.due_s == math.inf:
            return
        heappush(self._due, (known.due_s, known.beat.worker_id))
        if len(self._due) > _DUE_MIN + _DUE_EACH * len(self._known):
            # Most are of times that have moved since.
            now = {(one.due_s, one.beat.worker_id) for one in self._known.values()}
            self._due = [entry for entry in now if entry[0] < math.inf]
            heapify(self._due)

    def _weigh(self) -> None:
        """Whether the workers of a pool in doubt are needed in spite of it."""
        doubtful, self._doubtful = self._doubtful, {}
        for pool in doubtful:
            members = self._pools.get(pool, {}).values()
            staying = [known for known in members if known.state != "draining"]
            available = sum(known.state in {"healthy", "warming"} for known in staying)
            is_needed = is_panic(len(staying), available, self.rules)
            for known in members:
                if known.is_needed != is_needed:
                    known.is_needed = is_needed
                    self.touch(known.beat.worker_id)

    def _join(self, known: KnownWorker) -> None:
        self._pools.setdefault(known.pool, {})[known.beat.worker_id] = known
        self._doubtful[known.pool] = None
        self.generation += 1

    def _leave(self, known: KnownWorker, pool: Pool) -> None:
        members = self._pools[pool]
        del members[known.beat.worker_id]
        if not members:
            del self._pools[pool]
        self._doubtful[pool] = None
        self.generation += 1
