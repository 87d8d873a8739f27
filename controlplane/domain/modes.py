"""
The degraded ladder: what a router still dares to do when it hears less and less. Pure.

| Step | Mode | When | What changes |
|---|---|---|---|
| M0 | `normal` | the view is fresh | nothing |
| M1 | `stale_view` | nothing was heard of the store for 2 s | prefix hits count half for each second more; no speculative offload |
| M2 | `store_down` | calls to the store fail, and nothing was heard of it for 1 s | as M1; workers are asked directly; no offload over a link that was not measured for 10 s |
| M3 | `local_only` | nothing of the store for 30 s, and less than half of the workers answer | prefill and decode in the router's own datacenter only |
| M4 | `shed` | as M3, and nobody answers | every request is refused |

An offload is *speculative* when it is not needed for room: a prefill worker in the decode worker's
datacenter could take the request and has a free slot. Its gain then rests on what the view says of
queues and caches far away, which is what has become old. With all local slots busy an offload goes
on, or a pause of the store would pile all prompts up in one place; the router's own claims are
counted without the store, so slots that it fills itself are seen as busy.

M1 and M2 never refuse the only way that is left: with no prefill worker in the decode worker's
datacenter, an offload is made over any link.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Mode: TypeAlias = Literal["normal", "stale_view", "store_down", "local_only", "shed"]

#: From the top of the ladder to its foot; the position is the step's number.
MODES: Final[tuple[Mode, ...]] = ("normal", "stale_view", "store_down", "local_only", "shed")

#: A hit that counts for less than this part counts for nothing.
_TRUST_MIN: Final = 1 / 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeRules:
    """Where the steps are; each from a field of the configuration."""

    #: Calls that fail while the store is heard otherwise are slow ones, and no reason to change
    #: where requests go; it is down when it was not heard for so long.
    away_s: float = 1.0
    #: A view that is older is stale.
    stale_s: float = 2.0
    #: And one that is older than this is no view.
    blind_s: float = 30.0
    #: With less than this part of the workers answering, probes have failed.
    answering_share: float = 0.5


def mode_of(
    *, view_age_s: float, is_store_away: bool, known: int, answering: int, rules: ModeRules
) -> Mode:
    """
    The step of the ladder.

    Args:
        view_age_s: Seconds since the store was heard.
        is_store_away: The last call to it failed.
        known: Workers in the view.
        answering: Those of them that were heard lately, through the store or directly.
        rules: Where the steps are.
    """
    if view_age_s > rules.blind_s:
        if not answering:
            return "shed"
        if answering < rules.answering_share * known:
            return "local_only"
    if is_store_away and view_age_s > rules.away_s:
        return "store_down"
    return "stale_view" if view_age_s > rules.stale_s else "normal"


def prefix_trust(view_age_s: float, rules: ModeRules) -> float:
    """Part of a prefix hit that is counted: halved for each second of age that has begun."""
    beyond_s = view_age_s - rules.stale_s
    if beyond_s <= 0:
        return 1.0
    # Bounded, because the store may be away for years.
    trust = 0.5 ** min(math.ceil(beyond_s), 64)
    return trust if trust >= _TRUST_MIN else 0.0


def is_wary(mode: Mode) -> bool:
    """No speculative offload: any step below the top."""
    return mode != "normal"
