"""
Finds the workers worth looking at: the few with the least to do, and those with cached prefixes.

A pool is in order of load, and its workers are alike but for caches and a tenth of their speed. So
the best is among the first of it or among those with a hit, however many workers there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import nlargest
from random import Random
from typing import Final

from controlplane.domain.cluster import RECORDED_WORKERS_MAX, ClusterView, WorkerView
from controlplane.domain.decision import RequestFeatures
from controlplane.domain.estimate import prefill_time_s
from controlplane.domain.prefix import PrefixHit
from controlplane.domain.prefix_hits import Hits, SharedHits, rank_of
from controlplane.domain.sites import Load, filing_of, share_of
from policies.survey import Group

#: Workers that are looked at altogether in a large cluster, and at least in each pool of it.
_LOOKS_MAX: Final = 32
_LOOKS_MIN: Final = 2
#: Of all that hold something of a prompt, so many are looked at: those with the longest hits.
HOLDERS_MAX: Final = 64
#: Workers of each pool, those with the least to do, that are asked whether they are of the crowd that
#: holds a prompt: a crowd has a part of all workers that makes one in so many.
_CROWD_LOOKS: Final = 8
#: Measured speeds of equal workers differ by this much.
_SPEEDS_DIFFER: Final = 0.1
_BITS: Final = 8


def looks(view: ClusterView, pools: int) -> int:
    """
    Workers to look at in each pool.

    A view that a record keeps as a whole is small enough to look at all.
    """
    if view.size <= RECORDED_WORKERS_MAX:
        return RECORDED_WORKERS_MAX
    return max(_LOOKS_MIN, _LOOKS_MAX // max(1, pools))


def least_busy(group: Group, count: int, rng: Random) -> Sequence[WorkerView]:
    """
    The workers of a group with the least to do, the first of them first.

    Args:
        group: Whose workers can take the request.
        count: How many, > 0.
        rng: Chooses among more than `count` that have equally little to do.
    """
    by_load = group.by_load
    if len(by_load) <= count:
        return by_load
    equal = group.idlest
    if equal <= count:
        return by_load[:count]
    start = rng.randrange(equal)
    end = start + count
    return by_load[start:end] if end <= equal else by_load[start:equal] + by_load[: end - equal]


def order_of(worker: WorkerView) -> Load:
    """What its pool is in order of."""
    return filing_of(worker)[2]


def crowd_min(view: ClusterView) -> int:
    """Holders of one prompt that are so many that some are among the first of most pools."""
    return view.size // _CROWD_LOOKS


def find_holders(request: RequestFeatures, view: ClusterView, groups: Sequence[Group]) -> None:
    """
    Tell each group which of its workers hold something of the prompt and can take it.

    Of more than `HOLDERS_MAX`, those that hold most of it; where that is a crowd, those of it that have
    the least to do.
    """
    hits = request.prefix_hits
    if not hits:
        return
    names, crowd = _longest(hits, view)
    sites: dict[str, list[Group]] = {}
    for group in groups:
        group.crowd = crowd
        sites.setdefault(group.datacenter, []).append(group)
    find = view.find
    for name in names:
        worker = find(name)
        if worker is None:
            continue
        kind, standing, _ = filing_of(worker)
        if standing is None:
            # Of a datacenter there are few, which are compared sooner than looked up.
            for group in sites[worker.datacenter]:
                if group.pool.kind == kind:
                    group.hold(worker, hits[name].resumable_tokens)
                    break


def _longest(hits: Hits, view: ClusterView) -> tuple[Iterable[str], PrefixHit | None]:
    """Who holds most of the prompt, and what a crowd holds that is not among them."""
    if isinstance(hits, SharedHits):
        return hits.longest(HOLDERS_MAX, crowd_min=crowd_min(view))
    if len(hits) <= HOLDERS_MAX:
        return hits, None
    lengths = [(hit.resumable_tokens, hit.attention_tokens, name) for name, hit in hits.items()]
    return [name for _, _, name in nlargest(HOLDERS_MAX, lengths)], None


def _add_of_crowd(group: Group, crowd: PrefixHit, hits: Hits) -> None:
    """Add a holder with little to do: so many hold it that one is among the first of a pool."""
    best, best_rank = None, (0, 0)
    for worker in group.by_load[:_CROWD_LOOKS]:
        hit = hits.get(worker.worker_id)
        if hit is not None and rank_of(hit) > best_rank:
            best, best_rank = worker, rank_of(hit)
            if best_rank >= rank_of(crowd):
                break  # Those behind it have more to do, and the few that hold more are known.
    if best is not None:
        group.hold(best, best_rank[0])


def worth_a_look(group: Group, looks: int, hits: Hits, rng: Random) -> Sequence[WorkerView]:
    """Whom to look at in a group: holders of the prompt, then those least busy; some come twice."""
    if group.crowd is not None:
        _add_of_crowd(group, group.crowd, hits)
        group.crowd = None
    others = least_busy(group, looks, rng)
    return [*group.held, *others] if group.held else others


def pick_decode(
    request: RequestFeatures,
    view: ClusterView,
    groups: Sequence[Group],
    rng: Random,
) -> WorkerView | None:
    """
    The decode worker: near the router, with a free slot, holding most of the prompt, least busy.

    Decode stays in the router's datacenter when any worker there can take the request. A worker that
    warms up counts as busier, and with fewer slots, than it is.

    Args:
        request: What has to be placed.
        view: The cluster.
        groups: Of decode workers, in order; those that nobody can feed are barred.
        rng: Chooses among equals.
    """
    feasible = [group for group in groups if group.is_feasible]
    near = [group for group in feasible if group.datacenter == view.home_datacenter]
    feasible = near or feasible
    if not feasible:
        return None
    count, hits = looks(view, len(feasible)), request.prefix_hits
    best: tuple[bool, int, float] | None = None
    tied: dict[str, WorkerView] = {}
    for group in feasible:
        for worker in worth_a_look(group, count, hits, rng):
            _, _, (must_wait, load, worker_id) = filing_of(worker)
            hit = hits.get(worker_id)
            key = (must_wait, 0 if hit is None else -hit.attention_tokens, load)
            if best is None or key < best:
                best, tied = key, {worker_id: worker}
            elif key == best:
                tied[worker_id] = worker
    return by_chance(tied, rng)


def by_chance(tied: dict[str, WorkerView], rng: Random) -> WorkerView:
    """One of equal workers, by id; nothing is drawn where there is one alone."""
    if len(tied) == 1:
        return next(iter(tied.values()))
    names = sorted(tied)
    return tied[names[rng.randrange(len(names))]]


@dataclass(slots=True)
class Feasible:
    """The prefill workers that could take a request and hand over to its decode worker."""

    request: RequestFeatures
    view: ClusterView
    decode: WorkerView
    #: Each with somebody in it, in order of datacenter and kind.
    groups: Sequence[Group]
    #: Workers to look at in each group.
    looks: int

    def __len__(self) -> int:
        return sum([len(group.by_load) for group in self.groups])

    def __getitem__(self, number: int) -> WorkerView:
        """One of them by number, in order of datacenter, kind and id."""
        for group in self.groups:
            if number < len(group.by_load):
                return group.able[number]
            number -= len(group.by_load)
        raise IndexError(number)

    def looked_at(self, rng: Random) -> Iterator[WorkerView]:
        """The workers worth looking at, each once."""
        for group in self.groups:
            looks = worth_a_look(group, self.looks, self.request.prefix_hits, rng)
            yield from {one.worker_id: one for one in looks}.values()

    def by_site(self) -> dict[str, tuple[int, int]]:
        """For each datacenter how many of them there are, and the fewest uncached tokens of any."""
        hits, prefill_tokens = self.request.prefix_hits, self.request.prefill_tokens
        # All holders are known one by one, unless there are too many of them.
        looks = 0 if len(hits) <= HOLDERS_MAX else self.looks
        sites: dict[str, tuple[int, int]] = {}
        for group in self.groups:
            count, fewest = sites.get(group.datacenter, (0, prefill_tokens))
            fewest = min(fewest, max(0, prefill_tokens - group.held_tokens))
            for one in group.by_load[:looks] if looks else ():
                hit = hits.get(one.worker_id)
                if hit is not None:
                    fewest = min(fewest, max(0, prefill_tokens - hit.resumable_tokens))
            sites[group.datacenter] = (count + len(group.by_load), fewest)
        return sites


def best_of_sites(feasible: Feasible, rng: Random) -> list[WorkerView]:
    """
    For each datacenter the worker with the least predicted TTFT, divided by its share; one of several
    idle ones whose speeds are alike.

    Args:
        feasible: Who could take the request.
        rng: Chooses among equals.
    """
    best: dict[str, _Best] = {}
    lacking_tokens = feasible.request.lacking_tokens(feasible.decode.worker_id)
    for group in feasible.groups:
        site = best.get(group.datacenter)
        if site is None:
            site = best[group.datacenter] = _Best()
        _look(feasible, group, lacking_tokens, site, rng)
    return [by_chance(site.equals(), rng) for site in best.values()]


class _Best:
    """The workers of a datacenter with the least cost so far."""

    __slots__ = ("cost_s", "idle", "tied")

    def __init__(self) -> None:
        self.cost_s = math.inf
        self.tied: dict[str, WorkerView] = {}
        #: Workers that differ in nothing but how fast they say they are, with their cost.
        self.idle: list[tuple[float, WorkerView]] = []

    def equals(self) -> dict[str, WorkerView]:
        """
        Those with the least cost.

        Of idle workers without a hit those count as equal that are as fast as far as measurements tell:
        otherwise one of five hundred, the luckiest in its measurement, would get all work of a quiet
        datacenter.
        """
        if not any(worker.worker_id in self.tied for _, worker in self.idle):
            return self.tied
        enough_s = self.cost_s * (1 + _SPEEDS_DIFFER)
        return self.tied | {one.worker_id: one for cost_s, one in self.idle if cost_s <= enough_s}


def _look(feasible: Feasible, group: Group, lacking_tokens: int, best: _Best, rng: Random) -> None:
    """
    Predict the TTFT of the workers of a group that are worth it.

    As `predict` has it, to the last bit, at a tenth of the time: what is the same for all workers
    of the group is found once.
    """
    home = feasible.decode.datacenter
    hits, prefill_tokens = feasible.request.prefix_hits, feasible.request.prefill_tokens
    pairs = prefill_tokens * prefill_tokens
    promised_s = bytes_s = tail_s = rtt_s = 0.0
    if group.datacenter != home:
        link = feasible.view.link(group.datacenter, home)
        assert link is not None, "they can hand over"
        kind, rate_bps = group.pool.kind, link.rate_bps
        promised_s = link.reserved_bytes * _BITS / rate_bps
        bytes_s = lacking_tokens * kind.kv_bytes_per_token * _BITS / rate_bps
        tail_s, rtt_s = kind.kv_state_bytes * _BITS / rate_bps, link.rtt_s
    for worker in worth_a_look(group, feasible.looks, hits, rng):
        queue_s = worker.pending_s or worker.pending_tokens * worker.prefill_s_per_token
        share, hit = share_of(worker), hits.get(worker.worker_id)
        if hit is None:
            if queue_s / share > best.cost_s:
                break  # Nor can anybody behind it, who waits longer, be earlier.
            prefill_s = (
                worker.prefill_fixed_s
                + prefill_tokens * worker.prefill_s_per_token
                + pairs * worker.prefill_s_per_token_squared
            )
        else:
            uncached_tokens = max(0, prefill_tokens - hit.resumable_tokens)
            prefill_s = prefill_time_s(worker, uncached_tokens, prefill_tokens - uncached_tokens)
        transfer_s = bytes_s if queue_s >= promised_s else promised_s - queue_s + bytes_s
        longer_s = max(prefill_s, transfer_s)
        cost_s = (queue_s + longer_s + tail_s + rtt_s) / share
        if hit is None and not queue_s:
            best.idle.append((cost_s, worker))
        if cost_s < best.cost_s or not best.tied:
            best.cost_s, best.tied = cost_s, {worker.worker_id: worker}
        elif cost_s == best.cost_s:
            best.tied[worker.worker_id] = worker
