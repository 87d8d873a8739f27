"""
Planning files: what hardware, datacenters and links a fleet has, with profiles and prices.

`prfaas plan` solves the throughput model for them and `prfaas replay` emulates workers after them.
`load_planning_fleet(path)` reads and checks a file and returns a `PlanningFleet`; its
`hardware_of(group)` gives the profiles of a group's workers as values of
`controlplane/domain/throughput/profile.py`, its `model.kv` the size of KV, `links` their capacity,
round trip time and price, and `fleet_model()` the fleet as the throughput model takes it.

The format, with every field, is described in `docs/throughput-model.md`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from controlplane.config_health import Section
from controlplane.config_links import SiteName, check_names
from controlplane.domain.throughput.fleet import FleetModel, Group, Link, Site
from controlplane.domain.throughput.profile import (
    DecodeProfile,
    KvSize,
    PrefillProfile,
    QuadraticPrefill,
    TablePrefill,
)
from controlplane.planfile_toml import read_toml

#: What a group's workers do. `either`: all that their hardware has a profile for, one at a time.
GroupRole = Literal["prefill", "decode", "either"]

HardwareName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$")]

_BITS_PER_GBIT = 1e9

#: The bounds below catch a wrong unit, not a bold plan: an hour for one prompt, a week of a GPU's
#: price for an hour, a link of a petabit.
Seconds = Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)]
PositiveSeconds = Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]
Price = Annotated[float, Field(ge=0, le=1e5, allow_inf_nan=False)]
TokenCount = Annotated[float, Field(gt=0, le=1 << 24, allow_inf_nan=False)]

_GROWS = "must grow from point to point"


class Spec(Section):
    """Base of all sections of planning files: no key but the known ones, no text for a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class PrefillSpec(Spec):
    """
    Seconds to prefill `l` uncached tokens on one worker.

    Either `fixed_s + s_per_token * l + s_per_token_squared * l**2`, or a table of measured points.
    """

    fixed_s: Seconds = 0.0
    s_per_token: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] = 0.0
    s_per_token_squared: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0
    #: Pairs of tokens and seconds; straight lines between them and beyond the ends.
    table: Annotated[tuple[tuple[TokenCount, PositiveSeconds], ...], Field(max_length=1000)] = ()

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        has_formula = bool(self.fixed_s or self.s_per_token or self.s_per_token_squared)
        if has_formula == bool(self.table):
            raise ValueError(
                "give either a table, or fixed_s, s_per_token and s_per_token_squared, "
                "not both and not neither"
            )
        if len(self.table) == 1:
            raise ValueError("a table needs two points at least")
        for (l0, t0), (l1, t1) in zip(self.table, self.table[1:], strict=False):
            if l1 <= l0:
                raise ValueError(f"table: tokens {_GROWS}, but {l1:g} follows {l0:g}")
            if t1 < t0:
                raise ValueError(f"table: seconds must not fall, but {t1:g} follows {t0:g}")
        return self

    def profile(self) -> PrefillProfile:
        """The profile that the model takes."""
        if self.table:
            return TablePrefill(points=self.table)
        return QuadraticPrefill(
            fixed_s=self.fixed_s,
            s_per_token=self.s_per_token,
            s_per_token_squared=self.s_per_token_squared,
        )


class DecodeSpec(Spec):
    """What one worker decodes within the objective of its token rate."""

    #: Largest batch at which every stream is fast enough.
    slots: Annotated[float, Field(gt=0, le=100_000, allow_inf_nan=False)]
    #: Of one step at that batch: one token for every stream.
    step_ms: Annotated[float, Field(gt=0, le=60_000, allow_inf_nan=False)]

    def profile(self) -> DecodeProfile:
        """The profile that the model takes."""
        return DecodeProfile(slots=self.slots, step_s=self.step_ms / 1000)


class HardwareSpec(Spec):
    """One kind of worker: what it takes for each phase, and what it costs."""

    name: HardwareName
    prefill: PrefillSpec | None = None
    decode: DecodeSpec | None = None
    #: Of one worker (all GPUs of an instance together), in the file's currency.
    price_per_hour: Price = 0.0
    #: Tokens of KV that the prefix cache of one worker holds; only the replay needs it.
    cache_tokens: Annotated[int, Field(ge=0, le=1 << 40)] = 0

    @model_validator(mode="after")
    def _can_do_something(self) -> Self:
        if self.prefill is None and self.decode is None:
            raise ValueError(f"hardware {self.name} has neither a prefill nor a decode profile")
        return self


