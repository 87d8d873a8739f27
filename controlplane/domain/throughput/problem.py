"""What is shared out, and what sharing comes to: values of `balance.py` and `column_search.py`. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from controlplane.domain.throughput.curves import Curve, Stretch
from controlplane.domain.throughput.lengths import LengthDistribution


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A pool that requests of a demand can be prefilled in."""

    #: Number of the pool and of the link, among all resources; None inside a datacenter.
    pool: int
    link: int | None
    #: Seconds by length on one worker.
    time: Curve


@dataclass(frozen=True, slots=True, kw_only=True)
class DemandOptions:
    """A serving datacenter's requests, and where they can be prefilled."""

    share: float
    lengths: LengthDistribution
    options: tuple[Option, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What a resource can do: `load * rate + fixed * rate <= capacity`."""

    resource: int
    #: Workers' seconds per second, or bytes per second, > 0.
    capacity: float
    #: What is used of it per request by others than the bands.
    fixed: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Demands, rows, and the size of KV by length as a curve."""

    demands: tuple[DemandOptions, ...]
    rows: tuple[Row, ...]
    kv: Curve

    def can_serve(self, demand: DemandOptions) -> bool:
        """Whether some option of a demand has all its resources."""
        present = {row.resource for row in self.rows}
        return any(
            option.pool in present and (option.link is None or option.link in present)
            for option in demand.options
        )


@dataclass(frozen=True, slots=True)
class Way:
    """One way to serve all requests of a demand, with what it uses per request of all demands."""

    demand: int
    stretches: tuple[Stretch, ...]
    use: Mapping[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """The best shares."""

    #: Highest utilisation at one request per second; its inverse is the rate that fits.
    rho: float
    #: No way of sharing out is below this.
    bound: float
    #: By number of the resource: what one more unit of it brings, in requests per unit.
    prices: Mapping[int, float]
    #: For each demand, ways and their weights, which sum to 1.
    ways: tuple[tuple[tuple[Way, float], ...], ...]
    #: For each demand, the cost of each option by length at the prices that its bands rest on.
    costs: tuple[tuple[Curve, ...], ...]


@dataclass(slots=True)
class WayPool:
    """The ways of the last solution: one for other roles begins with them. Mutable."""

    ways: dict[tuple[int, tuple[Stretch, ...]], Way] = field(default_factory=dict)
    #: Links that were overloaded as long as nothing kept them from it.
    busy_links: set[int] = field(default_factory=set)

    def usable(self, problem: Problem, resources: set[int]) -> list[Way]:
        """Ways that use only what there is."""
        return [
            way
            for way in self.ways.values()
            if way.demand < len(problem.demands) and resources.issuperset(way.use)
        ]
