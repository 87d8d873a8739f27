"""Times of an engine server, from what its requests took."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from controlplane.profilefile import ProfileFile

#: Weight of the newest measurement in a running mean: about the last ten count; fewer count alike.
_NEWEST_SHARE: Final = 0.2
_ENOUGH: Final = 10
#: Shorter prefills tell what a request costs, not what a token does.
_TELLING_TOKENS: Final = 256


@dataclass(slots=True, kw_only=True)
class Timing:
    """
    Running means; the first values come from a profile, or from trial requests where a server takes any.

    All are seconds, and 0 where nothing is known yet.
    """

    prefill_s_per_token: float = 0.0
    prefill_fixed_s: float = 0.0
    prefill_s_per_token_squared: float = 0.0
    decode_step_s: float = 0.0
    #: How many measurements are behind what is known, for each kind; a trial is one.
    known_from: int = 1
    _seen: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of_profile(cls, profile: ProfileFile, tried: Timing) -> Timing:
        """What was measured at all lengths, and for what was not, the trial's word."""
        prefill, decode = profile.quadratic(), profile.decode
        return cls(
            prefill_s_per_token=prefill.s_per_token if prefill else tried.prefill_s_per_token,
            prefill_fixed_s=prefill.fixed_s if prefill else tried.prefill_fixed_s,
            prefill_s_per_token_squared=prefill.s_per_token_squared if prefill else 0.0,
            decode_step_s=decode.lone_step_s if decode else tried.decode_step_s,
            known_from=_ENOUGH,
        )

    def add_prefill(self, tokens: int, compute_s: float, *, cached_tokens: int = 0) -> None:
        """A prefill of so many tokens behind so many that were cached took so long."""
        if 0 < tokens < _TELLING_TOKENS:
            fixed_s = max(0.0, compute_s - self.prefill_s_per_token * tokens)
            self.prefill_fixed_s = self._mean("fixed", self.prefill_fixed_s, fixed_s)
        elif tokens:
            pairs_s = self.prefill_s_per_token_squared * tokens * (tokens + 2 * cached_tokens)
            per_token_s = max(0.0, compute_s - self.prefill_fixed_s - pairs_s) / tokens
            self.prefill_s_per_token = self._mean("token", self.prefill_s_per_token, per_token_s)

    def add_step(self, step_s: float) -> None:
        """A decode step took so long."""
        self.decode_step_s = self._mean("step", self.decode_step_s, step_s)

    def _mean(self, kind: str, known: float, new: float) -> float:
        """Of a few all count alike: a lucky trial must not stand for a server. Then the newest counts."""
        count = self._seen.get(kind, self.known_from) if known else 0
        self._seen[kind] = count + 1
        return known + max(_NEWEST_SHARE, 1 / (count + 1)) * (new - known)
