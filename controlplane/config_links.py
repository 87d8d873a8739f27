"""Settings of what lies between datacenters; a part of `controlplane/config.py`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Annotated, Protocol, Self

from pydantic import Field, model_validator

from controlplane.config_health import Section
from controlplane.domain.tariff import HOURS, PricePeriod, Tariff, fault_of

SiteName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,31}$")]


class LinkEnds(Protocol):
    """Whatever names two datacenters."""

    @property
    def from_datacenter(self) -> str:
        """Where KV comes from."""

    @property
    def to_datacenter(self) -> str:
        """Where it goes."""

    @property
    def link_id(self) -> str:
        """Both, as in `east>west`."""


def check_names(datacenters: Sequence[str], links: Iterable[LinkEnds]) -> None:
    """
    Datacenters have different names, and links lie between two of them, once in each direction.

    Raises:
        ValueError: Says which name does not fit, and why.
    """
    if len(set(datacenters)) != len(datacenters):
        raise ValueError(f"datacenter names must differ, got {list(datacenters)}")
    seen: set[str] = set()
    for link in links:
        if {link.from_datacenter, link.to_datacenter} - set(datacenters):
            raise ValueError(
                f"link {link.link_id} names a datacenter that is not in {list(datacenters)}"
            )
        if link.from_datacenter == link.to_datacenter:
            raise ValueError(f"link {link.link_id} begins and ends in the same datacenter")
        if link.link_id in seen:
            raise ValueError(f"link {link.link_id} is there twice")
        seen.add(link.link_id)


class PricePeriodConfig(Section):
    """What egress costs in a part of every day, in UTC."""

    from_hour: Annotated[float, Field(ge=0, lt=HOURS, allow_inf_nan=False)]
    to_hour: Annotated[float, Field(gt=0, le=HOURS, allow_inf_nan=False)]
    #: Of a gigabyte (1e9 bytes), in the fleet's currency; the public clouds ask 0.01 to 0.12.
    price: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)]


class LinkConfig(Section):
    """A directed pair of datacenters."""

    from_datacenter: SiteName
    to_datacenter: SiteName
    #: Budget in megabits per second; senders never exceed it.
    capacity_mbit_per_s: Annotated[float, Field(gt=0, le=1e7)]
    #: Delay that senders add to KV bytes, to stand for distance on one machine. 0 on real links.
    emulated_delay_ms: Annotated[float, Field(ge=0, le=10_000)] = 0.0
    #: What a gigabyte (1e9 bytes) over it costs, in the fleet's currency, whatever the time.
    egress_price_per_gb: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] = 0.0
    #: Or by the time of the day; one an hour and a few more are enough.
    prices: Annotated[tuple[PricePeriodConfig, ...], Field(max_length=48)] = ()

    @model_validator(mode="after")
    def _prices_make_a_day(self) -> Self:
        if self.prices and self.egress_price_per_gb:
            raise ValueError("give egress_price_per_gb or prices, not both")
        fault = fault_of(self.tariff.periods)
        if fault is not None:
            raise ValueError(fault)
        return self

    @cached_property
    def tariff(self) -> Tariff:
        """What egress costs by the time of the day."""
        return Tariff(
            self.egress_price_per_gb,
            tuple(PricePeriod(one.from_hour, one.to_hour, one.price) for one in self.prices),
        )

    @property
    def link_id(self) -> str:
        """The link's name in keys, records and metrics."""
        return f"{self.from_datacenter}>{self.to_datacenter}"

    @property
    def capacity_bps(self) -> float:
        """Capacity in bits per second."""
        return self.capacity_mbit_per_s * 1e6


class TenantConfig(Section):
    """
    Where the data of a tenant may be.

    A request is a tenant's when its bearer token is one of those here, or its `user` is the name.
    Requests of tenants that are not listed may go anywhere.
    """

    #: As in the field `user` of its requests.
    name: Annotated[str, Field(min_length=1, max_length=256)]
    #: SHA-256 of its bearer tokens, hexadecimal: the tokens themselves do not belong into a file.
    tokens_sha256: Annotated[
        tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")], ...], Field(max_length=64)
    ] = ()
    #: Its prompts are prefilled and decoded in these alone, and no KV of them leaves them.
    datacenters: Annotated[tuple[SiteName, ...], Field(min_length=1, max_length=64)]
