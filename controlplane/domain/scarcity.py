"""
Whether the bandwidth of a link binds, with hysteresis. Pure.

The paper routes differently when bandwidth is scarce (caches are judged apart, nothing is copied) and
when it is abundant, and does not say how the two are told apart. Judged anew with every request the
answer would flap: each offload that scarcity forbids makes the link look abundant again. So a link
becomes scarce above one mark and abundant below a lower one, and stays what it is for a while.

Source:
    PrfaaS (arXiv 2604.15039) section 3.4.3 for the two cases; the marks are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from controlplane.domain.cluster import LinkView

_BITS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ScarcityRules:
    """When a link becomes scarce, and when it is abundant again."""

    #: Part of what it gives that is in use, 0 to 1: scarce at this and above.
    enter_utilisation: float = 0.9
    #: Abundant again at this and below, if the backlog agrees. Less than `enter_utilisation`.
    leave_utilisation: float = 0.7
    #: Seconds that what is promised on it needs: scarce at this and above.
    enter_backlog_s: float = 2.0
    #: Abundant again at this and below. Less than `enter_backlog_s`.
    leave_backlog_s: float = 0.5
    #: It stays what it has become for so long.
    dwell_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Scarcity:
    """What a link is, and since when."""

    is_scarce: bool = False
    #: When it became that.
    since_s: float = -math.inf


ABUNDANT: Final = Scarcity()


def judged(
    before: Scarcity,
    *,
    utilisation: float,
    backlog_s: float,
    now_s: float,
    rules: ScarcityRules,
) -> Scarcity:
    """
    What a link is now.

    Args:
        before: What it was.
        utilisation: Part of what it gives that was used lately, 0 to 1.
        backlog_s: Seconds that the bytes promised on it need, >= 0.
        now_s: Now; never before `before.since_s`.
        rules: The marks.
    """
    if now_s - before.since_s < rules.dwell_s:
        return before
    if before.is_scarce:
        is_scarce = utilisation > rules.leave_utilisation or backlog_s > rules.leave_backlog_s
    else:
        is_scarce = utilisation >= rules.enter_utilisation or backlog_s >= rules.enter_backlog_s
    return before if is_scarce == before.is_scarce else Scarcity(is_scarce, now_s)


def backlog_s(link: LinkView) -> float:
    """Seconds that what is promised on a link needs at its rate, >= 0."""
    return link.reserved_bytes * _BITS / link.rate_bps
