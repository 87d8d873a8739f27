"""The planner's question to the throughput model, and its answer. Pure; up to a second of work."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from controlplane.domain.plan import NEVER_TOKENS, SiteRoles
from controlplane.domain.throughput.fleet import Demand as SiteDemand
from controlplane.domain.throughput.fleet import FleetModel, Group, Link, Site, TrafficModel
from controlplane.domain.throughput.lengths import Empirical, empirical
from controlplane.domain.throughput.profile import KvSize, QuadraticPrefill
from controlplane.domain.throughput.solution import Solution
from controlplane.domain.throughput.solve import solve as solve_model
from controlplane.planner.facts import FleetFacts, SiteFacts
from controlplane.planner.histogram import Histogram, summed
from controlplane.planner.publication import Solved
from controlplane.planner.traffic import Demand

#: Work of each of the two solutions, in steps of the throughput model: about a second. Sixteen
#: datacenters with 120 links need a third of it; where it ends, the best found by then is the plan.
_STEPS_MAX: Final = 20_000_000
#: A bin of lengths stands for lengths as far around its mean as it is wide.
_SPREAD: Final = (-0.033, -0.011, 0.011, 0.033)


class Unsolvable(Exception):
    """There is no plan for this fleet and traffic; the message says what is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is solved."""

    facts: FleetFacts
    demand: Demand
    #: Prefill by datacenter, where it is known.
    profiles: Mapping[str, QuadraticPrefill]
    #: Requests per second to plan for.
    arrival_per_s: float
    #: Part of its time that a decode worker may lend; 0 where nobody is asked to.
    lend_share_max: float = 0.0

    def uncached(self) -> Histogram:
        """Lengths of all requests."""
        return summed(site.uncached for site in self.demand.sites.values())

    def output(self) -> Histogram:
        """Outputs of all requests."""
        return summed(site.output for site in self.demand.sites.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Solutions:
    """With the roles that workers have, and with the best ones."""

    now: Solved
    best: Solved


def solve(problem: Problem) -> Solutions:
    """
    Thresholds for the roles there are, and the best roles.

    Raises:
        Unsolvable: Nothing can be planned; says why.
    """
    fleet, traffic = _fleet(problem), _traffic(problem)
    roles = _roles(fleet, problem.facts)
    try:
        now = _solve_within(fleet, traffic, problem.lend_share_max, roles)
        best = _solve_within(fleet, traffic, problem.lend_share_max) if roles else now
    except ValueError as error:
        # An `InfeasibleError` says what is missing; the others that figures make no sense.
        raise Unsolvable(str(error)) from error
    return Solutions(now=_solved(now, problem.facts), best=_solved(best, problem.facts))


def _solve_within(
    fleet: FleetModel,
    traffic: TrafficModel,
    lend_max: float,
    roles: Mapping[str, SiteRoles] | None = None,
) -> Solution:
    """One solution, of bounded work."""
    return solve_model(fleet, traffic, roles=roles, lend_max=lend_max, steps_max=_STEPS_MAX)


def _fleet(problem: Problem) -> FleetModel:
    facts = problem.facts
    links = []
    for name, bps in sorted(facts.link_bps.items()):
        from_site, _, to_site = name.partition(">")
        if from_site in facts.sites and to_site in facts.sites:
            links.append(Link(from_site=from_site, to_site=to_site, capacity_bps=bps))
    return FleetModel(
        sites=tuple(
            Site(name=name, groups=tuple(_groups(site, problem.profiles.get(name))))
            for name, site in facts.sites.items()
        ),
        links=tuple(links),
    )


def _groups(site: SiteFacts, prefill: QuadraticPrefill | None) -> Iterable[Group]:
    """Workers that keep their role, and those that can do both."""
    movable = site.movable_prefill + site.movable_decode
    kept = (
        ("prefill", site.prefill_workers - site.movable_prefill, prefill, None),
        ("decode", site.decode_workers - site.movable_decode, None, site.decode),
        ("either", movable, prefill, site.decode),
    )
    for name, workers, prefills, decodes in kept:
        if workers > 0 and (prefills is not None or decodes is not None):
            yield Group(hardware=name, workers=workers, prefill=prefills, decode=decodes)


def _roles(fleet: FleetModel, facts: FleetFacts) -> dict[str, SiteRoles]:
    """Where workers can do both: what they do now."""
    return {
        site.name: SiteRoles(
            prefill_workers=facts.sites[site.name].movable_prefill,
            decode_workers=facts.sites[site.name].movable_decode,
        )
        for site in fleet.sites
        if any(group.is_convertible for group in site.groups)
    }


def _traffic(problem: Problem) -> TrafficModel:
    demands = [
        SiteDemand(site=name, share=site.arrival_per_s, lengths=_lengths(site.uncached))
        for name, site in sorted(problem.demand.sites.items())
        if site.arrival_per_s > 0 and site.uncached.weight > 0
    ]
    output = problem.output()
    if not demands or output.mean <= 0:
        raise Unsolvable("no request has been answered yet: nothing is known of the traffic")
    return TrafficModel(
        arrival_per_s=problem.arrival_per_s,
        lengths=_lengths(problem.uncached()),
        output_tokens=output.mean,
        kv=_kv(problem.facts),
        demands=tuple(demands),
    )


def _lengths(histogram: Histogram) -> Empirical:
    points = histogram.points()
    return empirical(
        [tokens * (1 + spread) for tokens, _ in points for spread in _SPREAD],
        [share / len(_SPREAD) for _, share in points for _ in _SPREAD],
    )


def _kv(facts: FleetFacts) -> KvSize:
    """All serve one model, so all sizes are one; where they are not, their mean."""
    sizes = [site.kv for site in facts.sites.values() if site.kv is not None]
    if not sizes:
        raise Unsolvable("no worker says how large its KV is")
    return KvSize(
        state_bytes=fmean(size.state_bytes for size in sizes),
        bytes_per_token=fmean(size.bytes_per_token for size in sizes),
    )


def _solved(solution: Solution, facts: FleetFacts) -> Solved:
    thresholds = dict.fromkeys(facts.link_bps, NEVER_TOKENS) | {
        link: NEVER_TOKENS if math.isinf(tokens) else min(tokens, NEVER_TOKENS)
        for link, tokens in solution.threshold_tokens.items()
    }
    return Solved(
        threshold_tokens=thresholds,
        roles=dict(solution.roles),
        prices=solution.prices,
        throughput_per_s=solution.throughput_per_s,
        bottleneck=solution.bottleneck,
        is_complete=solution.is_complete,
        gap=solution.gap,
    )
