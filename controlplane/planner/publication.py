"""
From a solution to a plan: what is worth moving, and what stands still. Pure.

Thresholds move by a step or not at all, roles only for a gain that two solutions in a row promise, and
everything stays within bounds: a plan that follows every tremor of its inputs would be noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from controlplane.config_planner import PlannerConfig
from controlplane.domain.plan import (
    NEVER_TOKENS,
    Bottleneck,
    Plan,
    PlanInputs,
    ShadowPrices,
    SiteRoles,
)

#: Differences below this part are no reason to move even after a long time.
_TREMOR: float = 0.01
#: Solutions in a row that must want other roles.
_WANTED_MIN: int = 2
#: Below this part of the throughput nothing is a bottleneck.
_IDLE_LOAD: float = 0.5
#: Characters of the reason.
_REASON_MAX: int = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Solved:
    """What the throughput model found for one set of roles."""

    #: By link id, tokens; `NEVER_TOKENS` for never.
    threshold_tokens: Mapping[str, float]
    #: By datacenter, only where workers can change.
    roles: Mapping[str, SiteRoles] = field(default_factory=dict)
    prices: ShadowPrices = field(default_factory=ShadowPrices)
    throughput_per_s: float = 0.0
    bottleneck: Bottleneck = "none"
    #: False where the work of the solution ended first.
    is_complete: bool = True
    #: How far the throughput may be below the best, as a part of that, 0 to 1.
    gap: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What a leader remembers between two plans, on its own clock; a new leader begins with none."""

    #: When each threshold last moved, by link id.
    moved_s: Mapping[str, float] = field(default_factory=dict)
    #: Since when the plan asks for its roles, or workers have them: the later of both.
    roles_s: float | None = None
    #: Workers had the roles of the plan when it was last solved.
    are_there: bool = True
    #: Roles that the newest solutions wanted and the plan did not, and how many of them did.
    wanted: Mapping[str, SiteRoles] = field(default_factory=dict)
    wanted_times: int = 0


def next_plan(
    before: Plan | None,
    memory: Memory,
    *,
    now: Solved,
    best: Solved,
    inputs: PlanInputs,
    author: str,
    cause: str,
    rules: PlannerConfig,
    now_s: float,
) -> tuple[Plan, Memory]:
    """
    The plan that follows another one.

    Args:
        before: What is published; None for the first.
        memory: Of this leader.
        now: Solved for the roles that workers have; its thresholds hold until the roles change.
        best: Solved with free roles.
        inputs: What both were solved for.
        author: The router that asks.
        cause: Why it was solved.
        rules: Steps, bounds and dwell times.
        now_s: Monotonic seconds.

    Returns:
        The plan, and what to remember until the next.
    """
    thresholds, moved_s, changes = _thresholds(before, memory, now, rules, now_s)
    roles, memory = _roles(before, memory, now, best, inputs.observed_requests, rules, now_s)
    old_roles = before.roles if before is not None else {}
    changes += [
        f"{site} should have {target.prefill_workers} prefill and {target.decode_workers} decode "
        f"workers" + (f", {target.lent_workers:.2g} lent" if target.lent_workers else "")
        for site, target in sorted(roles.items())
        if target != old_roles.get(site)
    ]
    load = inputs.arrival_per_s / now.throughput_per_s if now.throughput_per_s > 0 else 0.0
    plan = Plan(
        version=(before.version if before is not None else 0) + 1,
        author=author,
        threshold_tokens=thresholds,
        roles=roles,
        prices=now.prices,
        throughput_per_s=now.throughput_per_s,
        load=load,
        bottleneck=now.bottleneck if load >= _IDLE_LOAD else "none",
        inputs=inputs,
        reason=f"{cause}: {'; '.join(changes) or 'nothing moves'}"[:_REASON_MAX],
        is_complete=now.is_complete and best.is_complete,
        gap=max(now.gap, best.gap),
    )
    return plan, replace(memory, moved_s=moved_s)


