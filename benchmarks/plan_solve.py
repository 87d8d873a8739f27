"""
`python -m benchmarks.plan_solve`: how long the throughput model takes to solve 16 datacenters.

Fleets are drawn by chance from a seed: unequal hardware, a link from each datacenter to each that
serves. Printed are processor seconds of one solution, and how far thresholds stay below what no
sharing out of lengths could exceed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from random import Random
from typing import Final

import click
from rich.console import Console
from rich.table import Table

from controlplane.domain.throughput.fleet import Demand, FleetModel, Group, Link, Site, TrafficModel
from controlplane.domain.throughput.lengths import TruncatedLogNormal, empirical
from controlplane.domain.throughput.profile import DecodeProfile, KvSize, QuadraticPrefill
from controlplane.domain.throughput.solve import solve

#: Of the table, in characters.
_WIDTH: Final = 120
_KV: Final = KvSize(state_bytes=172 << 20, bytes_per_token=17_553)
_LENGTHS: Final = TruncatedLogNormal(mu=9.9, sigma=1.0, shortest=128, longest=128_000)
#: As the planner sees them: observed lengths in steps, so many of them.
_OBSERVED: Final = empirical([_LENGTHS.quantile((step + 0.5) / 320) for step in range(320)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What is solved."""

    prefilling: int
    serving: int
    gbit_per_s: tuple[float, float]
    output_tokens: float = 400
    #: Lengths that were observed, and time that may be lent: as the planner asks.
    is_observed: bool = False


SHAPES: Final = (
    Shape(prefilling=1, serving=1, gbit_per_s=(5, 50)),
    Shape(prefilling=4, serving=4, gbit_per_s=(5, 50)),
    Shape(prefilling=8, serving=8, gbit_per_s=(20, 200)),
    Shape(prefilling=8, serving=8, gbit_per_s=(5, 50)),
    Shape(prefilling=8, serving=8, gbit_per_s=(5, 50), is_observed=True),
    Shape(prefilling=15, serving=1, gbit_per_s=(5, 50)),
    Shape(prefilling=0, serving=16, gbit_per_s=(5, 50)),
    Shape(prefilling=8, serving=8, gbit_per_s=(0.2, 5)),
    Shape(prefilling=0, serving=16, gbit_per_s=(0.2, 5)),
)


def fleet_by_chance(shape: Shape, seed: int) -> tuple[FleetModel, TrafficModel]:
    """An unequal fleet of a shape, and traffic for it."""
    rng = Random(seed)
    sites = []
    for number in range(shape.prefilling + shape.serving):
        serves = number >= shape.prefilling
        factor = rng.uniform(0.5, 2) * (3 if serves else 1)
        sites.append(
            Site(
                name=f"{'s' if serves else 'p'}{number}",
                groups=(
                    Group(
                        hardware="G",
                        workers=rng.randint(4, 40) if serves else rng.randint(2, 12),
                        prefill=QuadraticPrefill(
                            fixed_s=0.2 * factor,
                            s_per_token=43e-6 * factor * rng.uniform(0.7, 1.3),
                            s_per_token_squared=94e-12 * factor,
                        ),
                        decode=DecodeProfile(slots=20, step_s=0.025 * rng.uniform(0.5, 2))
                        if serves
                        else None,
                    ),
                ),
            )
        )
    served = [site.name for site in sites[shape.prefilling :]]
    links = tuple(
        Link(from_site=site.name, to_site=name, capacity_bps=1e9 * rng.uniform(*shape.gbit_per_s))
        for site in sites
        for name in served
        if site.name != name
    )
    return FleetModel(sites=tuple(sites), links=links), TrafficModel(
        arrival_per_s=1.0,
        lengths=_OBSERVED if shape.is_observed else _LENGTHS,
        output_tokens=shape.output_tokens,
        kv=_KV,
        demands=tuple(Demand(site=name, share=rng.uniform(0.3, 3)) for name in served),
    )


@click.command()
@click.option("--seeds", default=4, show_default=True, help="Fleets of each shape.")
def main(seeds: int) -> None:
    """Solve fleets of several shapes and print time and gap."""
    table = Table(title="Solving the throughput model, processor seconds")
    for label in (
        "prefilling",
        "serving",
        "links",
        "Gbit/s",
        "lengths",
        "median s",
        "longest s",
        "gap",
        "complete",
    ):
        table.add_column(label, justify="right")
    for shape in SHAPES:
        taken, gaps, links, complete = [], [], 0, 0
        for seed in range(seeds):
            fleet, traffic = fleet_by_chance(shape, seed)
            links = len(fleet.links)
            began_s = time.process_time()
            found = solve(fleet, traffic, lend_max=0.2 if shape.is_observed else 0.0)
            taken.append(time.process_time() - began_s)
            gaps.append(found.gap)
            complete += found.is_complete
        taken.sort()
        table.add_row(
            str(shape.prefilling),
            str(shape.serving),
            str(links),
            "{:g}-{:g}".format(*shape.gbit_per_s),
            "observed" if shape.is_observed else "log-normal",
            f"{taken[len(taken) // 2]:.3f}",
            f"{taken[-1]:.3f}",
            f"{max(gaps):.2%}",
            f"{complete}/{seeds}",
        )
    Console(width=_WIDTH).print(table)


if __name__ == "__main__":
    main()
