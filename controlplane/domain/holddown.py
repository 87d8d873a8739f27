"""
A link that fails is held down for a while, longer each time it fails again. Pure.

Without it a link that is up and down by turns would take requests in every second and lose them in
the next. What a request meets on a link that is cut is a failed transfer, and the same on one whose
prefill worker has died: so it is failures from two workers in a row, without a success between, that
hold a link down. After that time one request tries it, and the others wait for its outcome: a success
opens the link, a failure holds it for twice as long.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldDownRules:
    """When and for how long; each from a field of the configuration."""

    #: Prefill workers whose transfers failed, one after the other.
    sources_max: int = 2
    #: The first time; twice as long each further time, up to the bound.
    hold_s: float = 2.0
    hold_s_max: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldDown:
    """What a router has seen of one link."""

    #: Workers whose transfers failed since the last success.
    failed_sources: tuple[str, ...] = ()
    down_until_s: float = -math.inf
    #: Length of the last hold; 0 when it is forgotten.
    held_s: float = 0.0
    #: Nothing has arrived since the last hold began.
    is_unproven: bool = False
    #: One request is trying it.
    is_trial: bool = False


#: Of a link that has never failed.
UP: Final = HoldDown()


def failed(link: HoldDown, source: str, now_s: float, rules: HoldDownRules) -> HoldDown:
    """A transfer from the worker `source` over the link failed at `now_s`."""
    if now_s < link.down_until_s and not link.is_trial:
        # Begun before the hold: it says nothing new.
        return link
    sources = link.failed_sources
    if source not in sources:
        sources = (*sources, source)
    if len(sources) < rules.sources_max and not link.held_s:
        return replace(link, failed_sources=sources)
    held_s = min(rules.hold_s_max, 2 * link.held_s) if link.held_s else rules.hold_s
    return HoldDown(down_until_s=now_s + held_s, held_s=held_s, is_unproven=True)


def tried(link: HoldDown, now_s: float) -> HoldDown:
    """
    A request was sent over the link at `now_s`.

    The first one after a hold is a trial: the link stays down for the others until it has ended, or
    for as long again if nobody tells how it ended.
    """
    if not link.is_unproven or now_s < link.down_until_s:
        return link
    return replace(link, down_until_s=now_s + link.held_s, is_trial=True)


def succeeded(link: HoldDown, now_s: float) -> HoldDown:
    """A transfer over the link arrived at `now_s`; past holds are forgotten after as long again."""
    if link.is_trial:
        return HoldDown(down_until_s=now_s, held_s=link.held_s)
    if now_s < link.down_until_s:
        return link
    is_forgotten = now_s >= link.down_until_s + link.held_s
    if is_forgotten:
        return UP
    return replace(link, failed_sources=(), is_unproven=False)


def is_down(link: HoldDown, now_s: float) -> bool:
    """Whether the link is held down at `now_s`."""
    return now_s < link.down_until_s
