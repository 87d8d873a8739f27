"""
What the throughput model is solved for: a fleet with its links, and the traffic. Pure.

The case of the paper, one datacenter that only prefills and one that serves, is the smallest one.

Source:
    PrfaaS (arXiv 2604.15039) Table 4 for the symbols. More than two datacenters, unequal groups and
    directed links are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from controlplane.domain.throughput.lengths import LengthDistribution
from controlplane.domain.throughput.profile import DecodeProfile, KvSize, PrefillProfile

BITS_PER_BYTE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Workers of one kind of hardware in a datacenter; those with both profiles are convertible."""

    hardware: str
    workers: int
    prefill: PrefillProfile | None = None
    decode: DecodeProfile | None = None
    #: Of one worker, in any currency.
    price_per_hour: float = 0.0

    @property
    def is_convertible(self) -> bool:
        """Whether its workers can change between the phases."""
        return self.prefill is not None and self.decode is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A datacenter: what is inside is never limited by its network."""

    name: str
    groups: tuple[Group, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A directed pair of datacenters: `from_site` prefills, `to_site` decodes."""

    from_site: str
    to_site: str
    #: What KV may use of it, bits per second, >= 0.
    capacity_bps: float
    #: Of 10**9 bytes, in the currency of the workers' price.
    price_per_gb: float = 0.0

    @property
    def link_id(self) -> str:
        """Its name in plans and prices."""
        return f"{self.from_site}>{self.to_site}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetModel:
    """All datacenters and links."""

    sites: tuple[Site, ...]
    links: tuple[Link, ...] = ()

    def site(self, name: str) -> Site | None:
        """The datacenter of this name."""
        return next((site for site in self.sites if site.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """The traffic that one datacenter decodes."""

    site: str
    #: Of all requests, above 0; shares need not sum to 1, they are compared.
    share: float
    #: Of uncached tokens; another one than the traffic's as a whole.
    lengths: LengthDistribution | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficModel:
    """What arrives, and how large its KV is."""

    #: Requests per second over all datacenters, >= 0.
    arrival_per_s: float
    #: Uncached input length: what is left to compute after prefix matching.
    lengths: LengthDistribution
    #: Mean over requests, > 0.
    output_tokens: float
    kv: KvSize
    #: Where requests decode. Empty: at each datacenter that can, by what it could decode.
    demands: tuple[Demand, ...] = field(default=())
