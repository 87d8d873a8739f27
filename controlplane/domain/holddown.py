"""
A link that fails is held down for a while, longer each time it fails again. Pure.

Without it a link that is up and down by turns would take requests in every second and lose them in
the next. Two things hold a link down:

- failed transfers of two prefill workers in a row, without a success between: what a request meets on
  a link that is cut is a failed transfer, and the same on one whose prefill worker has died;
- probes from both ends that nobody answered (`router/link_probes.py`): they find a cut also where no
  request is under way.

When its time is over the link stays down until a probe has crossed it both ways; then one request
tries it, because small frames may pass where full ones do not, and the others wait for its outcome: a
success opens the link, a failure holds it for twice as long. Where nobody can probe (workers before
0.4), the request is the only trial there is.
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
    #: After a hold, silence of the probes themselves for so long means that nobody can tell.
    untold_s: float = 3.0


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
    #: A probe has crossed it since the hold was over.
    is_answered: bool = False
    #: Until then a probe may still tell how it is.
    untold_until_s: float = -math.inf
    #: One request is trying it.
    is_trial: bool = False


#: Of a link that has never failed.
UP: Final = HoldDown()


def failed(link: HoldDown, source: str, now_s: float, rules: HoldDownRules) -> HoldDown:
    """A transfer from the worker `source` over the link failed at `now_s`."""
    if link.is_unproven and not link.is_trial:
        # Begun before the hold: it says nothing new.
        return link
    sources = link.failed_sources
    if source not in sources:
        sources = (*sources, source)
    if len(sources) < rules.sources_max and not link.held_s:
        return replace(link, failed_sources=sources)
    return _held(link, now_s, rules)


def probed(
    link: HoldDown, *, is_answered: bool, asked_s: float, now_s: float, rules: HoldDownRules
) -> HoldDown:
    """
    Probes told how the link is.

    Args:
        link: Before.
        is_answered: One crossed it both ways; otherwise as many as may hold it were sent, to
            different workers, and none came back.
        asked_s: When they were sent.
        now_s: When the last of them was answered or given up.
        rules: For how long it is held.
    """
    if is_answered:
        is_new = link.is_unproven and asked_s >= link.down_until_s
        return replace(link, is_answered=True) if is_new else link
    if link.is_unproven and (now_s < link.down_until_s or not link.is_answered):
        return replace(link, untold_until_s=max(link.untold_until_s, now_s + rules.untold_s))
    return _held(link, now_s, rules)


def tried(link: HoldDown, now_s: float, rules: HoldDownRules) -> HoldDown:
    """
    A request was sent over the link at `now_s`.

    The first one after a hold is a trial: the link stays down for the others until it has ended. If
    nobody tells how it ended, the link is as after a hold again.
    """
    if not link.is_unproven or is_down(link, now_s):
        return link
    down_until_s = now_s + link.held_s
    return replace(
        link,
        down_until_s=down_until_s,
        untold_until_s=down_until_s + rules.untold_s,
        is_answered=False,
        is_trial=True,
    )


def succeeded(link: HoldDown, now_s: float) -> HoldDown:
    """A transfer over the link arrived at `now_s`; past holds are forgotten after as long again."""
    if link.is_trial:
        return HoldDown(down_until_s=now_s, held_s=link.held_s)
    if link.is_unproven:
        # It crossed before the hold, and waited for its first token until now.
        return link
    is_forgotten = now_s >= link.down_until_s + link.held_s
    return UP if is_forgotten else replace(link, failed_sources=())


def is_down(link: HoldDown, now_s: float) -> bool:
    """Whether the link is held down at `now_s`, or waits for the first probe to cross it."""
    if now_s < link.down_until_s:
        return True
    return link.is_unproven and not link.is_answered and now_s < link.untold_until_s


def _held(link: HoldDown, now_s: float, rules: HoldDownRules) -> HoldDown:
    held_s = min(rules.hold_s_max, 2 * link.held_s) if link.held_s else rules.hold_s
    down_until_s = now_s + held_s
    return HoldDown(
        down_until_s=down_until_s,
        held_s=held_s,
        is_unproven=True,
        untold_until_s=down_until_s + rules.untold_s,
    )
