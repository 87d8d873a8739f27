"""
Roles, thresholds and a bound for fleets with hundreds of links, most of which may starve. Pure.

Newton's method finds the rate at which the spread over pools just fits when workers may be split;
nothing exceeds it, and the best whole roles are near it. For each set of roles that is tried, the
spread becomes thresholds (`settle.py`).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from controlplane.domain.throughput.bands import bands_by_bytes
from controlplane.domain.throughput.column_search import ColumnSearch
from controlplane.domain.throughput.curves import expected
from controlplane.domain.throughput.effort import Effort
from controlplane.domain.throughput.layout import Layout
from controlplane.domain.throughput.measure import AllBands, Case, rate_of
from controlplane.domain.throughput.problem import Problem, WayPool
from controlplane.domain.throughput.quantised import Quantised
from controlplane.domain.throughput.settle import settle
from controlplane.domain.throughput.solution import bits
from controlplane.domain.throughput.spread import Spread, spread

#: From so many pools and links on; below, the program with a row for each is fast and as good.
_MANY = 100
#: Where a usual link carries less than this part of what is decoded behind it, links starve.
_STARVED = 0.3
_NEWTON_MAX = 8
_ROUNDS = 20
#: Gap of the last spread, and of one whose rate is far from the one looked for.
_TOLERANCE = 0.01
_TOLERANCE_FAR = 0.1
#: A step so small, as a logarithm, is the last but one: the next rate is as good as the bound.
_NEAR = 0.06
#: Sets of roles that are tried.
_ROLES_MAX = 2
#: Rates are compared with this tolerance.
_NEARLY = 1 - 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """What no thresholds can exceed."""

    rate_per_s: float
    #: By resource, requests per unit of it.
    prices: Mapping[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """Thresholds for one set of roles."""

    case: Case
    bands: AllBands
    rate_per_s: float


def has_many_links(layout: Layout) -> bool:
    """Whether many links starve, which this way is for, and each datacenter has one pool, which it needs."""
    sites = {pool.site for pool in layout.pools}
    is_large = len(layout.pools) + len(layout.links) > _MANY
    return is_large and len(sites) == len(layout.pools) and _starve(layout)


def _starve(layout: Layout) -> bool:
    """Whether a usual link carries little of what is decoded behind it."""
    demands, kv = layout.demands(), layout.kv_curve()
    share = {
        served.site: demand.share for served, demand in zip(layout.served, demands, strict=True)
    }
    lengths = demands[0].lengths
    everything = (-math.inf, lengths.longest)
    rate = sum(
        pool.workers.workers / expected(layout.time_of(number), lengths, *everything)
        for number, pool in enumerate(layout.pools)
    )
    sent = bits(expected(kv, lengths, *everything))
    parts = [
        link.capacity_bps / (rate * share[link.to_site] * sent)
        for link in layout.links
        if link.to_site in share
    ]
    return bool(parts) and median(parts) < _STARVED


def ceiling(problem: Problem, start_per_s: float, effort: Effort) -> Ceiling:
    """
    A rate that nothing exceeds, as low as can be.

    Args:
        problem: For roles that are given, or with workers that may be split.
        start_per_s: Where to begin, > 0.
        effort: What it may cost.
    """
    quantised = Quantised(problem, effort)
    search = ColumnSearch(problem, problem.rows, WayPool(), None, 0.0, effort)
    rate, best = start_per_s, Ceiling(rate_per_s=math.inf, prices={})
    tolerance = _TOLERANCE_FAR
    for _ in range(_NEWTON_MAX):
        found = spread(problem, quantised, rate, effort, rounds=_ROUNDS, tolerance=tolerance)
        prices = _prices(problem, quantised, found)
        limit = 1 / search.bound_at([prices[row] for row in range(len(problem.rows))])
        if limit < best.rate_per_s:
            best = Ceiling(rate_per_s=limit, prices=_by_resource(problem, prices, limit))
        moved = abs(math.log(limit / rate))
        if effort.stops() or (moved <= _NEAR and tolerance <= _TOLERANCE):
            break
        tolerance = _TOLERANCE if moved <= _NEAR else _TOLERANCE_FAR
        rate = limit
    return best


def share_out(case: Case, problem: Problem, rate_per_s: float, effort: Effort) -> Shared:
    """
    Thresholds for given roles.

    Args:
        case: The roles.
        problem: What follows of them.
        rate_per_s: About what fits; decode can take no more.
        effort: What it may cost.
    """
    quantised = Quantised(problem, effort)
    found = spread(problem, quantised, rate_per_s, effort, rounds=_ROUNDS, tolerance=_TOLERANCE)
    _, targets = settle(quantised, found, case.decode_bound_per_s)
    bands = [
        bands_by_bytes(demand, sent, problem.kv)
        for demand, sent in zip(problem.demands, targets, strict=True)
    ]
    return Shared(case=case, bands=bands, rate_per_s=rate_of(case, bands))


def best_step(
    steps: Sequence[float],
    most_per_s: float,
    shared: Callable[[int], Shared | None],
    effort: Effort,
) -> Shared | None:
    """
    The roles, by the throughput that decode is staffed for, and thresholds that serve most.

    Args:
        steps: Throughputs that decode can be staffed for, in growing order.
        most_per_s: What no roles exceed.
        shared: Thresholds for one of the steps, by its number; None where prefill is out of reach.
        effort: What all may cost.
    """
    at = min(max(bisect_left(steps, most_per_s) - 1, 0), len(steps) - 1)
    tried: set[int] = set()
    best: Shared | None = None
    while at not in tried and len(tried) < _ROLES_MAX and not (tried and effort.stops()):
        tried.add(at)
        found = shared(at)
        if found is not None and (best is None or found.rate_per_s > best.rate_per_s):
            best = found
        if found is None:
            at = at // 2
        elif found.rate_per_s >= steps[at] * _NEARLY:
            # Decode limits: with more of it there may be more.
            at = min(at + 1, len(steps) - 1)
        else:
            at = bisect_left(steps, found.rate_per_s)
    return best


def _prices(problem: Problem, quantised: Quantised, found: Spread) -> dict[int, float]:
    """By number of the row, not negative; what they sum to does not matter."""
    pools = dict(zip(quantised.rows, found.prices, strict=True))
    links: dict[int, float] = {}
    for asked, prices in zip(quantised.asked, found.link_prices, strict=True):
        for choice, price in zip(asked.choices, prices, strict=True):
            if choice.link is not None:
                links[choice.link] = price * quantised.room[choice.link]
    return {
        number: pools[row] if row in pools else links.get(row.resource, 0.0)
        for number, row in enumerate(problem.rows)
    }


def _by_resource(problem: Problem, prices: Mapping[int, float], rate: float) -> dict[int, float]:
    """Requests per unit: prices that sum to the rate when all is used up."""
    total = math.fsum(prices.values())
    found: dict[int, float] = {}
    for number, row in enumerate(problem.rows):
        each = rate * prices[number] / total / row.capacity
        found[row.resource] = found.get(row.resource, 0.0) + each
    return found
