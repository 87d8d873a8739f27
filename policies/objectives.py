"""
What becomes of a request that cannot be in time: it is kept out of the way of those that can.

In an overloaded fleet the least TTFT for each request spreads lateness evenly: every queue grows beyond
the objective, and nobody is in time. A request that is late anyway loses little by being later, so it
goes where it takes the least from others: behind the queue that is too long already.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from controlplane.domain.cluster import ClusterView, WorkerView
from controlplane.domain.estimate import queue_time_s
from policies.costs import Costed
from policies.search import Feasible, best_of_sites, order_of

_BITS: Final = 8
#: Sorts behind every id.
_BEHIND: Final = chr(0x10FFFF)


@dataclass(frozen=True, slots=True)
class Objective:
    """What first tokens should take, and how much longer others may be made to wait for it."""

    #: Within which a request is in time, seconds.
    ttft_s: float
    #: A worker with more before it gets no late request, as long as another has less; seconds.
    late_s: float

    def nominate(self, feasible: Feasible, rng: Random) -> list[WorkerView]:
        """The best worker of each datacenter, and of each pool the one with the longest queue."""
        found = {one.worker_id: one for one in best_of_sites(feasible, rng)}
        for group in feasible.groups:
            within = bisect_right(group.by_load, (False, self.late_s, _BEHIND), key=order_of)
            if within:
                worker = group.by_load[within - 1]
                found[worker.worker_id] = worker
        return list(found.values())

    def least_taken(
        self, ranked: Sequence[Costed], view: ClusterView, decode: WorkerView
    ) -> tuple[Costed, float]:
        """
        The placement that takes the least from requests that can be in time, and how much.

        Of those that take as little, the one that waits longest: the fewer workers are too late, the
        more are in time.

        Args:
            ranked: What there is, in order of cost; none of it is in time.
            view: For the links.
            decode: Where it would be decoded.
        """
        taken_s = {id(one): self._taken_s(one, view, decode) for one in ranked}

        def rank(one: Costed) -> tuple[float, float, float, str]:
            queue_s = one.option.prediction.queue_s
            over_s = max(0.0, queue_s - self.late_s)
            return (over_s, taken_s[id(one)], -queue_s, one.option.worker.worker_id)

        best = min(ranked, key=rank)
        return best, taken_s[id(best)]

    def _taken_s(self, one: Costed, view: ClusterView, decode: WorkerView) -> float:
        """Seconds of a worker and of a link within the objective; what is beyond it is lost already."""
        it, worker = one.option.prediction, one.option.worker
        # Of a whole worker: lent time is less than it lasts.
        taken_s = min(it.prefill_s, self._room_s(queue_time_s(worker))) * worker.lent_part
        link = view.link(worker.datacenter, decode.datacenter)
        if link is not None and worker.datacenter != decode.datacenter:
            promised_s = link.reserved_bytes * _BITS / link.rate_bps
            moving_s = it.transfer_bytes * _BITS / link.rate_bps
            taken_s += min(moving_s, self._room_s(promised_s))
        return taken_s

    def _room_s(self, waiting_s: float) -> float:
        return max(0.0, self.ttft_s - waiting_s)
