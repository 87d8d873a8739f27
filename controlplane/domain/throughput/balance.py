"""
Shares prefill out over pools and links so that the most used of them is used least. Pure.

Given what each pool of prefill workers and each link can do, find for every serving datacenter which
lengths go where, so that the traffic which fits is largest. In the two-cluster case this is the
paper's best threshold (Eq. 7): both prefill stages saturate together.

Each resource gets a price, and each length goes where its prefill time and its bytes cost least: up to
a threshold in the datacenter itself, above it elsewhere, in bands where there are several. Prices and
bands are found in turns (column generation) until no cheaper way of serving is left. The dual
bound of every round tells how far the best is away at most.

Source:
    Ours. For one prefill and one serving datacenter: PrfaaS (arXiv 2604.15039) Eqs. 3, 4, 6, 7.
"""

from __future__ import annotations

from collections.abc import Sequence

from controlplane.domain.throughput.column_search import ColumnSearch
from controlplane.domain.throughput.effort import Effort
from controlplane.domain.throughput.problem import Balance, DemandOptions, Problem, Row, WayPool

#: Part of the optimum that a solution may be below it.
TOLERANCE = 1e-5
#: With more resources than this, so many times more: every further digit takes as long as the first.
_SMALL = 24
_LARGE_TOLERANCE = 10
#: Prices below this part of all are none.
_NO_PRICE = 1e-6
#: Rows of links that did not seem to bind are added this often at most; each time all that do not fit.
_LINK_ROUNDS_MAX = 20


def balance(
    problem: Problem,
    pool: WayPool | None = None,
    *,
    decide: float | None = None,
    tolerance: float = TOLERANCE,
    effort: Effort | None = None,
) -> Balance:
    """
    The shares that make the most of the resources.

    Args:
        problem: Every demand has an option whose resources all have rows.
        pool: Ways known from a problem that differs in rows alone; new ones are added.
        decide: Stop as soon as it is clear whether this rho can be reached.
        tolerance: Relative gap to the bound at which to stop.
        effort: What it may cost; what is found by then is returned. Without, as much as it takes.

    Returns:
        Shares, prices and bound. Without `decide`, resources that the best rho leaves slack are
        balanced too, among the demands that use them.
    """
    known, effort = pool or WayPool(), effort or Effort()
    found = _solve(problem, known, decide, tolerance, effort)
    if decide is not None:
        return found
    ways, costs = [*found.ways], [*found.costs]
    open_demands = [*range(len(problem.demands))]
    last, part = found, problem
    # Each round settles the demands that the scarcest resources serve; the others share the rest.
    for _ in problem.demands:
        rest = _unpriced(part, last)
        smaller = _rest_of(part, last, rest)
        is_done = not rest or len(smaller.rows) == len(part.rows)
        if is_done or effort.stops() or not all(map(smaller.can_serve, smaller.demands)):
            break
        part = smaller
        open_demands = [open_demands[position] for position in rest]
        last = _solve(part, WayPool(busy_links=known.busy_links), None, tolerance, effort)
        for position, demand in enumerate(open_demands):
            # Ways carry the number of their demand in the smaller problem; nobody reads it later.
            ways[demand], costs[demand] = last.ways[position], last.costs[position]
    return Balance(
        rho=found.rho, bound=found.bound, prices=found.prices, ways=tuple(ways), costs=tuple(costs)
    )


def rough(problem: Problem, pool: WayPool, effort: Effort, tolerance: float) -> float:
    """The lowest rho, without balancing what it leaves slack."""
    return _solve(problem, pool, None, tolerance, effort).rho


def _unpriced(problem: Problem, found: Balance) -> list[int]:
    """Demands whose requests cost nothing at the prices that were found."""
    free = found.rho * _NO_PRICE / len(problem.demands)
    return [
        number
        for number, demand in enumerate(problem.demands)
        if sum(
            weight * use * found.prices.get(resource, 0.0) * found.rho
            for way, weight in found.ways[number]
            for resource, use in way.use.items()
        )
        <= free * demand.share
    ]


def _rest_of(problem: Problem, found: Balance, rest: Sequence[int]) -> Problem:
    """The problem of demands that cost nothing: what has no price, less what others use of it."""
    used: dict[int, float] = {}
    for number, ways in enumerate(found.ways):
        if number not in rest:
            for way, weight in ways:
                for resource, use in way.use.items():
                    used[resource] = used.get(resource, 0.0) + weight * use
    most = max(found.prices.get(row.resource, 0.0) * row.capacity for row in problem.rows)
    free = {
        row.resource
        for row in problem.rows
        if found.prices.get(row.resource, 0.0) * row.capacity <= _NO_PRICE * most
    }
    return Problem(
        demands=tuple(
            DemandOptions(
                share=problem.demands[number].share,
                lengths=problem.demands[number].lengths,
                # Numbers of options stay as they are: what is gone has no row.
                options=problem.demands[number].options,
            )
            for number in rest
        ),
        rows=tuple(
            Row(
                resource=row.resource,
                capacity=row.capacity,
                fixed=row.fixed + used.get(row.resource, 0.0),
            )
            for row in problem.rows
            if row.resource in free
        ),
        kv=problem.kv,
    )


def _solve(
    problem: Problem, pool: WayPool, decide: float | None, tolerance: float, effort: Effort
) -> Balance:
    """One problem; rows of links that nothing overloads are left out until something does."""
    links = {o.link for d in problem.demands for o in d.options if o.link is not None}
    idle = links - pool.busy_links
    active = [row for row in problem.rows if row.resource not in idle]
    waiting = [row for row in problem.rows if row.resource in idle]
    tolerance *= 1 if len(problem.rows) <= _SMALL else _LARGE_TOLERANCE
    for _ in range(_LINK_ROUNDS_MAX):
        found = ColumnSearch(problem, active, pool, decide, tolerance, effort).run()
        used = _loads(found)
        over = [
            row
            for row in waiting
            if used.get(row.resource, 0.0) + row.fixed > found.rho * (1 + tolerance) * row.capacity
        ]
        if not over or (decide is not None and found.bound > decide):
            return found
        active += over
        pool.busy_links.update(row.resource for row in over)
        waiting = [row for row in waiting if row not in over]
    return ColumnSearch(problem, [*active, *waiting], pool, decide, tolerance, effort).run()


def _loads(found: Balance) -> dict[int, float]:
    """By resource, what one request per second of all demands uses of it."""
    used: dict[int, float] = {}
    for ways in found.ways:
        for way, weight in ways:
            for resource, use in way.use.items():
                used[resource] = used.get(resource, 0.0) + weight * use
    return used
