"""How much work one solution may take, counted in steps and not in time: the same on each machine."""

from __future__ import annotations

import math
from dataclasses import dataclass

#: Steps of a solution unless said otherwise: some 2 s of a slow core. Eight datacenters
#: that prefill and eight that serve, with 120 links of 5 to 50 Gbit/s, need less than a third.
STEPS_MAX = 50_000_000


@dataclass(slots=True)
class Effort:
    """Steps that are left; one is about a multiplication and an addition. Mutable: `spend` counts."""

    left: float = math.inf
    #: Kept for what comes later: `stops` with so many left.
    kept: float = 0.0
    #: Whether something was left undone for want of steps.
    is_cut_short: bool = False

    def spend(self, steps: float) -> None:
        """Count work that is done."""
        self.left -= steps

    def stops(self) -> bool:
        """Whether to stop here, with work left to do; then it is remembered."""
        if self.left > self.kept:
            return False
        self.is_cut_short = True
        return True
