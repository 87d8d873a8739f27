"""
What routers have served lately: a summary of each, and the sum of all. Values; no clock, no I/O.

A summary travels through the store as JSON; what is absurd in it is refused as a whole, because it is
the leader who would believe it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from pydantic import TypeAdapter, ValidationError

from controlplane.domain.throughput.profile_fit import Normals
from controlplane.domain.throughput.profile_fit import summed as summed_normals
from controlplane.planner.histogram import BINS_MAX, TOKENS_MAX, Bin, Histogram
from controlplane.planner.histogram import summed as summed_histograms

#: Requests per second of one router, and requests in one bin: beyond anything real.
_RATE_MAX: Final = 1e9
#: Sums of the normal equations; products of two stay finite.
_SUM_MAX: Final = 1e100
#: Datacenters of one summary.
_SITES_MAX: Final = 64
#: Digits of a summary's numbers: a hundredth of a percent is far below what is measured.
_DIGITS: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteTraffic:
    """Requests whose decode is in one datacenter."""

    #: Requests that arrive per second, over the window and over a few seconds.
    arrival_per_s: float = 0.0
    burst_per_s: float = 0.0
    #: Tokens that no prefill worker of the datacenter had cached.
    uncached: Histogram = field(default_factory=Histogram)
    output: Histogram = field(default_factory=Histogram)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What one router has seen, or all of them together."""

    #: By decode datacenter.
    sites: Mapping[str, SiteTraffic] = field(default_factory=dict)
    #: Prefills by the datacenter that computed them.
    prefills: Mapping[str, Normals] = field(default_factory=dict)

    @property
    def arrival_per_s(self) -> float:
        """Requests per second, over the window."""
        return sum(site.arrival_per_s for site in self.sites.values())

    @property
    def burst_per_s(self) -> float:
        """Requests per second, over the last few seconds."""
        return sum(site.burst_per_s for site in self.sites.values())

    @property
    def requests(self) -> float:
        """Requests that the lengths rest on, older ones with less than 1 each."""
        return sum(site.uncached.weight for site in self.sites.values())


def summed(demands: Iterable[Demand]) -> Demand:
    """All routers together."""
    sites: dict[str, list[SiteTraffic]] = {}
    prefills: dict[str, list[Normals]] = {}
    for demand in demands:
        for name, site in demand.sites.items():
            sites.setdefault(name, []).append(site)
        for name, normals in demand.prefills.items():
            prefills.setdefault(name, []).append(normals)
    return Demand(
        sites={
            name: SiteTraffic(
                arrival_per_s=sum(each.arrival_per_s for each in parts),
                burst_per_s=sum(each.burst_per_s for each in parts),
                uncached=summed_histograms(each.uncached for each in parts),
                output=summed_histograms(each.output for each in parts),
            )
            for name, parts in sites.items()
        },
        prefills={name: summed_normals(parts) for name, parts in prefills.items()},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _SiteDocument:
    arrival_per_s: float
    burst_per_s: float
    #: Bin, weight, tokens; three numbers each.
    uncached: tuple[tuple[int, float, float], ...] = ()
    output: tuple[tuple[int, float, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Document:
    """A summary as JSON: short, since every router sends one every few seconds."""

    sites: Mapping[str, _SiteDocument]
    prefills: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


_ADAPTER: Final = TypeAdapter(_Document)


def encode_demand(demand: Demand) -> bytes:
    """A summary as JSON: 6 KB for a datacenter with all lengths."""
    return _ADAPTER.dump_json(
        _Document(
            sites={
                name: _SiteDocument(
                    arrival_per_s=_short(site.arrival_per_s),
                    burst_per_s=_short(site.burst_per_s),
                    uncached=_rows(site.uncached),
                    output=_rows(site.output),
                )
                for name, site in demand.sites.items()
            },
            prefills={
                # In full: differences of these sums matter.
                name: normals.numbers()
                for name, normals in demand.prefills.items()
            },
        )
    )


def decode_demand(body: bytes) -> Demand:
    """
    A summary that a router has sent.

    Raises:
        ValueError: It is none, or says what cannot be.
    """
    try:
        document = _ADAPTER.validate_json(body)
    except ValidationError as error:
        raise ValueError(f"no traffic: {error.errors(include_url=False)[0]['msg']}") from error
    if max(len(document.sites), len(document.prefills)) > _SITES_MAX:
        raise ValueError(f"traffic of more than {_SITES_MAX} datacenters")
    return Demand(
        sites={
            name: SiteTraffic(
                arrival_per_s=_checked(site.arrival_per_s, _RATE_MAX, "arrival_per_s"),
                burst_per_s=_checked(site.burst_per_s, _RATE_MAX, "burst_per_s"),
                uncached=_histogram(site.uncached, "uncached"),
                output=_histogram(site.output, "output"),
            )
            for name, site in document.sites.items()
        },
        prefills={name: _normals(numbers) for name, numbers in document.prefills.items()},
    )


def _rows(histogram: Histogram) -> tuple[tuple[int, float, float], ...]:
    return tuple(
        (number, _short(each.weight), _short(each.tokens))
        for number, each in sorted(histogram.bins.items())
    )


def _histogram(rows: Iterable[tuple[int, float, float]], name: str) -> Histogram:
    bins: dict[int, Bin] = {}
    for number, weight, tokens in rows:
        if not 0 <= number < BINS_MAX or number in bins:
            raise ValueError(f"{name}: there is no bin {number}, or it is there twice")
        _checked(weight, _RATE_MAX, name)
        bins[number] = Bin(weight, _checked(tokens, weight * TOKENS_MAX * 1.01, name))
    return Histogram(bins=bins)


def _normals(numbers: tuple[float, ...]) -> Normals:
    normals = Normals.of_numbers(numbers)
    for number in numbers:
        _checked(number, _SUM_MAX, "prefills")
    return normals


def _checked(number: float, largest: float, name: str) -> float:
    if not (math.isfinite(number) and 0 <= number <= largest):
        raise ValueError(f"{name} is {number}, expected 0 to {largest:g}")
    return number


def _short(number: float) -> float:
    return float(f"{number:.{_DIGITS}g}")
