"""What cannot wait for the next plan: a burst, a link that gives more or less, workers that came or went. Pure."""

from __future__ import annotations

import math

from controlplane.config_planner import PlannerConfig
from controlplane.domain.plan import PlanInputs
from controlplane.planner.facts import FleetFacts
from controlplane.planner.traffic import Demand

#: A rate counts as another one when it differs by so many standard deviations of what chance makes.
_DEVIATIONS: float = 3.0


def rate_to_plan_for(demand: Demand, rules: PlannerConfig) -> float:
    """Requests per second: what the window says, or the last seconds when those are quite different."""
    usual, latest = demand.arrival_per_s, demand.burst_per_s
    return latest if _is_burst(usual, latest, rules) else usual


def early_reason(
    planned: PlanInputs, demand: Demand, facts: FleetFacts, rules: PlannerConfig
) -> str:
    """
    Why the plan must be solved again at once; empty when it need not.

    Args:
        planned: What it was solved for.
        demand: The traffic now.
        facts: The fleet now.
        rules: How large a change may be.
    """
    for link, now_bps in sorted(facts.link_bps.items()):
        before_bps = planned.link_bps.get(link)
        if before_bps is None or abs(now_bps - before_bps) > rules.link_change * before_bps:
            was = "unknown" if before_bps is None else f"{before_bps / 1e6:.4g}"
            return f"link {link} gives {now_bps / 1e6:.4g} Mbit/s, was {was}"
    if _is_burst(planned.arrival_per_s, demand.burst_per_s, rules):
        return (
            f"{demand.burst_per_s:.4g} requests arrive per second, "
            f"planned for {planned.arrival_per_s:.4g}"
        )
    counts = facts.workers()
    for name in sorted({*counts, *planned.workers}):
        now, before = counts.get(name, 0), planned.workers.get(name, 0)
        if now != before:
            return f"{name} has {now} workers, planned for {before}"
    return ""


def _is_burst(planned_per_s: float, latest_per_s: float, rules: PlannerConfig) -> bool:
    """The latest rate is another one by a factor, and chance alone does not make that."""
    low, high = sorted((planned_per_s, latest_per_s))
    if high <= low * rules.burst_factor:
        return False
    # A rate r that fades over a window w varies by sqrt(r / 2w).
    noise_per_s = math.sqrt(high / (2 * rules.burst_window_s))
    return high - low > _DEVIATIONS * noise_per_s
