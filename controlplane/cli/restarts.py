"""When a process that died is started again, and when it is given up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FIRST_WAIT_S: Final = 1.0
LONGEST_WAIT_S: Final = 30.0

#: So many deaths within so many seconds are no accidents: it would die again.
DEATHS_MAX: Final = 5
WINDOW_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Deaths:
    """The deaths of one process."""

    #: Those of the last `WINDOW_S`, oldest first, on the caller's clock.
    recent_s: tuple[float, ...] = ()
    #: Deaths one after another without a life of `WINDOW_S` between them.
    in_a_row: int = 0

    def and_one(self, now_s: float, *, lived_s: float) -> Deaths:
        """With a death at `now_s` after a life of `lived_s` seconds. Pure."""
        recent_s = tuple(one for one in self.recent_s if now_s - one < WINDOW_S)
        in_a_row = self.in_a_row if lived_s < WINDOW_S else 0
        return Deaths((*recent_s, now_s), in_a_row + 1)

    @property
    def wait_s(self) -> float | None:
        """Seconds to wait before it is started again, doubled each time; None to give it up."""
        if len(self.recent_s) >= DEATHS_MAX:
            return None
        return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(self.in_a_row - 1, 10))
