"""What `prfaas plan` answers: the solution, what it costs, and how it moves with more of anything. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from controlplane.cli.plan_inputs import Question
from controlplane.domain.throughput.equations import Form
from controlplane.domain.throughput.fleet import BITS_PER_BYTE, FleetModel
from controlplane.domain.throughput.solution import Solution
from controlplane.domain.throughput.solve import solve

_SECONDS_PER_HOUR = 3600
_BYTES_PER_GB = 1e9
_MILLION = 1e6
#: With more links than this only those are doubled that are used for half of what they carry.
_LINKS_MAX = 24
_BUSY = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a fleet costs while it serves so much, in its currency."""

    #: Requests per second.
    rate_per_s: float
    workers_per_hour: float
    egress_per_hour: float
    #: Of input and output together.
    per_million_tokens: float
    per_million_output_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The same question with one thing more."""

    what: str
    throughput_per_s: float
    #: Relative to the answer; 0.05 is 5 % more.
    gain: float
    threshold_tokens: dict[str, float]
    #: By datacenter: prefill and decode workers of those that can be both.
    roles: dict[str, tuple[int, int]]
    egress_bps: dict[str, float]
    bottleneck: str
    cost_per_million_tokens: float
    #: As `Solution` has them: what a change gains is no surer than both answers.
    is_complete: bool
    gap: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """All of it."""

    question: Question
    solution: Solution
    lend_max: float
    load: float
    at_saturation: Cost
    #: None when more arrives than fits.
    at_arrival: Cost | None
    changes: tuple[Change, ...]


def answer(question: Question, *, form: Form, lend_max: float) -> Answer:
    """
    Solve, and solve again with one more worker of each group and twice each link.

    Raises:
        InfeasibleError: No traffic can be served; says what is missing.
    """
    found = solve(question.fleet, question.traffic, form=form, lend_max=lend_max)
    load = found.load(question.traffic.arrival_per_s)
    return Answer(
        question=question,
        solution=found,
        lend_max=lend_max,
        load=load,
        at_saturation=_cost(question, question.fleet, found, found.throughput_per_s),
        at_arrival=(
            _cost(question, question.fleet, found, question.traffic.arrival_per_s)
            if load <= 1
            else None
        ),
        changes=tuple(
            _change(question, what, fleet, found, form, lend_max)
            for what, fleet in _variants(question.fleet, found)
        ),
    )


def scaled_links(fleet: FleetModel, factor: float) -> FleetModel:
    """The fleet with all links so many times as wide."""
    return replace(
        fleet,
        links=tuple(replace(link, capacity_bps=link.capacity_bps * factor) for link in fleet.links),
    )


def _variants(fleet: FleetModel, found: Solution) -> Iterator[tuple[str, FleetModel]]:
    """One more worker of each group, and twice each link, in words."""
    for number, site in enumerate(fleet.sites):
        for position, group in enumerate(site.groups):
            more = replace(group, workers=group.workers + 1)
            groups = (*site.groups[:position], more, *site.groups[position + 1 :])
            sites = (
                *fleet.sites[:number],
                replace(site, groups=groups),
                *fleet.sites[number + 1 :],
            )
            yield f"one more {group.hardware} in {site.name}", replace(fleet, sites=sites)
    for number, link in enumerate(fleet.links):
        used = found.utilisation.get(f"link {link.link_id}", 0.0)
        if len(fleet.links) <= _LINKS_MAX or used >= _BUSY:
            wider = replace(link, capacity_bps=2 * link.capacity_bps)
            links = (*fleet.links[:number], wider, *fleet.links[number + 1 :])
            yield f"twice {link.link_id}", replace(fleet, links=links)


def _change(
    question: Question,
    what: str,
    fleet: FleetModel,
    before: Solution,
    form: Form,
    lend_max: float,
) -> Change:
    found = solve(fleet, question.traffic, form=form, lend_max=lend_max)
    return Change(
        what=what,
        throughput_per_s=found.throughput_per_s,
        gain=found.throughput_per_s / before.throughput_per_s - 1,
        threshold_tokens=dict(found.threshold_tokens),
        roles={
            site: (roles.prefill_workers, roles.decode_workers)
            for site, roles in found.roles.items()
        },
        egress_bps=dict(found.egress_bps),
        bottleneck=found.bottleneck,
        cost_per_million_tokens=_cost(
            question, fleet, found, found.throughput_per_s
        ).per_million_tokens,
        is_complete=found.is_complete,
        gap=found.gap,
    )


def _cost(question: Question, fleet: FleetModel, found: Solution, rate_per_s: float) -> Cost:
    """All workers are paid for, busy or not, and every byte that leaves."""
    workers = sum(g.workers * g.price_per_hour for site in fleet.sites for g in site.groups)
    egress = found.egress_at(rate_per_s)
    sent = sum(
        link.price_per_gb * egress.get(link.link_id, 0.0) / BITS_PER_BYTE / _BYTES_PER_GB
        for link in fleet.links
    )
    output = question.traffic.output_tokens
    total = workers + sent * _SECONDS_PER_HOUR
    per_hour = rate_per_s * _SECONDS_PER_HOUR / _MILLION
    return Cost(
        rate_per_s=rate_per_s,
        workers_per_hour=workers,
        egress_per_hour=sent * _SECONDS_PER_HOUR,
        per_million_tokens=total / (per_hour * (question.input_tokens + output)),
        per_million_output_tokens=total / (per_hour * output),
    )


def as_json(found: Answer) -> dict[str, Any]:
    """The answer as plain values; what is never reached is null, for JSON knows no infinity."""
    solution = found.solution
    return {
        "fleet": found.question.name,
        "currency": found.question.currency,
        "form": solution.form,
        "arrival_per_s": found.question.traffic.arrival_per_s,
        "load": found.load,
        "throughput_per_s": solution.throughput_per_s,
        "bound_per_s": solution.bound_per_s,
        "is_complete": solution.is_complete,
        "gap": solution.gap,
        "bottleneck": solution.bottleneck,
        "binding": list(solution.binding),
        "threshold_tokens": _finite(solution.threshold_tokens),
        "roles": {site: asdict(roles) for site, roles in solution.roles.items()},
        "groups": [asdict(group) for group in solution.groups],
        "offloaded_share": dict(solution.offloaded_share),
        "bands": {
            site: [
                {
                    "above_tokens": max(0.0, band.above),
                    "up_to_tokens": band.up_to,
                    "parts": dict(band.parts),
                }
                for band in bands
            ]
            for site, bands in solution.bands.items()
        },
        "utilisation": dict(solution.utilisation),
        "egress_bps": dict(solution.egress_bps),
        "egress_at_arrival_bps": solution.egress_at(
            min(found.question.traffic.arrival_per_s, solution.throughput_per_s)
        ),
        "prices": asdict(solution.prices),
        "cost_at_saturation": asdict(found.at_saturation),
        "cost_at_arrival": asdict(found.at_arrival) if found.at_arrival else None,
        "changes": [
            asdict(change) | {"threshold_tokens": _finite(change.threshold_tokens)}
            for change in found.changes
        ],
    }


def _finite(thresholds: Mapping[str, float]) -> dict[str, float | None]:
    return {link: None if math.isinf(t) else t for link, t in thresholds.items()}