def _thresholds(
    before: Plan | None, memory: Memory, now: Solved, rules: PlannerConfig, now_s: float
) -> tuple[dict[str, float], dict[str, float], list[str]]:
    """Thresholds, when each last moved, and what moved in words."""
    old = before.threshold_tokens if before is not None else {}
    thresholds: dict[str, float] = {}
    moved_s: dict[str, float] = {}
    changes: list[str] = []
    for link, found in sorted(now.threshold_tokens.items()):
        wanted = min(max(found, rules.threshold_tokens_min), NEVER_TOKENS)
        known = old.get(link)
        # A new leader does not know since when a threshold stands: its own time counts.
        since_s = memory.moved_s.get(link, now_s)
        if known is not None and not _moves(known, wanted, now_s - since_s, rules):
            thresholds[link], moved_s[link] = known, since_s
            continue
        thresholds[link], moved_s[link] = wanted, now_s
        if known != wanted:
            changes.append(f"{link} from {_words(known)} to {_words(wanted)}")
    return thresholds, moved_s, changes


def _moves(known: float, wanted: float, stood_s: float, rules: PlannerConfig) -> bool:
    step = abs(wanted - known) / max(known, 1.0)
    if step > rules.threshold_step:
        return True
    return step > _TREMOR and stood_s >= rules.threshold_dwell_s


def _roles(
    before: Plan | None,
    memory: Memory,
    now: Solved,
    best: Solved,
    observed_requests: int,
    rules: PlannerConfig,
    now_s: float,
) -> tuple[Mapping[str, SiteRoles], Memory]:
    """The roles to ask for: those of the plan before, until others are better for long enough."""
    asked = dict(before.roles) if before is not None else {}
    # Where nothing was asked for yet, or something that cannot be any more, what is there holds. Time
    # that is lent follows each solution: it takes no drain.
    standing = {
        site: replace(asked[site], lent_workers=roles.lent_workers)
        if site in asked and _fits(asked[site], roles)
        else roles
        for site, roles in now.roles.items()
    }
    are_there = _counts(now.roles) == _counts(standing)
    has_arrived = are_there and not memory.are_there
    roles_s = now_s if memory.roles_s is None or has_arrived else memory.roles_s
    memory = replace(memory, roles_s=roles_s, are_there=are_there)
    is_better = best.throughput_per_s > now.throughput_per_s * (1 + rules.role_gain_min)
    is_known = observed_requests >= rules.role_requests_min
    if not is_better or not is_known or _counts(best.roles) == _counts(standing):
        return standing, replace(memory, wanted={}, wanted_times=0)
    times = memory.wanted_times + 1 if _same_way(memory.wanted, best.roles, now.roles) else 1
    memory = replace(memory, wanted=best.roles, wanted_times=times)
    if times < _WANTED_MIN or now_s - roles_s < rules.role_dwell_s:
        return standing, memory
    moved = {
        # What was solved for the roles to come is lent when they have come.
        site: replace(target, lent_workers=standing[site].lent_workers)
        if site in standing
        else target
        for site, target in best.roles.items()
    }
    return moved, replace(memory, roles_s=now_s, wanted={}, wanted_times=0)


def _fits(asked: SiteRoles, there: SiteRoles) -> bool:
    """Whether what was asked for is a share-out of the workers that are there."""
    return (
        asked.prefill_workers + asked.decode_workers == there.prefill_workers + there.decode_workers
    )


def _counts(roles: Mapping[str, SiteRoles]) -> dict[str, tuple[int, int]]:
    return {site: (each.prefill_workers, each.decode_workers) for site, each in roles.items()}


def _same_way(
    first: Mapping[str, SiteRoles], second: Mapping[str, SiteRoles], there: Mapping[str, SiteRoles]
) -> bool:
    """Whether two solutions move every site in one direction; how far may differ."""
    return first.keys() == second.keys() and all(
        _direction(first[site], there.get(site)) == _direction(second[site], there.get(site))
        for site in second
    )


def _direction(wanted: SiteRoles, there: SiteRoles | None) -> int:
    if there is None:
        return 0
    difference = wanted.prefill_workers - there.prefill_workers
    return (difference > 0) - (difference < 0)


def _words(tokens: float | None) -> str:
    if tokens is None:
        return "nothing"
    return "never" if tokens >= NEVER_TOKENS else f"{tokens:.0f} tokens"
