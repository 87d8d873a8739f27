"""Reads what `prfaas plan` answers for: a fleet, its traffic, and a trace if the traffic names one."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from controlplane.domain.throughput.fleet import Demand, FleetModel, TrafficModel
from controlplane.domain.throughput.lengths import (
    LengthDistribution,
    TruncatedLogNormal,
    empirical,
    mean,
)
from controlplane.errors import ConfigError
from controlplane.planfile import PlanningFleet, load_planning_fleet
from controlplane.planfile_traffic import TrafficFile, load_traffic
from controlplane.replay.traces.opening import open_trace

#: Requests read of a trace; more would not move a distribution.
_REQUESTS_MAX = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked."""

    name: str
    currency: str
    fleet: FleetModel
    traffic: TrafficModel
    #: Mean of a request, cached tokens included.
    input_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lengths:
    """Of uncached tokens, with what a trace says besides."""

    uncached: LengthDistribution
    arrival_per_s: float | None = None
    output_tokens: float | None = None


def read_question(fleet_path: Path, traffic_path: Path) -> Question:
    """
    Read and check both files.

    Raises:
        ConfigError: One of them is wrong, or they do not fit together; says file, line, field and
            what was expected.
    """
    fleet = load_planning_fleet(fleet_path)
    traffic = load_traffic(traffic_path)
    names = [site.name for site in fleet.datacenters]
    for name in traffic.shares:
        if name not in names:
            raise ConfigError(
                f"{traffic_path}: shares.{name}: {fleet_path} has no such datacenter, but {names}"
            )
    lengths = _lengths(traffic, traffic_path)
    arrival_per_s = traffic.arrival_per_s or lengths.arrival_per_s
    output_tokens = traffic.output_tokens or lengths.output_tokens
    if arrival_per_s is None or output_tokens is None:
        raise ConfigError(
            f"{traffic_path}: arrival_per_s: must be given, for all requests of the trace come at once"
        )
    cached = traffic.cached_share
    return Question(
        name=fleet.name,
        currency=fleet.currency,
        fleet=_behind_prefix(fleet, cached / (1 - cached)),
        traffic=TrafficModel(
            arrival_per_s=arrival_per_s,
            lengths=lengths.uncached,
            output_tokens=output_tokens,
            kv=fleet.model.kv,
            demands=tuple(Demand(site=name, share=share) for name, share in traffic.shares.items()),
        ),
        input_tokens=mean(lengths.uncached) / (1 - cached),
    )


def _behind_prefix(fleet: PlanningFleet, cached_per_uncached: float) -> FleetModel:
    """The fleet with the time that uncached tokens take behind their prefix."""
    model = fleet.fleet_model()
    return replace(
        model,
        sites=tuple(
            replace(
                site,
                groups=tuple(
                    replace(group, prefill=group.prefill.behind_prefix(cached_per_uncached))
                    if group.prefill
                    else group
                    for group in site.groups
                ),
            )
            for site in model.sites
        ),
    )


def _lengths(traffic: TrafficFile, path: Path) -> _Lengths:
    """Lengths of the uncached part, of the file's formula or of its trace."""
    left = 1 - traffic.cached_share
    spec = traffic.lengths
    if spec.trace is None:
        if spec.mu is None or spec.sigma is None or not spec.min_tokens or not spec.max_tokens:
            raise ConfigError(f"{path}: lengths: incomplete")
        try:
            drawn = TruncatedLogNormal(
                mu=spec.mu,
                sigma=spec.sigma,
                shortest=spec.min_tokens,
                longest=spec.max_tokens,
            )
            return _Lengths(uncached=_shortened(drawn, left))
        except ValueError as error:
            raise ConfigError(f"{path}: lengths: {error}") from error
    return _traced(path.parent / spec.trace, left)


def _shortened(lengths: TruncatedLogNormal, part: float) -> TruncatedLogNormal:
    """The same of a part of each prompt: its logarithm moves."""
    return TruncatedLogNormal(
        mu=lengths.mu + math.log(part),
        sigma=lengths.sigma,
        shortest=lengths.shortest * part,
        longest=lengths.longest * part,
    )


def _traced(path: Path, part: float) -> _Lengths:
    """What a trace says."""
    tokens: list[int] = []
    output_tokens = last_s = 0.0
    for request in open_trace(str(path)).requests(seed=0):
        if len(tokens) == _REQUESTS_MAX:
            break
        tokens.append(request.input_tokens)
        output_tokens += request.output_tokens
        last_s = request.at_s
    if not tokens:
        raise ConfigError(f"{path}: a trace has at least one request, and this one has none")
    return _Lengths(
        uncached=empirical([length * part for length in tokens]),
        arrival_per_s=len(tokens) / last_s if last_s > 0 else None,
        output_tokens=max(1.0, output_tokens / len(tokens)),
    )
