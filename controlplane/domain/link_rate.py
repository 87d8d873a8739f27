"""
What a link gives, by what its receivers measure: a slow link is told from one that is little used. Pure.

Few bytes a second say nothing by themselves. Receivers also tell for how long bytes were on their way
to them (`workers/kv/traffic.py`), and how many arrived in that time. Those of all receivers together, over
the time in which any of them had bytes on the way, are what the link gives while it is asked for
something:

    rate = 8 * sum(moved_i) / (window * union(busy_i))

Evidence moves the estimate down and up, at once where the link was busy for half of the window and in
steps where it was less. Without evidence the estimate stays for a while and then doubles again and
again up to the budget, so that a link that has recovered is found out by the requests that try it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

_BITS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkRateRules:
    """What is believed of what receivers tell."""

    #: Bytes and busy time are counted over so long, and up to the heartbeat before: two of them.
    window_s: float = 1.5
    #: A receiver that has told nothing for so long has nothing to tell.
    silent_s: float = 5.0
    #: Busy for less of the window than this, a link shows bursts and single round trips.
    busy_share_min: float = 0.2
    #: Busy for this part and more, what it gave is what it gives.
    busy_share_sure: float = 0.5
    #: An estimate stands for so long without evidence, ...
    calm_s: float = 5.0
    #: ... and then doubles in each further such time.
    double_s: float = 5.0
    #: No estimate is less than this part of the budget: times stay finite.
    floor_share: float = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What one receiver had counted at one of its heartbeats; totals of one life."""

    #: On the receiver's own clock: differences of it are exact, whenever its heartbeat arrives.
    age_s: float
    arrived_bytes: int
    #: Of those, what arrived in the seconds in which bytes were on their way all the time.
    moved_bytes: int
    busy_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What came over a link of late, to one receiver or to all."""

    bytes_per_s: float = 0.0
    #: Of those, what came while bytes were on their way all the time.
    moved_per_s: float = 0.0
    #: Part of the time in which bytes were on their way, 0 to 1.
    busy_share: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkRate:
    """An estimate, as evidence moved it last."""

    rate_bps: float
    #: When that was.
    told_s: float = -math.inf
    #: Part of the rate that was used in the last window, 0 to 1.
    utilisation: float = 0.0


def extended(
    samples: tuple[Sample, ...], newest: Sample, rules: LinkRateRules
) -> tuple[Sample, ...]:
    """
    A receiver's samples with one more: those of the last window, and the one before them.

    Totals that have gone back are of another life of the receiver; what was before is forgotten.
    """
    if samples and (
        newest.age_s <= samples[-1].age_s
        or newest.arrived_bytes < samples[-1].arrived_bytes
        or newest.moved_bytes < samples[-1].moved_bytes
        or newest.busy_s < samples[-1].busy_s
    ):
        return (newest,)
    begin_s = newest.age_s - rules.window_s
    within = [sample for sample in samples if sample.age_s > begin_s]
    before = samples[len(samples) - len(within) - 1 : len(samples) - len(within)]
    return (*before, *within, newest)


def usage_of(samples: tuple[Sample, ...]) -> Usage:
    """What came to one receiver between the first and the last of its samples."""
    if not samples or samples[-1].age_s <= samples[0].age_s:
        return Usage()
    first, last = samples[0], samples[-1]
    window_s = last.age_s - first.age_s
    return Usage(
        bytes_per_s=(last.arrived_bytes - first.arrived_bytes) / window_s,
        moved_per_s=(last.moved_bytes - first.moved_bytes) / window_s,
        busy_share=min(1.0, (last.busy_s - first.busy_s) / window_s),
    )


def together(usages: Iterable[Usage]) -> Usage:
    """
    What came to all receivers of a link.

    When each of them was busy is not known, only for how long: that they were at the same time is
    taken for as likely as chance has it.
    """
    bytes_per_s, moved_per_s, idle_share = 0.0, 0.0, 1.0
    for usage in usages:
        bytes_per_s += usage.bytes_per_s
        moved_per_s += usage.moved_per_s
        idle_share *= 1 - usage.busy_share
    return Usage(bytes_per_s=bytes_per_s, moved_per_s=moved_per_s, busy_share=1 - idle_share)


def rate_at(rate: LinkRate, capacity_bps: float, now_s: float, rules: LinkRateRules) -> float:
    """
    The estimate at a time, bits per second, > 0 and at most the budget.

    Args:
        rate: As evidence moved it last.
        capacity_bps: The link's budget.
        now_s: Now; at or after `rate.told_s`.
        rules: For how long an estimate stands.
    """
    if rate.rate_bps >= capacity_bps:
        return capacity_bps
    doublings = max(0.0, now_s - rate.told_s - rules.calm_s) / rules.double_s
    if doublings >= math.log2(capacity_bps / rate.rate_bps):
        return capacity_bps
    return rate.rate_bps * 2**doublings


def observed(
    rate: LinkRate, usage: Usage, capacity_bps: float, now_s: float, rules: LinkRateRules
) -> LinkRate:
    """
    The estimate after a look at what came of late.

    Args:
        rate: Before.
        usage: Of all receivers together.
        capacity_bps: The link's budget: more is a burst.
        now_s: Now.
        rules: What is believed.
    """
    used_bps = min(capacity_bps, usage.bytes_per_s * _BITS)
    now_bps = rate_at(rate, capacity_bps, now_s, rules)
    is_told = usage.busy_share >= rules.busy_share_min
    if is_told:
        given_bps = min(capacity_bps, usage.moved_per_s * _BITS / usage.busy_share)
        weight = min(1.0, usage.busy_share / rules.busy_share_sure)
        now_bps += weight * (given_bps - now_bps)
    if used_bps > now_bps:
        # More than it was thought to give, whatever the receivers make of their gaps.
        now_bps, is_told = used_bps, True
    now_bps = max(now_bps, capacity_bps * rules.floor_share)
    utilisation = used_bps / now_bps
    if not is_told:
        return LinkRate(rate_bps=rate.rate_bps, told_s=rate.told_s, utilisation=utilisation)
    return LinkRate(rate_bps=now_bps, told_s=now_s, utilisation=utilisation)
