"""
What the planner publishes and every policy reads: thresholds, roles, prices. Immutable.

A plan is advice with a version: a router that has none, or an old one, goes on with what its policy's
parameters say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

#: A threshold that no prompt reaches: nothing is prefilled over that link. Finite, because JSON has no
#: infinity and plans are part of decision records.
NEVER_TOKENS: Final = float(1 << 24)

#: What limits the throughput of a plan; "none" while traffic is far below it.
Bottleneck: TypeAlias = Literal["prefill", "decode", "link", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteRoles:
    """How the workers of a datacenter that can do both should be shared out; others do not count."""

    prefill_workers: int
    decode_workers: int
    #: Part of its time that each of one decode worker's steps lends to local prefill, 0 to 1;
    #: summed over the decode workers of the site, in workers.
    lent_workers: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowPrices:
    """
    What one more unit of each scarce resource would bring, in requests.

    The use a placement makes of each, times its price, orders the placements of one request: the
    optimum takes the least. Over all requests the least sums are 1 on average.
    """

    #: By datacenter: requests per second of prefill time of one worker.
    prefill_per_s: Mapping[str, float] = field(default_factory=dict)
    #: By datacenter: requests per second of one decode slot.
    decode_slot_per_s: Mapping[str, float] = field(default_factory=dict)
    #: By link id: requests per byte.
    link_per_byte: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanInputs:
    """What a plan was solved for, in a form for people and for the next solve."""

    #: Requests per second that arrive.
    arrival_per_s: float
    #: Of the lengths that are left to compute after prefix matching.
    uncached_tokens_mean: float
    uncached_tokens_p50: float
    uncached_tokens_p90: float
    output_tokens_mean: float
    #: By link id, bits per second.
    link_bps: Mapping[str, float] = field(default_factory=dict)
    #: By `datacenter/role`: workers that were there.
    workers: Mapping[str, int] = field(default_factory=dict)
    #: Requests that the estimate rests on.
    observed_requests: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One published plan."""

    #: 1, 2, 3 ...; grows with each that differs.
    version: int
    #: The router that solved it.
    author: str
    #: Uncached tokens above which a prompt is prefilled elsewhere, by link id (`east>west` is
    #: prefill in east for decode in west); `NEVER_TOKENS` at most.
    threshold_tokens: Mapping[str, float]
    #: Targets by datacenter; only where workers can change their role.
    roles: Mapping[str, SiteRoles] = field(default_factory=dict)
    prices: ShadowPrices = field(default_factory=ShadowPrices)
    #: Requests per second that the fleet can take under this plan, predicted.
    throughput_per_s: float = 0.0
    #: Arrival rate as a part of that; above 1 the fleet is overloaded.
    load: float = 0.0
    bottleneck: Bottleneck = "none"
    inputs: PlanInputs | None = None
    #: Why it differs from the one before, for people.
    reason: str = ""
    #: False where the work that one solution may take ended first: thresholds and roles are the best
    #: found by then.
    is_complete: bool = True
    #: At most so large a part of what is possible is given away by these thresholds, or by the roles
    #: that were found best, 0 to 1: the larger of both.
    gap: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a gap that none can be."""
        if not 0 <= self.gap <= 1:
            raise ValueError(f"gap is {self.gap:g}, expected 0 to 1")
