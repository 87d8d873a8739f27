"""
Prefill spread over pools at one rate: a linear program with a row for each pool and none for links. Pure.

Where nearly all of hundreds of links bind, a program with a row for each of them takes half a minute;
links bind within one demand each, so its own question (`quantised.py`) can keep to them.

Source:
    Column generation of Dantzig and Wolfe (1960); prices move by a factor at most from round to round,
    as in the boxstep method of Marsten, Hogan and Blankenship (1975).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from controlplane.domain.throughput.effort import Effort
from controlplane.domain.throughput.problem import Problem
from controlplane.domain.throughput.quantised import Quantised, Served
from controlplane.domain.throughput.simplex import Column, Master

#: How far prices are drawn to the best ones so far, and the factor by which they may move.
_CALM = 0.5
_FACTOR_MAX = 10.0
#: Passes over the links of a demand, in the first round and later.
_PASSES_FIRST = 4
_PASSES = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """What a spread comes to."""

    #: Utilisation of the fullest pool at the rate asked for; about the least that there is.
    rho: float
    #: About what nothing goes below.
    bound: float
    #: By row of `Quantised.rows`; they sum to 1.
    prices: Sequence[float]
    #: By demand and option: bytes and tokens per request, and its part of the requests.
    sent: Sequence[Sequence[float]]
    tokens: Sequence[Sequence[float]]
    parts: Sequence[Sequence[float]]
    #: By demand and option: prices of a byte.
    link_prices: Sequence[Sequence[float]]


def spread(
    problem: Problem,
    quantised: Quantised,
    rate: float,
    effort: Effort,
    *,
    rounds: int,
    tolerance: float,
) -> Spread:
    """
    The spread that uses the fullest pool least.

    Args:
        problem: With one option for each link.
        quantised: The same, in bins.
        rate: Requests per second of all demands together.
        effort: What it may cost.
        rounds: At most so many.
        tolerance: Relative gap at which to stop.
    """
    rows = quantised.rows
    fixed = [rate * row.fixed / row.capacity for row in rows]
    total = math.fsum(row.capacity for row in rows)
    prices = [row.capacity / total for row in rows]
    best, bound, rho = prices, -math.inf, math.inf
    link_prices: list[list[float]] = []
    master: Master | None = None
    ways: list[Served] = []
    for number in range(rounds):
        if master is not None:
            prices = _next_prices(best, master.prices)
        served = _serve(problem, quantised, prices, rate, _PASSES if number else _PASSES_FIRST)
        value = math.fsum(p * f for p, f in zip(prices, fixed, strict=True)) + math.fsum(
            rate * demand.share * each.value
            for demand, each in zip(problem.demands, served, strict=True)
        )
        if value > bound:
            best, bound = prices, value
            link_prices = [list(asked.link_prices) for asked in quantised.asked]
        columns = [_column(quantised, rate, n, each) for n, each in enumerate(served)]
        ways += served
        if master is None:
            master = Master(
                fixed=fixed, columns=columns, demands=len(problem.demands), effort=effort
            )
            master.solve()
        else:
            for column in columns:
                master.add(column)
            master.solve(newest=len(columns))
        rho = _rho(master, fixed)
        if rho - bound <= tolerance * rho or effort.stops():
            break
    assert master is not None, "there is a round at least"
    return _spread(quantised, master, ways, rho, bound, best, link_prices)


def _next_prices(best: Sequence[float], now: Sequence[float]) -> list[float]:
    """New prices, between those of the program and the best so far and not far from these."""
    wanted = [max(0.0, price) for price in now]
    total = math.fsum(wanted) or 1.0
    moved = [
        min(max(_CALM * b + (1 - _CALM) * w / total, b / _FACTOR_MAX), b * _FACTOR_MAX)
        for b, w in zip(best, wanted, strict=True)
    ]
    total = math.fsum(moved)
    return [price / total for price in moved]


def _serve(
    problem: Problem, quantised: Quantised, prices: Sequence[float], rate: float, passes: int
) -> list[Served]:
    by_pool: dict[int, float] = {}
    for row, price in zip(quantised.rows, prices, strict=True):
        by_pool[row.resource] = by_pool.get(row.resource, 0.0) + price / row.capacity
    return [quantised.serve(n, by_pool, rate, passes) for n in range(len(problem.demands))]


def _column(quantised: Quantised, rate: float, number: int, served: Served) -> Column:
    asked = quantised.asked[number]
    use: dict[int, float] = {}
    for choice, seconds in zip(asked.choices, served.seconds, strict=True):
        for row in quantised.rows_of[choice.pool] if seconds > 0 else ():
            used = rate * asked.share * seconds / quantised.rows[row].capacity
            use[row] = use.get(row, 0.0) + used
    return Column(demand=number, use=use)


def _rho(master: Master, fixed: Sequence[float]) -> float:
    used = list(fixed)
    for number, weight in master.weights().items():
        for row, use in master.columns[number].use.items():
            used[row] += weight * use
    return max(used)


def _spread(
    quantised: Quantised,
    master: Master,
    ways: Sequence[Served],
    rho: float,
    bound: float,
    prices: Sequence[float],
    link_prices: Sequence[Sequence[float]],
) -> Spread:
    """Ways of each demand, weighed and added up."""
    sums = [[[0.0] * len(asked.choices) for asked in quantised.asked] for _ in range(3)]
    for number, weight in master.weights().items():
        demand, way = master.columns[number].demand, ways[number]
        for line, values in zip(sums, (way.sent, way.tokens, way.parts), strict=True):
            for position, value in enumerate(values):
                line[demand][position] += weight * value
    return Spread(
        rho=rho,
        bound=bound,
        prices=prices,
        sent=sums[0],
        tokens=sums[1],
        parts=sums[2],
        link_prices=link_prices,
    )
