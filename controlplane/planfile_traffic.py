"""
Traffic files for `prfaas plan`: how much arrives where, how long prompts and answers are.

The format, with every field, is described in `docs/throughput-model.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from controlplane.config import SiteName
from controlplane.planfile_toml import read_toml
from controlplane.profilefile import Spec, TokenCount


class LengthsSpec(Spec):
    """Input lengths in tokens, cached ones included."""

    distribution: Literal["lognormal", "empirical"]
    #: Of the logarithm of the length, before truncation.
    mu: Annotated[float, Field(ge=0, le=20, allow_inf_nan=False)] | None = None
    sigma: Annotated[float, Field(gt=0, le=5, allow_inf_nan=False)] | None = None
    min_tokens: TokenCount | None = None
    max_tokens: TokenCount | None = None
    #: A trace of any kind that `prfaas replay` reads; relative to the traffic file.
    trace: Annotated[str, Field(min_length=1, max_length=4096)] | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        drawn = {
            "mu": self.mu,
            "sigma": self.sigma,
            "min_tokens": self.min_tokens,
            "max_tokens": self.max_tokens,
        }
        is_drawn = self.distribution == "lognormal"
        needed = drawn if is_drawn else {"trace": self.trace}
        other = {"trace": self.trace} if is_drawn else drawn
        if missing := [name for name, value in needed.items() if value is None]:
            raise ValueError(f"distribution = {self.distribution!r} needs {', '.join(missing)}")
        if given := [name for name, value in other.items() if value is not None]:
            raise ValueError(f"distribution = {self.distribution!r} knows no {', '.join(given)}")
        if self.min_tokens and self.max_tokens and self.min_tokens >= self.max_tokens:
            raise ValueError(
                f"min_tokens = {self.min_tokens:g} must be below max_tokens = {self.max_tokens:g}"
            )
        return self


class TrafficFile(Spec):
    """A whole traffic file."""

    #: Requests per second over all datacenters; that of the trace without.
    arrival_per_s: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] | None = None
    #: Mean per request; that of the trace without.
    output_tokens: Annotated[float, Field(ge=1, le=1 << 20, allow_inf_nan=False)] | None = None
    #: Part of the input tokens of every prompt that prefix caches already hold.
    cached_share: Annotated[float, Field(ge=0, le=0.99, allow_inf_nan=False)] = 0.0
    lengths: LengthsSpec
    #: By datacenter that decodes: its part of the requests; they are compared, not summed up. Without
    #: it, each has as much as it could decode.
    shares: Mapping[SiteName, Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]] = Field(
        default_factory=dict
    )

    @model_validator(mode="after")
    def _has_figures(self) -> Self:
        if self.lengths.distribution != "empirical":
            figures = {"arrival_per_s": self.arrival_per_s, "output_tokens": self.output_tokens}
            if missing := [name for name, value in figures.items() if value is None]:
                raise ValueError(f"{', '.join(missing)} must be given when there is no trace")
        return self


def load_traffic(path: Path) -> TrafficFile:
    """
    Read and check a traffic file; its trace, if it names one, is not read yet.

    Raises:
        ConfigError: Not readable, not TOML, or a field is wrong; names file, line, field, what was
            found and what was expected.
    """
    return read_toml(path, TrafficFile)
