"""
Profile files: how long one kind of worker takes for each phase of one model, and how large its KV is.

`prfaas profile` writes them; planning files and agents name them. Some ship with the package: those of the
paper's models. The format is described in `docs/profiles.md`.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from controlplane.config_health import Section
from controlplane.domain.throughput.profile import (
    DecodeProfile,
    KvSize,
    PrefillProfile,
    QuadraticPrefill,
    TablePrefill,
)
from controlplane.domain.throughput.profile_fit import fit, seen, summed
from controlplane.errors import ConfigError
from controlplane.planfile_toml import read_toml

#: The bounds catch a wrong unit: an hour for one prompt, a minute for one step.
Seconds = Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)]
PositiveSeconds = Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]
StepMs = Annotated[float, Field(gt=0, le=60_000, allow_inf_nan=False)]
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
    step_ms: StepMs
    #: Pairs of batch and milliseconds of a step, as measured; empty where only the above is known.
    table: Annotated[tuple[tuple[TokenCount, StepMs], ...], Field(max_length=1000)] = ()

    def profile(self) -> DecodeProfile:
        """The profile that the model takes."""
        return DecodeProfile(slots=self.slots, step_s=self.step_ms / 1000)

    @property
    def lone_step_s(self) -> float:
        """Of the smallest batch that is known, seconds."""
        return (self.table[0][1] if self.table else self.step_ms) / 1000


class KvSpec(Spec):
    """How large KV is: `kv_state_bytes + kv_bytes_per_token * l`."""

    #: Of the layers whose state does not grow; crosses the link with every request.
    kv_state_bytes: Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)] = 0.0
    kv_bytes_per_token: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] = 0.0

    @property
    def kv(self) -> KvSize:
        """The size that the throughput model takes."""
        return KvSize(state_bytes=self.kv_state_bytes, bytes_per_token=self.kv_bytes_per_token)


class Measurement(Spec):
    """How a profile was measured."""

    #: Name and version.
    engine: Annotated[str, Field(max_length=256)]
    #: Longest context that the server takes.
    context_tokens_max: Annotated[int, Field(gt=0)]
    #: Prompt tokens of each stream while decode was measured.
    decode_context_tokens: Annotated[int, Field(gt=0)]
    #: Objective that `decode.slots` was found for, seconds of each further token.
    tpot_s: PositiveSeconds
    #: How sure the medians are: the widest half interval (95 %), as a part of its median.
    uncertainty_max: Annotated[float, Field(ge=0)]


class ProfileFile(Spec):
    """A whole profile file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._/ -]{1,96}$")]
    #: `measured` by `prfaas profile`; `published` figures; `derived` from published ones by arithmetic;
    #: `recovered`: what published results leave as the only values that give them.
    source: Literal["measured", "published", "derived", "recovered"]
    #: Where the figures are from, for people.
    note: Annotated[str, Field(max_length=1000)] = ""
    model: KvSpec | None = None
    prefill: PrefillSpec | None = None
    decode: DecodeSpec | None = None
    measurement: Measurement | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.prefill is None and self.decode is None and self.model is None:
            raise ValueError("it has no [model], no [prefill] and no [decode]: nothing at all")
        return self

    def quadratic(self) -> QuadraticPrefill | None:
        """Prefill as one polynomial, as heartbeats carry it; None without prefill."""
        if self.prefill is None:
            return None
        if not self.prefill.table:
            return QuadraticPrefill(
                fixed_s=self.prefill.fixed_s,
                s_per_token=self.prefill.s_per_token,
                s_per_token_squared=self.prefill.s_per_token_squared,
            )
        return fit(
            summed(seen(tokens, 0, took_s) for tokens, took_s in self.prefill.table),
            None,
            prior_requests=0.0,
            requests_min=0.0,
            factor_max=1.0,
        )


def shipped_profiles() -> list[str]:
    """Names of the profiles that come with the package."""
    return sorted(
        found.name.removesuffix(".toml")
        for found in _shipped().iterdir()
        if found.name.endswith(".toml")
    )


def load_profile(name: str, *, beside: Path) -> ProfileFile:
    """
    Read and check a profile.

    Args:
        name: A path that ends with `.toml`, or the name of one that ships.
        beside: Where relative paths begin.

    Raises:
        ConfigError: There is none of this name, or a field is wrong; names file, line, field, what was
            found and what was expected.
    """
    if name.endswith(".toml"):
        return read_toml(beside / name, ProfileFile)
    if name not in shipped_profiles():
        raise ConfigError(
            f"{name!r} is neither a file (its name would end with .toml) nor a profile that ships: "
            f"{', '.join(shipped_profiles())}"
        )
    return read_toml(Path(str(_shipped() / f"{name}.toml")), ProfileFile)


def _shipped() -> Path:
    return Path(str(files("controlplane") / "profiles"))
