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

from pydantic import Field, model_validator

from controlplane.config_links import SiteName, check_names
from controlplane.domain.throughput.fleet import FleetModel, Group, Link, Site
from controlplane.errors import ConfigError
from controlplane.planfile_toml import read_toml
from controlplane.profilefile import (
    DecodeSpec,
    KvSpec,
    PrefillSpec,
    ProfileFile,
    Spec,
    load_profile,
)

#: What a group's workers do. `either`: all that their hardware has a profile for, one at a time.
GroupRole = Literal["prefill", "decode", "either"]

#: A path, or the name of a profile that ships.
ProfileName = Annotated[str, Field(min_length=1, max_length=4096)]

HardwareName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$")]

_BITS_PER_GBIT = 1e9

#: The bounds below catch a wrong unit, not a bold plan: a week of a GPU's price for an hour, a link of a
#: petabit.
Price = Annotated[float, Field(ge=0, le=1e5, allow_inf_nan=False)]


class HardwareSpec(Spec):
    """One kind of worker: what it takes for each phase, and what it costs."""

    name: HardwareName
    #: A profile file, relative to this one, or the name of one that ships; what is given here besides
    #: counts instead of what it says.
    profile: ProfileName | None = None
    prefill: PrefillSpec | None = None
    decode: DecodeSpec | None = None
    #: Of one worker (all GPUs of an instance together), in the file's currency.
    price_per_hour: Price = 0.0
    #: Tokens of KV that the prefix cache of one worker holds; only the replay needs it.
    cache_tokens: Annotated[int, Field(ge=0, le=1 << 40)] = 0

    @model_validator(mode="after")
    def _can_do_something(self) -> Self:
        if self.prefill is None and self.decode is None and self.profile is None:
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


class PlanningModel(KvSpec):
    """What the KV of the model weighs: `state_bytes + bytes_per_token * l`."""

    #: A profile file, relative to this one, or the name of one that ships: its sizes.
    profile: ProfileName | None = None
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._/ -]{1,96}$")] = "model"

    @model_validator(mode="after")
    def _has_a_size(self) -> Self:
        if self.profile is None and not self.kv_bytes_per_token:
            raise ValueError("give kv_bytes_per_token, or a profile that has it")
        return self


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
                if (
                    group.role != "either"
                    and getattr(kind, group.role) is None
                    and kind.profile is None
                ):
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
    Read and check a planning file of a fleet, and the profiles that it names.

    Raises:
        ConfigError: Not readable, not TOML, or a field is wrong; names file, line, field, what was
            found and what was expected.
    """
    fleet = read_toml(path, PlanningFleet)
    model = fleet.model
    if model.profile is not None:
        model = _with_sizes(model, _named(model.profile, path, "model.profile"), path)
    hardware = tuple(
        _with_times(kind, _named(kind.profile, path, f"hardware {kind.name}: profile"))
        if kind.profile is not None
        else kind
        for kind in fleet.hardware
    )
    whole = fleet.model_copy(update={"model": model, "hardware": hardware})
    for site in whole.datacenters:
        for group in site.groups:
            kind = whole.hardware_of(group)
            if group.role != "either" and getattr(kind, group.role) is None:
                raise ConfigError(
                    f"{path}: datacenter {site.name}: role is {group.role!r}, but the profile of "
                    f"hardware {kind.name} ({kind.profile}) has no [{group.role}]"
                )
    return whole


def _named(name: str, path: Path, field: str) -> ProfileFile:
    try:
        return load_profile(name, beside=path.parent)
    except ConfigError as error:
        raise ConfigError(f"{path}: {field}: {error.message}") from error


def _with_sizes(model: PlanningModel, profile: ProfileFile, path: Path) -> PlanningModel:
    """What the file itself says counts first."""
    if model.kv_bytes_per_token:
        return model
    if profile.model is None:
        raise ConfigError(
            f"{path}: model.profile: {model.profile} does not tell how large KV is: give "
            "kv_bytes_per_token and kv_state_bytes"
        )
    return model.model_copy(
        update={
            "kv_bytes_per_token": profile.model.kv_bytes_per_token,
            "kv_state_bytes": model.kv_state_bytes or profile.model.kv_state_bytes,
        }
    )


def _with_times(kind: HardwareSpec, profile: ProfileFile) -> HardwareSpec:
    return kind.model_copy(
        update={
            "prefill": kind.prefill or profile.prefill,
            "decode": kind.decode or profile.decode,
        }
    )
