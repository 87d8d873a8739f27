"""
Prices of resources and bands of lengths found in turns, for one set of rows. Pure.

Each round asks, at the present prices, for the cheapest way to serve each demand; the linear program
weighs all ways found so far, which gives new prices, until no way is cheaper.

Source:
    Column generation of Dantzig and Wolfe (1960), with prices drawn to the best ones so far as
    Wentges (1997) does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

from controlplane.domain.throughput.curves import (
    Curve,
    Stretch,
    expected,
    lower_envelope,
    weighed,
)
from controlplane.domain.throughput.effort import Effort
from controlplane.domain.throughput.lengths import LengthDistribution
from controlplane.domain.throughput.problem import Balance, Problem, Row, Way, WayPool
from controlplane.domain.throughput.simplex import Column, Master

#: Rounds of prices and bands; some ten are usual, and the bound says what is left.
_ROUNDS_MAX = 300
#: How far new prices are drawn to the best ones so far; 0 would take those of the last round as
#: they are.
_CALM = 0.5
#: What nothing limits still costs this part of the dearest, so that bands do not come by chance.
_LEAST_PRICE = 1e-7
#: Steps (`effort.py`) that the cost of one piece of one option takes.
_PIECE_STEPS = 250


class ColumnSearch:
    """Prices and bands in turns, for one set of rows."""

    def __init__(
        self,
        problem: Problem,
        rows: Sequence[Row],
        pool: WayPool,
        decide: float | None,
        tolerance: float,
        effort: Effort,
    ) -> None:
        self._problem = problem
        self._rows = rows
        self._pool = pool
        self._decide = decide
        self._tolerance = tolerance
        self._effort = effort
        present = {row.resource for row in problem.rows}
        #: For each demand, the options that have all their resources.
        self._open = [
            [
                (number, option)
                for number, option in enumerate(demand.options)
                if option.pool in present and (option.link is None or option.link in present)
            ]
            for demand in problem.demands
        ]
        self._rows_of: dict[int, list[int]] = {}
        for number, row in enumerate(rows):
            self._rows_of.setdefault(row.resource, []).append(number)
        self._ways: list[Way] = pool.usable(problem, present)

    def run(self) -> Balance:
        """Until no way of serving is cheaper, the gap is small, or the question is decided."""
        even = [1 / len(self._rows)] * len(self._rows)
        self._learn(self._cheapest(even)[0])
        master = Master(
            fixed=[row.fixed / row.capacity for row in self._rows],
            columns=[self._column(way) for way in self._ways],
            demands=len(self._problem.demands),
            effort=self._effort,
        )
        master.solve()
        bound, best, rho = 0.0, self._clean(master.prices), math.inf
        calm = _CALM
        for _ in range(_ROUNDS_MAX):
            now = self._clean(master.prices)
            rho = self._rho(master)
            if self._is_decided(rho, bound):
                break
            # Prices swing from round to round; half way to the best ones so far they swing less.
            prices = [calm * a + (1 - calm) * b for a, b in zip(best, now, strict=True)]
            ways, value = self._cheapest(prices)
            if value > bound:
                bound, best = value, prices
            if rho - bound <= self._tolerance * rho or self._is_decided(rho, bound):
                break
            if self._effort.stops():
                break
            new = self._learn(ways)
            if not new and not calm:
                break
            calm = _CALM if new else 0.0
            for way in new:
                master.add(self._column(way))
            master.solve(newest=len(new))
        return self._balance(master, best, bound, rho)

    def bound_at(self, prices: Sequence[float]) -> float:
        """A bound of rho at any prices of rows, not negative and not all 0."""
        return self._cheapest(self._clean(prices))[1]

    def _is_decided(self, rho: float, bound: float) -> bool:
        return self._decide is not None and (rho <= self._decide or bound > self._decide)

    def _learn(self, ways: Iterable[Way]) -> list[Way]:
        """Those that were not known here."""
        known = {(way.demand, way.stretches) for way in self._ways}
        new = [way for way in ways if (way.demand, way.stretches) not in known]
        self._ways += new
        return new

    def _column(self, way: Way) -> Column:
        return Column(
            demand=way.demand,
            use={
                row: use / self._rows[row].capacity
                for resource, use in way.use.items()
                for row in self._rows_of.get(resource, ())
            },
        )

    def _rho(self, master: Master) -> float:
        """The highest utilisation, summed up anew: the inverse matrix gathers rounding."""
        used = [row.fixed / row.capacity for row in self._rows]
        for number, weight in self._weights(master):
            for row, use in master.columns[number].use.items():
                used[row] += weight * use
        return max(used)

    def _weights(self, master: Master) -> list[tuple[int, float]]:
        """Weights of columns, scaled so that those of each demand sum to 1."""
        raw = master.weights()
        sums = [0.0] * len(self._problem.demands)
        for number, weight in raw.items():
            sums[master.columns[number].demand] += weight
        return [(n, weight / sums[master.columns[n].demand]) for n, weight in raw.items()]

    def _clean(self, prices: Sequence[float]) -> list[float]:
        """Prices of rows, none of them nothing, which sum to 1."""
        least = _LEAST_PRICE / len(prices)
        lifted = [max(price, 0.0) + least for price in prices]
        total = math.fsum(lifted)
        return [price / total for price in lifted]

    def _price_of(self, prices: Sequence[float], resource: int) -> float:
        """Of one unit of a resource."""
        return sum(prices[n] / self._rows[n].capacity for n in self._rows_of.get(resource, ()))

    def _costs(self, number: int, prices: Sequence[float]) -> list[Curve]:
        """Cost of each open option of a demand by length."""
        return [
            weighed(
                (
                    (self._price_of(prices, option.pool), option.time),
                    (
                        0.0 if option.link is None else self._price_of(prices, option.link),
                        self._problem.kv,
                    ),
                )
            )
            for _, option in self._open[number]
        ]

    def _cheapest(self, prices: Sequence[float]) -> tuple[list[Way], float]:
        """The cheapest way of each demand, and what all cost together: a bound of rho."""
        ways: list[Way] = []
        total = sum(p * row.fixed / row.capacity for p, row in zip(prices, self._rows, strict=True))
        for number, demand in enumerate(self._problem.demands):
            costs = self._costs(number, prices)
            self._effort.spend(_PIECE_STEPS * sum(map(len, costs)))
            local = [option.link is None for _, option in self._open[number]]
            stretches = cheapest_bands(costs, local, demand.lengths)
            total += demand.share * cost_of(stretches, costs, demand.lengths)
            ways.append(self._way(number, stretches))
        return ways, total

    def _way(self, number: int, stretches: Sequence[Stretch]) -> Way:
        demand = self._problem.demands[number]
        use: dict[int, float] = {}
        named = []
        for stretch in stretches:
            original, option = self._open[number][stretch.option]
            above, up_to = stretch.above, stretch.up_to
            seconds = expected(option.time, demand.lengths, above, up_to)
            use[option.pool] = use.get(option.pool, 0.0) + demand.share * seconds
            if option.link is not None:
                sent = expected(self._problem.kv, demand.lengths, above, up_to)
                use[option.link] = use.get(option.link, 0.0) + demand.share * sent
            named.append(Stretch(original, above, up_to))
        return Way(number, tuple(named), use)

    def _balance(
        self, master: Master, prices: Sequence[float], bound: float, rho: float
    ) -> Balance:
        ways: list[list[tuple[Way, float]]] = [[] for _ in self._problem.demands]
        self._pool.ways.clear()
        for number, weight in self._weights(master):
            way = self._ways[number]
            ways[way.demand].append((way, weight))
            self._pool.ways[way.demand, way.stretches] = way
        costs = []
        for number, demand in enumerate(self._problem.demands):
            curves: list[Curve] = [()] * len(demand.options)
            opened = self._costs(number, prices)
            for (original, _), curve in zip(self._open[number], opened, strict=True):
                curves[original] = curve
            costs.append(tuple(curves))
        # rho falls by price * rho / capacity for each unit; its inverse grows by that / rho**2.
        return Balance(
            rho=rho,
            bound=bound,
            prices={
                resource: self._price_of(master.prices, resource) / rho
                for resource in self._rows_of
            },
            ways=tuple(tuple(each) for each in ways),
            costs=tuple(costs),
        )


def cost_of(
    stretches: Iterable[Stretch], costs: Sequence[Curve], lengths: LengthDistribution
) -> float:
    """What one request costs on average in these bands."""
    return sum(expected(costs[s.option], lengths, s.above, s.up_to) for s in stretches)


def cheapest_bands(
    costs: Sequence[Curve], local: Sequence[bool], lengths: LengthDistribution
) -> list[Stretch]:
    """
    The bands that cost least, with local ones below remote ones: a threshold can say nothing else.

    Args:
        costs: Of each option, by length.
        local: Whether an option is in the serving datacenter itself.
        lengths: Of the requests.

    Returns:
        Stretches from below the shortest length to the longest one.
    """
    low, high = lengths.shortest * (1 - 1e-9) - 1e-9, lengths.longest
    free = lower_envelope(costs, low, high)
    sides = [local[stretch.option] for stretch in free]
    if sides == sorted(sides, reverse=True):
        return free
    cuts = {low, high}
    for before, after in pairwise(free):
        if local[before.option] and not local[after.option]:
            cuts.add(before.up_to)
    ordered = [
        [
            *_side(costs, local, low, cut, is_local=True),
            *_side(costs, local, cut, high, is_local=False),
        ]
        for cut in sorted(cuts)
    ]
    return min(ordered, key=lambda stretches: cost_of(stretches, costs, lengths))


def _side(
    costs: Sequence[Curve], local: Sequence[bool], low: float, high: float, *, is_local: bool
) -> list[Stretch]:
    """The envelope of local options, or of remote ones."""
    numbers = [number for number, side in enumerate(local) if side is is_local]
    if high <= low or not numbers:
        return []
    envelope = lower_envelope([costs[number] for number in numbers], low, high)
    return [Stretch(numbers[s.option], s.above, s.up_to) for s in envelope]