class GroupSpec(Spec):
    """Workers of one kind in a datacenter."""

    hardware: HardwareName
    workers: Annotated[int, Field(ge=0, le=100_000)]
    role: GroupRole = "either"


class PlanningDatacenter(Spec):
    """A site with workers inside one fast network."""

    name: SiteName
    groups: Annotated[tuple[GroupSpec, ...], Field(min_length=1, max_length=64)]


class PlanningLink(Spec):
    """A directed pair of datacenters: KV flows from prefill to decode."""

    from_datacenter: SiteName
    to_datacenter: SiteName
    capacity_gbit_per_s: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
    #: Of 10**9 bytes that leave, in the file's currency.
    price_per_gb: Price = 0.0
    #: There and back; the throughput model does not need it, the replay does.
    rtt_ms: Annotated[float, Field(ge=0, le=10_000, allow_inf_nan=False)] = 0.0

    @property
    def link_id(self) -> str:
        """The link's name in keys, records and metrics."""
        return f"{self.from_datacenter}>{self.to_datacenter}"

    @property
    def capacity_bps(self) -> float:
        """Capacity in bits per second."""
        return self.capacity_gbit_per_s * _BITS_PER_GBIT


class PlanningModel(Spec):
    """What the KV of the model weighs: `state_bytes + bytes_per_token * l`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._/ -]{1,96}$")] = "model"
    #: Of the layers whose state does not grow; crosses the link with every request.
    kv_state_bytes: Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)] = 0.0
    kv_bytes_per_token: Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]

    @property
    def kv(self) -> KvSize:
        """The size that the model takes."""
        return KvSize(state_bytes=self.kv_state_bytes, bytes_per_token=self.kv_bytes_per_token)


class PlanningFleet(Spec):
    """A whole planning file of a fleet."""

    name: SiteName = "fleet"
    #: Of all prices; for people.
    currency: Annotated[str, Field(pattern=r"^\S{1,8}$")] = "USD"
    model: PlanningModel
    hardware: Annotated[tuple[HardwareSpec, ...], Field(min_length=1, max_length=64)]
    datacenters: Annotated[tuple[PlanningDatacenter, ...], Field(min_length=1, max_length=64)]
    links: Annotated[tuple[PlanningLink, ...], Field(max_length=4096)] = ()

    @model_validator(mode="after")
    def _hardware_fits(self) -> Self:
        kinds = {kind.name: kind for kind in self.hardware}
        if len(kinds) != len(self.hardware):
            raise ValueError(f"hardware names must differ, got {[k.name for k in self.hardware]}")
        for site in self.datacenters:
            for group in site.groups:
                kind = kinds.get(group.hardware)
                if kind is None:
                    raise ValueError(
                        f"datacenter {site.name}: hardware {group.hardware!r} is not one of "
                        f"{sorted(kinds)}"
                    )
                if group.role != "either" and getattr(kind, group.role) is None:
                    raise ValueError(
                        f"datacenter {site.name}: role is {group.role!r}, but hardware "
                        f"{group.hardware} has no {group.role} profile"
                    )
        return self

    @model_validator(mode="after")
    def _names_fit_together(self) -> Self:
        check_names([site.name for site in self.datacenters], self.links)
        return self

    def hardware_of(self, group: GroupSpec) -> HardwareSpec:
        """The kind of hardware of a group's workers."""
        return next(kind for kind in self.hardware if kind.name == group.hardware)

    def fleet_model(self) -> FleetModel:
        """The fleet as the throughput model takes it."""
        return FleetModel(
            sites=tuple(
                Site(name=site.name, groups=tuple(map(self._group, site.groups)))
                for site in self.datacenters
            ),
            links=tuple(
                Link(
                    from_site=link.from_datacenter,
                    to_site=link.to_datacenter,
                    capacity_bps=link.capacity_bps,
                    price_per_gb=link.price_per_gb,
                )
                for link in self.links
            ),
        )

    def _group(self, group: GroupSpec) -> Group:
        kind = self.hardware_of(group)
        return Group(
            hardware=group.hardware,
            workers=group.workers,
            prefill=kind.prefill.profile() if kind.prefill and group.role != "decode" else None,
            decode=kind.decode.profile() if kind.decode and group.role != "prefill" else None,
            price_per_hour=kind.price_per_hour,
        )


def load_planning_fleet(path: Path) -> PlanningFleet:
    """
    Read and check a planning file of a fleet.

    Raises:
        ConfigError: Not readable, not TOML, or a field is wrong; names file, line, field, what was
            found and what was expected.
    """
    return read_toml(path, PlanningFleet)
