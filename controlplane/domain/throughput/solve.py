"""
The best thresholds and roles for a fleet and its traffic. Pure.

Decode decides the roles: at a given throughput every datacenter needs so many decode workers, and the
rest prefills. More throughput leaves less prefill, so the best is where what prefill can do meets what
is asked of it, found by halving. For each set of roles `balance.py` shares prefill out.

Source:
    PrfaaS (arXiv 2604.15039) section 3.4.2, which searches a grid of (t, N_p / N_d); Eqs. 7 and 8
    hold at the solution as far as whole workers allow. Several datacenters and lent time are ours.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from controlplane.domain.plan import SiteRoles
from controlplane.domain.throughput.balance import balance, rough
from controlplane.domain.throughput.bands import bands_of
from controlplane.domain.throughput.column_search import ColumnSearch
from controlplane.domain.throughput.curves import Curve, piece_at
from controlplane.domain.throughput.effort import STEPS_MAX, Effort
from controlplane.domain.throughput.equations import Form
from controlplane.domain.throughput.fleet import FleetModel, TrafficModel
from controlplane.domain.throughput.frozen import served_level
from controlplane.domain.throughput.layout import InfeasibleError, Layout, Level, lay_out
from controlplane.domain.throughput.lengths import mean
from controlplane.domain.throughput.many_links import (
    Shared,
    best_step,
    ceiling,
    has_many_links,
    share_out,
)
from controlplane.domain.throughput.measure import (
    AllBands,
    Case,
    mean_lengths,
    rate_of,
    report,
)
from controlplane.domain.throughput.problem import Balance, Problem, Row, WayPool
from controlplane.domain.throughput.profile import Piece
from controlplane.domain.throughput.solution import Solution

_NO_PREFILL = "no worker is left to prefill: the given roles and links reach none"
#: Rounds in which tangents settle, in the paper's form; five are usual.
_TANGENT_ROUNDS_MAX = 30
_SETTLED = 1e-9
#: Rates are compared with this tolerance.
_NEARLY = 1 - 1e-9
#: Part of the effort that the last solution, the one for the best roles, is sure to have.
_KEPT_FOR_LAST = 0.6
#: A gap that is not worth a slower search.
_GAP_GOOD = 0.05
#: The same of the thresholds, where many links starve.
_KEPT_FOR_ROLES = 0.4
#: With more resources than this the search for roles begins with a guess.
_GUESSED = 24
#: Relative gap to the bound that is enough for a guess.
_GUESS_TOLERANCE = 1e-3
#: Part of the effort that is for a last try with few links, where all of them took too long.
_FOR_FEW_LINKS = 0.25
#: A guess looks at so many links in all, the widest into each datacenter.
_WIDE_LINKS = 64


def solve(
    fleet: FleetModel,
    traffic: TrafficModel,
    *,
    form: Form = "exact",
    roles: Mapping[str, SiteRoles] | None = None,
    lend_max: float = 0.0,
    steps_max: float = STEPS_MAX,
) -> Solution:
    """
    Thresholds and roles with the highest throughput.

    Args:
        fleet: Datacenters and links.
        traffic: What arrives. Its rate changes nothing but the load: thresholds that let most
            traffic fit also keep the most used resource as idle as can be below that.
        form: Exact expectations, or the paper's mean lengths.
        roles: By datacenter, convertible workers that shall prefill and decode; where given they
            stand. Time they lend is found anew.
        lend_max: Part of its time that a decode worker may lend to prefill, 0 to 1.
        steps_max: Bound of the work, in steps of `effort.py`; with these used up the best found so
            far is returned, with `is_complete` False.

    Raises:
        InfeasibleError: No traffic can be served; says what is missing.
        ValueError: Roles that the fleet does not have, or a number out of range.
    """
    if not 0 <= lend_max <= 1:
        raise ValueError(f"lend_max = {lend_max:g} must be from 0 to 1")
    narrow = steps_max * _FOR_FEW_LINKS
    search = _Search(
        lay_out(fleet, traffic), form, lend_max, Effort(left=steps_max - narrow), narrow
    )
    return search.best(roles or {})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """Bands for one set of roles."""

    rate_per_s: float
    bands: AllBands
    balance: Balance


@dataclass(slots=True)
class _Search:
    """Solutions for one set of roles after another; ways of serving are kept between them."""

    layout: Layout
    form: Form
    lend_max: float
    effort: Effort
    #: What a last try with few links may cost.
    narrow_steps: float
    pool: WayPool = field(default_factory=WayPool)

    def best(self, roles: Mapping[str, SiteRoles]) -> Solution:
        """The roles that serve most, and their thresholds."""
        choices = [self._choices(number, roles) for number in range(len(self.layout.served))]
        steps = sorted(
            {
                level.decode_per_s / served.share
                for served, levels in zip(self.layout.served, choices, strict=True)
                for level in levels
                if level.decode_per_s > 0
            }
        )
        most = min(
            levels[-1].decode_per_s / served.share
            for served, levels in zip(self.layout.served, choices, strict=True)
        )
        steps = steps[: bisect_left(steps, most * (1 + _SETTLED))]
        if not steps:
            raise InfeasibleError(
                f"{self._without_decode(choices)}: with the given roles no worker decodes there"
            )
        if self.form == "exact" and has_many_links(self.layout):
            quick = self._with_many_links(choices, steps)
            if quick.gap <= _GAP_GOOD or not quick.is_complete:
                return quick
            slow = self._usual(choices, steps)
            better = max(quick, slow, key=lambda found: found.throughput_per_s)
            bounds = [found.bound_per_s for found in (quick, slow) if found.is_complete]
            return replace(better, bound_per_s=max(min(bounds), better.throughput_per_s))
        return self._usual(choices, steps)

    def _usual(self, choices: Sequence[tuple[Level, ...]], steps: Sequence[float]) -> Solution:
        """The roles that serve most, by a program with a row for each pool and link."""
        self.effort.kept = self.effort.left * _KEPT_FOR_LAST
        best = self._best_step(choices, steps)
        self.effort.kept = 0.0
        solution = self._solution(self._case(choices, steps[best]))
        if solution is None:
            raise InfeasibleError(_NO_PREFILL)
        if solution.is_complete:
            return solution
        # Other roles may be better than those that were found by then: what is said of how far the best
        # may be holds for all.
        most = min(steps[-1], self._bound_of_all_roles(choices, solution))
        return replace(solution, bound_per_s=max(most, solution.bound_per_s))

    def _bound_of_all_roles(
        self, choices: Sequence[tuple[Level, ...]], solution: Solution
    ) -> float:
        """What no thresholds and roles exceed, by the prices that were found for some."""
        split = self._split(choices)
        if len({pool.site for pool in self.layout.pools}) < len(self.layout.pools):
            # Of several kinds in a datacenter each may prefill with all it has.
            rows = tuple(
                Row(resource=number, capacity=float(pool.workers.workers))
                for number, pool in enumerate(self.layout.pools)
            )
            links = (row for row in split.rows if row.resource >= len(self.layout.pools))
            split = replace(split, rows=(*rows, *links))
        search = ColumnSearch(split, split.rows, WayPool(), None, 0.0, self.effort)
        sites = {n: pool.site for n, pool in enumerate(self.layout.pools)}
        names = {self.layout.link_number(n): x.link_id for n, x in enumerate(self.layout.links)}
        found = solution.prices
        prices = [
            row.capacity
            * (
                found.prefill_per_s.get(sites[row.resource], 0.0)
                if row.resource in sites
                else found.link_per_byte.get(names[row.resource], 0.0)
            )
            for row in split.rows
        ]
        # Where decode limits, nothing else has a price: then all workers are worth the same.
        if not any(prices):
            prices = [row.capacity if row.resource in sites else 0.0 for row in split.rows]
        return 1 / search.bound_at(prices)

    def _with_many_links(
        self, choices: Sequence[tuple[Level, ...]], steps: Sequence[float]
    ) -> Solution:
        """The same for hundreds of links: see `many_links.py`."""
        split = self._split(choices)
        if not all(map(split.can_serve, split.demands)):
            raise InfeasibleError(_NO_PREFILL)
        self.effort.kept = self.effort.left * _KEPT_FOR_ROLES
        top = ceiling(split, steps[-1] / 2, self.effort)
        self.effort.kept = 0.0
        most = min(top.rate_per_s, steps[-1])

        def shared(number: int) -> Shared | None:
            case = self._case(choices, steps[number])
            problem = self._problem(case, None)
            if not all(map(problem.can_serve, problem.demands)):
                return None
            return share_out(case, problem, min(most, case.decode_bound_per_s), self.effort)

        best = best_step(steps, most, shared, self.effort)
        if best is None:
            raise InfeasibleError(_NO_PREFILL)
        reported = report(best.case, best.bands, bound_per_s=most, prices=top.prices)
        return replace(
            reported,
            bound_per_s=max(most, reported.throughput_per_s),
            is_complete=not self.effort.is_cut_short,
        )

    def _split(self, choices: Sequence[tuple[Level, ...]]) -> Problem:
        """The problem in which workers whose role is free do both in turns."""
        lend = {
            served.site: 1.0 if len(each) > 1 else self.lend_max
            for served, each in zip(self.layout.served, choices, strict=True)
        }
        rows = self.layout.rows(tuple(each[-1] for each in choices), lend)
        return Problem(demands=self.layout.demands(), rows=rows, kv=self.layout.kv_curve())

    def _best_step(self, choices: Sequence[tuple[Level, ...]], steps: Sequence[float]) -> int:
        """The throughput, by its number, whose roles serve most."""
        low, high, stride = 0, len(steps), 1
        probe = self._guess(choices, steps)
        while low < high and not self.effort.stops():
            if self._fits(self._case(choices, steps[probe]), steps[probe]):
                low, probe = probe + 1, probe + stride
            else:
                high, probe = probe, probe - stride
            stride *= 2
            if not low <= probe < high:
                probe = (low + high) // 2
        if low < high:
            return probe
        # Up to step `low` - 1 decode limits; with the roles of `low` prefill or a link does.
        best = low if low < len(steps) else low - 1
        if 0 < low < len(steps) and not self._fits(self._case(choices, steps[low]), steps[low - 1]):
            best = low - 1
        return best

    def _guess(self, choices: Sequence[tuple[Level, ...]], steps: Sequence[float]) -> int:
        """Where to begin: in the middle, or in large fleets where workers that could be split are best."""
        split = self._split(choices)
        middle = len(steps) // 2
        if len(split.rows) <= _GUESSED or all(len(each) == 1 for each in choices):
            return middle
        problem = self._with_wide_links(split)
        if not all(map(problem.can_serve, problem.demands)):
            return middle
        rho = rough(problem, WayPool(), self.effort, _GUESS_TOLERANCE)
        return min(max(bisect_left(steps, 1 / rho), 0), len(steps) - 1)

    def _with_wide_links(self, problem: Problem) -> Problem:
        """The same with the widest links only: those without a row are not used."""
        each = max(1, _WIDE_LINKS // len(problem.demands))
        capacity = {row.resource: row.capacity for row in problem.rows}
        kept: set[int] = set()
        for demand in problem.demands:
            links = [option.link for option in demand.options if option.link is not None]
            kept.update(sorted(links, key=lambda link: -capacity[link])[:each])
        first = self.layout.link_number(0)
        return replace(
            problem,
            rows=tuple(row for row in problem.rows if row.resource < first or row.resource in kept),
        )

    def _choices(self, number: int, roles: Mapping[str, SiteRoles]) -> tuple[Level, ...]:
        """Levels of a serving datacenter that are allowed."""
        served = self.layout.served[number]
        if served.site not in roles:
            return served.levels
        return (served_level(self.layout, number, roles),)

    def _without_decode(self, choices: list[tuple[Level, ...]]) -> str:
        return ", ".join(
            served.site
            for served, levels in zip(self.layout.served, choices, strict=True)
            if levels[-1].decode_per_s <= 0
        )

    def _case(self, choices: Sequence[tuple[Level, ...]], rate: float) -> Case:
        """The fewest decode workers that a throughput needs."""
        levels = tuple(
            next(
                (level for level in each if level.decode_per_s >= rate * served.share * _NEARLY),
                each[-1],
            )
            for served, each in zip(self.layout.served, choices, strict=True)
        )
        return Case(
            layout=self.layout,
            levels=levels,
            rows=self.layout.rows(
                levels, {served.site: self.lend_max for served in self.layout.served}
            ),
            form=self.form,
        )

    def _problem(self, case: Case, curves: Mapping[tuple[int, int], Curve] | None) -> Problem:
        return Problem(
            demands=self.layout.demands(curves), rows=case.rows, kv=self.layout.kv_curve()
        )

    def _fits(self, case: Case, rate: float) -> bool:
        """Whether prefill and links can do as much as decode is staffed for."""
        if self.form == "mean_length":
            found = self._find(case)
            return found is not None and found.rate_per_s >= rate * _NEARLY
        problem = self._problem(case, None)
        if not all(map(problem.can_serve, problem.demands)):
            return False
        decide = 1 / (rate * _NEARLY)
        return balance(problem, self.pool, decide=decide, effort=self.effort).rho <= decide

    def _solution(self, case: Case) -> Solution | None:
        found = self._find(case)
        if found is None:
            return None
        reported = report(
            case,
            found.bands,
            bound_per_s=1 / found.balance.bound if found.balance.bound > 0 else math.inf,
            prices=found.balance.prices,
        )
        return replace(reported, is_complete=not self.effort.is_cut_short)

    def _find(self, case: Case) -> _Found | None:
        """The best bands for given roles; None when a demand reaches no prefill at all."""
        problem = self._problem(case, None)
        if not all(map(problem.can_serve, problem.demands)):
            return None
        found = self._bands(case, problem, self.pool)
        narrow = self._with_wide_links(problem)
        if self.effort.is_cut_short and all(map(narrow.can_serve, narrow.demands)):
            # Few links well used may be better than many with their shares half found.
            rough_found = self._bands(case, narrow, WayPool(), Effort(left=self.narrow_steps))
            if rough_found.rate_per_s > found.rate_per_s:
                # A bound of few links is none of all.
                balanced = replace(rough_found.balance, bound=found.balance.bound)
                found = replace(rough_found, balance=balanced)
        return found if self.form == "exact" else self._settled(case, found)

    def _bands(
        self, case: Case, problem: Problem, pool: WayPool, effort: Effort | None = None
    ) -> _Found:
        shared = balance(problem, pool, effort=effort or self.effort)
        shares = [*zip(problem.demands, shared.ways, shared.costs, strict=True)]
        return max(
            (
                _Found(rate_per_s=rate_of(case, bands), bands=bands, balance=shared)
                for by_bytes in (False, True)
                for bands in [[bands_of(*share, problem.kv, by_bytes=by_bytes) for share in shares]]
            ),
            key=lambda found: found.rate_per_s,
        )

    def _settled(self, case: Case, found: _Found) -> _Found:
        """
        The best bands by mean lengths, from those of exact expectations on.

        `p * T(E[L | band])` is convex in the band's probability and tokens, and its tangent at given
        bands is linear in the length: solved for tangents, again and again, bands settle where no
        other would be better.
        """
        best, last = found, found
        for _ in range(_TANGENT_ROUNDS_MAX):
            curves = self._tangents(last)
            now = self._bands(case, self._problem(case, curves), WayPool())
            if now.rate_per_s > best.rate_per_s or best is found:
                best = now
            if abs(now.rate_per_s - last.rate_per_s) <= _SETTLED * now.rate_per_s:
                break
            last = now
        return best

    def _tangents(self, found: _Found) -> dict[tuple[int, int], Curve]:
        """For each demand and option, its prefill time near the mean length that it gets now."""
        curves: dict[tuple[int, int], Curve] = {}
        demands = self.layout.demands()
        for number, (demand, bands) in enumerate(zip(demands, found.bands, strict=True)):
            means = mean_lengths(demand, bands)
            for position, option in enumerate(demand.options):
                tokens = means[position][1] if position in means else mean(demand.lengths)
                curves[number, position] = (_tangent(option.time, tokens),)
        return curves


def _tangent(curve: Curve, tokens: float) -> Piece:
    """The straight line that touches a curve at a length."""
    piece = piece_at(curve, tokens)
    slope = piece.slope(tokens)
    return Piece(from_tokens=0.0, c0=piece.at(tokens) - slope * tokens, c1=slope)
