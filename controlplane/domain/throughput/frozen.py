"""What thresholds and roles that stand still come to, when links or traffic have changed. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from controlplane.domain.plan import SiteRoles
from controlplane.domain.throughput.bands import Band
from controlplane.domain.throughput.curves import expected
from controlplane.domain.throughput.equations import Form
from controlplane.domain.throughput.fleet import FleetModel, TrafficModel
from controlplane.domain.throughput.layout import Layout, Level, lay_out
from controlplane.domain.throughput.measure import Case, rate_of, report
from controlplane.domain.throughput.problem import DemandOptions
from controlplane.domain.throughput.solution import Solution


def evaluate(
    fleet: FleetModel,
    traffic: TrafficModel,
    *,
    threshold_tokens: Mapping[str, float],
    roles: Mapping[str, SiteRoles],
    form: Form = "exact",
) -> Solution:
    """
    Throughput of given thresholds and roles: Eq. 6.

    A prompt goes behind the link with the highest threshold that it is above, to any of several
    equal ones by their speed; up to the lowest threshold it stays. Time that decode workers lend
    counts as given.

    Args:
        fleet: Datacenters and links.
        traffic: What arrives.
        threshold_tokens: By link id; a link that is not named takes nothing.
        roles: By datacenter with convertible workers, all of them.
        form: Exact expectations, or the paper's mean lengths.

    Returns:
        A solution without prices. Its throughput is 0 where requests have nowhere to go.

    Raises:
        InfeasibleError: The fleet itself lacks a phase.
        ValueError: Roles that the fleet does not have.
    """
    layout = lay_out(fleet, traffic)
    levels = tuple(served_level(layout, number, roles) for number in range(len(layout.served)))
    lend = {
        site: each.lent_workers / each.decode_workers
        for site, each in roles.items()
        if each.decode_workers > 0
    }
    case = Case(layout=layout, levels=levels, rows=layout.rows(levels, lend), form=form)
    bands = [
        _bands(layout, case, served.site, demand, threshold_tokens)
        for served, demand in zip(layout.served, layout.demands(), strict=True)
    ]
    return report(case, bands, bound_per_s=rate_of(case, bands), prices={})


def served_level(layout: Layout, number: int, roles: Mapping[str, SiteRoles]) -> Level:
    """
    The level of a serving datacenter with given roles.

    Raises:
        ValueError: The roles are missing, or do not add up to its convertible workers.
    """
    served = layout.served[number]
    convertible = len(served.levels) - 1
    wanted = roles.get(served.site)
    if wanted is None:
        if convertible:
            raise ValueError(f"{served.site} has workers that can do both, and no roles are given")
        return served.levels[0]
    total = wanted.prefill_workers + wanted.decode_workers
    if total != convertible or not 0 <= wanted.decode_workers <= convertible:
        raise ValueError(
            f"{served.site} has {convertible} workers that can do both, which cannot be "
            f"{wanted.prefill_workers} for prefill and {wanted.decode_workers} for decode"
        )
    return served.levels[wanted.decode_workers]


def _bands(
    layout: Layout,
    case: Case,
    site: str,
    demand: DemandOptions,
    threshold_tokens: Mapping[str, float],
) -> tuple[Band, ...]:
    """Bands of a serving datacenter by its thresholds."""
    begins: dict[float, list[int]] = {-math.inf: []}
    for position, option in enumerate(demand.options):
        name = f"{layout.pools[option.pool].site}>{site}"
        begin = -math.inf if option.link is None else threshold_tokens.get(name, math.inf)
        if begin < demand.lengths.longest:
            begins.setdefault(max(begin, 0.0) if option.link is not None else begin, []).append(
                position
            )
    cuts = sorted(begins)
    ends = [*cuts[1:], demand.lengths.longest]
    return tuple(
        Band(above=cut, up_to=end, parts=_by_speed(case, demand, begins[cut], cut, end))
        for cut, end in zip(cuts, ends, strict=True)
    )


def _by_speed(
    case: Case, demand: DemandOptions, options: Sequence[int], above: float, up_to: float
) -> dict[int, float]:
    """How options of one band share it: by how much of it each, and its link, could take in time."""
    kv = case.layout.kv_curve()
    # Of a pool that lends the last row is the one that says how much.
    workers = {row.resource: row.capacity for row in case.rows}
    speeds = {}
    for position in options:
        option = demand.options[position]
        takes = expected(option.time, demand.lengths, above, up_to)
        sent = expected(kv, demand.lengths, above, up_to)
        able = workers.get(option.pool, 0.0)
        if able > 0 and takes > 0:
            wide = workers.get(option.link, 0.0) / sent if option.link is not None else math.inf
            speeds[position] = min(able / takes, wide)
    total = sum(speeds.values()) or math.inf
    return {position: speed / total for position, speed in speeds.items()}
