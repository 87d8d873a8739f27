"""Fleets and traffic of the throughput model: the paper's case study, and larger ones by chance."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from controlplane.domain.throughput.fleet import (
    Demand,
    FleetModel,
    Group,
    Link,
    Site,
    TrafficModel,
)
from controlplane.domain.throughput.lengths import LengthDistribution, TruncatedLogNormal
from controlplane.domain.throughput.profile import DecodeProfile, KvSize, QuadraticPrefill

#: PrfaaS Table 5, and what its results say of the H20; K = 1,000.
H200 = QuadraticPrefill(fixed_s=0.371, s_per_token=42.9e-6, s_per_token_squared=93.8e-12)
H20 = QuadraticPrefill(fixed_s=0.453, s_per_token=131.6e-6, s_per_token_squared=292e-12)
DECODE = DecodeProfile(slots=20, step_s=0.025)
KV = KvSize(state_bytes=172 * 2**20, bytes_per_token=16.74 * 2**20 / 1000)
LENGTHS = TruncatedLogNormal(mu=9.90, sigma=1.00, shortest=128, longest=128_000)
LINK = "prfaas>local"


def a_traffic(
    *,
    lengths: LengthDistribution = LENGTHS,
    output_tokens: float = 1024,
    arrival_per_s: float = 2.0,
    demands: Sequence[Demand] = (),
) -> TrafficModel:
    return TrafficModel(
        arrival_per_s=arrival_per_s,
        lengths=lengths,
        output_tokens=output_tokens,
        kv=KV,
        demands=tuple(demands),
    )


def the_case_study(*, gbit_per_s: float = 100, h200: int = 4, h20: int = 8) -> FleetModel:
    """32 H200 that prefill, 64 H20 that serve: instances of 8."""
    return FleetModel(
        sites=(
            Site(name="prfaas", groups=(Group(hardware="H200", workers=h200, prefill=H200),)),
            Site(
                name="local",
                groups=(Group(hardware="H20", workers=h20, prefill=H20, decode=DECODE),),
            ),
        ),
        links=(Link(from_site="prfaas", to_site="local", capacity_bps=gbit_per_s * 1e9),),
    )


def slower(profile: QuadraticPrefill, factor: float, long_factor: float = 1.0) -> QuadraticPrefill:
    return QuadraticPrefill(
        fixed_s=profile.fixed_s * factor,
        s_per_token=profile.s_per_token * factor * long_factor,
        s_per_token_squared=profile.s_per_token_squared * factor,
    )


def a_fleet_by_chance(
    rng: Random,
    *,
    prefilling: int,
    serving: int,
    gbit_per_s: tuple[float, float] = (5, 50),
    workers_max: int = 12,
    is_uniform: bool = False,
) -> tuple[FleetModel, tuple[Demand, ...]]:
    """Unequal datacenters, or equal ones, with a link from each to each that serves."""

    def chance(low: float, high: float) -> float:
        return 1.0 if is_uniform else rng.uniform(low, high)

    sites = [
        Site(
            name=f"p{number}",
            groups=(
                Group(
                    hardware="P",
                    workers=rng.randint(2, workers_max),
                    prefill=slower(H200, chance(0.5, 2), chance(0.7, 1.3)),
                ),
            ),
        )
        for number in range(prefilling)
    ]
    served = [f"s{number}" for number in range(serving)]
    sites += [
        Site(
            name=name,
            groups=(
                Group(
                    hardware="S",
                    workers=rng.randint(4, 3 * workers_max),
                    prefill=slower(H20, chance(0.5, 2)),
                    decode=DecodeProfile(slots=20, step_s=0.025 * chance(0.5, 2)),
                ),
            ),
        )
        for name in served
    ]
    links = tuple(
        Link(
            from_site=site.name,
            to_site=name,
            capacity_bps=1e9 * (gbit_per_s[1] if is_uniform else rng.uniform(*gbit_per_s)),
        )
        for site in sites
        for name in served
        if site.name != name
    )
    demands = tuple(Demand(site=name, share=rng.uniform(0.3, 3)) for name in served)
    return FleetModel(sites=tuple(sites), links=links), demands
