"""Times of an engine server, from what its requests took."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: Weight of the newest measurement in a running mean: about the last ten count.
_NEWEST_SHARE: Final = 0.2
#: Shorter prefills tell what a request costs, not what a token does.
_TELLING_TOKENS: Final = 256


@dataclass(slots=True, kw_only=True)
class Timing:
    """Running means; the first values come from trial requests, where a server takes any; else 0."""

    prefill_s_per_token: float
    prefill_fixed_s: float
    decode_step_s: float

    def add_prefill(self, tokens: int, compute_s: float) -> None:
        """A prefill of so many tokens that were not cached took so long."""
        if tokens >= _TELLING_TOKENS:
            per_token_s = max(0.0, compute_s - self.prefill_fixed_s) / tokens
            self.prefill_s_per_token = _mean(self.prefill_s_per_token, per_token_s)

    def add_step(self, step_s: float) -> None:
        """A decode step took so long."""
        self.decode_step_s = _mean(self.decode_step_s, step_s)


def _mean(known: float, new: float) -> float:
    """Nothing is known yet of a server that could not be tried: its first request tells."""
    return known + _NEWEST_SHARE * (new - known) if known else new
