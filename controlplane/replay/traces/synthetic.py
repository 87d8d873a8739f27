"""The paper's workload: Poisson arrivals, log-normal prompt lengths cut to a range, fixed output."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from random import Random
from typing import Final

from controlplane.replay.traces.lines import TraceError
from controlplane.replay.traces.request import (
    INPUT_TOKENS_MAX,
    OUTPUT_TOKENS_MAX,
    TraceRequest,
)

#: How a specification on the command line begins.
SYNTHETIC_PREFIX: Final = "synthetic:"

#: Draws for one length; a range that is hit more rarely is a mistake.
_DRAWS_MAX: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticTrace:
    """
    Requests drawn from distributions; the defaults are the paper's (section 4.1, K = 1000).

    `ln(length)` is normal with mean `mu` and deviation `sigma`; lengths outside the range are drawn
    again.
    """

    #: Requests per second.
    rate: float = 3.0
    requests_total: int = 10_000
    mu: float = 9.90
    sigma: float = 1.0
    input_min: int = 128
    input_max: int = 128_000
    output: int = 1024
    #: A burst multiplies the rate by so much, from `burst_at` for `burst_s` seconds.
    burst: float = 1.0
    burst_at: float = 0.0
    burst_s: float = 0.0

    block_tokens = 512

    @property
    def name(self) -> str:
        """For people."""
        return f"synthetic, {self.rate:g} requests/s"

    @property
    def count(self) -> int | None:
        """How many there are."""
        return self.requests_total

    def requests(self, seed: int) -> Iterator[TraceRequest]:
        """Draw; see `Trace`."""
        rng = Random(seed)
        at_s = 0.0
        for _ in range(self.requests_total):
            yield TraceRequest(at_s, self._length(rng), self.output)
            at_s = self._after(at_s, rng.expovariate(1.0))

    def _after(self, at_s: float, units: float) -> float:
        """When the next one comes: time passes faster in a burst."""
        end_s = self.burst_at + self.burst_s
        for until_s, rate in (
            (self.burst_at, self.rate),
            (end_s, self.rate * self.burst),
        ):
            if at_s < until_s:
                within = (until_s - at_s) * rate
                if units < within:
                    return at_s + units / rate
                units -= within
                at_s = until_s
        return at_s + units / self.rate

    def _length(self, rng: Random) -> int:
        for _ in range(_DRAWS_MAX):
            length = round(math.exp(rng.gauss(self.mu, self.sigma)))
            if self.input_min <= length <= self.input_max:
                return length
        raise TraceError(
            f"{SYNTHETIC_PREFIX} no length between {self.input_min} and {self.input_max} was drawn "
            f"in {_DRAWS_MAX} tries: widen the range or change mu and sigma"
        )


_BOUNDS: Final = {
    "rate": (1e-6, 1e6),
    "requests_total": (1, 1 << 40),
    "mu": (-20.0, 20.0),
    "sigma": (0.0, 10.0),
    "input_min": (1, INPUT_TOKENS_MAX),
    "input_max": (1, INPUT_TOKENS_MAX),
    "output": (1, OUTPUT_TOKENS_MAX),
    "burst": (1e-3, 1e4),
    "burst_at": (0.0, 1e9),
    "burst_s": (0.0, 1e9),
}

#: Names on the command line that differ from those here.
_SHORT: Final = {"requests": "requests_total"}


def parse_synthetic(spec: str) -> SyntheticTrace:
    """
    A trace from `synthetic:rate=3.2,requests=5000,output=1024`; what is not said is the paper's.

    Raises:
        TraceError: An unknown name, or a value that is none or out of range.
    """
    kinds = {one.name: one.type for one in fields(SyntheticTrace)}
    known = ", ".join(sorted({*_SHORT, *kinds} - set(_SHORT.values())))
    values: dict[str, float | int] = {}
    for part in filter(None, spec.removeprefix(SYNTHETIC_PREFIX).split(",")):
        given, _, text = part.partition("=")
        name = _SHORT.get(given.strip(), given.strip())
        if name not in kinds:
            raise TraceError(f"{SYNTHETIC_PREFIX} unknown name {given!r}; known are {known}")
        values[name] = _value(given, text, is_whole=kinds[name] == "int", bounds=_BOUNDS[name])
    trace = SyntheticTrace(**values)  # type: ignore[arg-type]
    if trace.input_min > trace.input_max:
        raise TraceError(
            f"{SYNTHETIC_PREFIX} input_min={trace.input_min} is over input_max={trace.input_max}"
        )
    return trace


def _value(name: str, text: str, *, is_whole: bool, bounds: tuple[float, float]) -> float | int:
    low, high = bounds
    what = "a whole number" if is_whole else "a number"
    try:
        value = int(text) if is_whole else float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise TraceError(
            f"{SYNTHETIC_PREFIX} {name}: expected {what} from {low:g} to {high:g}, got {text!r}"
        )
    return value
