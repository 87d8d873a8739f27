"""
The workers a router knows, kept in order, so that a change costs what changed and no more.

A view is asked for with every request, and of a thousand workers one or two have changed since the
last one: those are looked at anew and put in their places.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterator
from random import Random
from typing import TypeAlias

from controlplane.domain.cluster import WorkerView
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
from controlplane.router.known import KnownWorker, Pool

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
        self._order: list[str] = []
        self._place: dict[str, int] = {}
        self._views: list[WorkerView] = []
        self._tuple: tuple[WorkerView, ...] | None = ()
        #: Workers whose view has to be made anew, in the order they changed.
        self._stale: dict[str, None] = {}
        self._pools: dict[Pool, dict[str, KnownWorker]] = {}
        self._doubtful: dict[Pool, None] = {}
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
        insort(self._order, worker_id)
        self._moved()
        self._join(known)
        self.touch(worker_id)

    def remove(self, worker_id: str) -> bool:
        """Forget a worker; false when it was not there."""
        known = self._known.pop(worker_id, None)
        if known is None:
            return False
        self._order.remove(worker_id)
        self._stale.pop(worker_id, None)
        self._leave(known, known.pool)
        self._moved()
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
        due = [name for name, known in self._known.items() if known.due_s <= now_s]
        self._stale.update(dict.fromkeys(due))
        return bool(due)

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

    def views(self, now_s: float, heard_s: float) -> tuple[WorkerView, ...]:
        """As policies see them, sorted by id; the same tuple until something changes."""
        if len(self._views) != len(self._order):
            self._rearrange(now_s, heard_s)
        self._renew(now_s, heard_s)
        if self._doubtful:
            self._weigh()
            self._renew(now_s, heard_s)
        if self._tuple is None:
            self._tuple = tuple(self._views)
        return self._tuple

    # --- Inside -------------------------------------------------------------------------------

    def _renew(self, now_s: float, heard_s: float) -> None:
        if not self._stale:
            return
        stale, self._stale = self._stale, {}
        self._tuple = None
        for worker_id in stale:
            known = self._known[worker_id]
            self._views[self._place[worker_id]] = self._look(known, now_s, heard_s)

    def _look(self, known: KnownWorker, now_s: float, heard_s: float) -> WorkerView:
        before = known.state
        view = known.look(now_s, heard_s, self.rules)
        if known.state != before:
            self._doubtful[known.pool] = None
            if self._on_state is not None:
                self._on_state(view.worker_id, view.incarnation, before, known.state)
        return view

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

    def _moved(self) -> None:
        """Places are counted anew when somebody asks for them."""
        self._views = []
        self._tuple = None

    def _rearrange(self, now_s: float, heard_s: float) -> None:
        self._place = {worker_id: place for place, worker_id in enumerate(self._order)}
        known = [self._known[worker_id] for worker_id in self._order]
        self._views = [one.view or self._look(one, now_s, heard_s) for one in known]
