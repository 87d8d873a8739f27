"""
How soon any policy at all could be rid of what trouble has left: a bound that follows from prices.

The throughput model's shadow prices value a second of each worker and a byte of each link. A request
takes at least the value of its cheapest placement, and a fleet gives no more than the value of all it
has; so what came, at its least value, takes at least so long, whoever places it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from controlplane.domain.cluster import link_id
from controlplane.domain.plan import ShadowPrices
from controlplane.replay.spec import Change, Loss, WorkerSpec, WorldSpec
from controlplane.replay.traces.request import TraceRequest

#: Steps in which the backlog is looked at, seconds.
_STEP_S: Final = 1.0
_BITS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Disruption:
    """A fleet, its prices, and what is out for a while."""

    world: WorldSpec
    #: Of the throughput model's optimum for the same fleet.
    prices: ShadowPrices
    #: Workers that are lost and links that are cut, from `began_s` to `ended_s`.
    out: Collection[str] = ()
    began_s: float
    ended_s: float

    def value(self, tokens: int, *, out: Collection[str] = ()) -> float:
        """
        What the cheapest placement of a prompt takes, in requests of the mean length, > 0.

        Decode is left out: it is the same for all placements, and limits nothing at 3 and 5 workers.

        Args:
            tokens: Of the prompt; nothing of it is cached.
            out: Workers and links that cannot be used.
        """
        values: dict[str, float] = {}
        for worker in self.world.workers:
            prefill, site = worker.hardware.prefill, worker.datacenter
            if prefill is None or site in values or not self._can_take(worker, out):
                continue
            values[site] = self.prices.prefill_per_s.get(site, 0.0) * prefill.prefill_s(tokens)
            if site != self.world.home:
                pair = link_id(site, self.world.home)
                per_byte = self.prices.link_per_byte.get(pair, 0.0)
                values[site] += per_byte * worker.hardware.kv.segment_bytes(tokens)
        return min(values.values())

    def gives_per_s(self, *, out: Collection[str] = ()) -> float:
        """The value of all workers and links in a second: of the whole fleet, its throughput."""
        gives = sum(
            self.prices.prefill_per_s.get(worker.datacenter, 0.0)
            for worker in self.world.workers
            if self._can_take(worker, out)
        )
        for link in self.world.links:
            if link.link_id not in out:
                price = self.prices.link_per_byte.get(link.link_id, 0.0)
                gives += price * link.capacity_bps / _BITS
        return gives

    def least_s(self, requests: Iterable[TraceRequest], *, waits_s: float) -> float | None:
        """
        From its end until nobody has to wait longer than usual, by any policy that keeps to the order.

        What was placed may be moved, as if each request was placed when its prefill begins.

        Args:
            requests: In order of time; nobody waits when the trouble begins.
            waits_s: What is usual: requests that came within it may still wait.

        Returns:
            Seconds, in whole steps; None when there are no requests any more before that.
        """
        left = 0.0
        #: Those that came a moment ago.
        late: deque[tuple[float, float]] = deque()
        for now_s, came in self._steps(requests):
            out = self.out if now_s <= self.ended_s else ()
            late.extend(came)
            left += sum(value for _, value in came)
            left = max(0.0, left - self.gives_per_s(out=out) * _STEP_S)
            while late and late[0][0] <= now_s - waits_s:
                late.popleft()
            if now_s >= self.ended_s and left <= sum(value for _, value in late):
                return now_s - self.ended_s
        return None

    def placed_s(self, requests: Iterable[TraceRequest]) -> float:
        """
        From its end until all is served that was placed meanwhile, where nothing is moved any more.

        Only what was left to place it on works at it, evenly.
        """
        came = [one for one in requests if self.began_s <= one.at_s < self.ended_s]
        gives = self.gives_per_s(out=self.out)
        placed = sum(self.value(one.input_tokens, out=self.out) for one in came)
        return max(0.0, placed / gives - (self.ended_s - self.began_s))

    def _steps(
        self, requests: Iterable[TraceRequest]
    ) -> Iterator[tuple[float, Sequence[tuple[float, float]]]]:
        """Ends of steps, and when what came within each did, with its value."""
        now_s, came = self.began_s + _STEP_S, list[tuple[float, float]]()
        for one in requests:
            if one.at_s < self.began_s:
                continue
            while one.at_s > now_s:
                yield now_s, came
                now_s, came = now_s + _STEP_S, []
            came.append((one.at_s, self.value(one.input_tokens)))

    def _can_take(self, worker: WorkerSpec, out: Collection[str]) -> bool:
        """Whether a worker prefills, and the router reaches it: what is behind a cut link it does not."""
        is_cut_off = link_id(worker.datacenter, self.world.home) in out
        return worker.role == "prefill" and worker.worker_id not in out and not is_cut_off


def out_at(changes: Iterable[Change], at_s: float) -> frozenset[str]:
    """Workers that are lost and links that are cut by changes of this moment."""
    out: set[str] = set()
    for change in changes:
        if change.at_s != at_s:
            continue
        if isinstance(change, Loss):
            out.update(change.workers)
        elif change.capacity_bps <= 0:
            out.add(change.link)
    return frozenset(out)
