"""The view's rules for health, modes and links, from the fleet's configuration."""

from __future__ import annotations

from dataclasses import dataclass, field

from controlplane.config import FleetConfig
from controlplane.domain.health import HealthRules
from controlplane.domain.holddown import HoldDownRules
from controlplane.domain.modes import ModeRules
from controlplane.domain.scarcity import ScarcityRules


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewRules:
    """What the view makes of failures, silence and age."""

    health: HealthRules = field(default_factory=HealthRules)
    modes: ModeRules = field(default_factory=ModeRules)
    links: HoldDownRules = field(default_factory=HoldDownRules)
    scarcity: ScarcityRules = field(default_factory=ScarcityRules)
    #: A link over which bytes moved within this is known to work.
    measured_within_s: float = 10.0
    #: A plan that no newer one has followed for so long is not believed any more.
    plan_s_max: float = 900.0


def view_rules(fleet: FleetConfig) -> ViewRules:
    """The rules that a fleet file asks for."""
    config = fleet.health
    return ViewRules(
        health=HealthRules(
            suspect_s=fleet.limits.suspect_s,
            silent_s=fleet.heartbeat.silent_s,
            failures_max=config.failures_max,
            failure_ratio=config.failure_ratio,
            window_s=config.window_s,
            requests_min=config.requests_min,
            corrupt_max=config.corrupt_max,
            eject_s=config.eject_s,
            eject_s_max=config.eject_s_max,
            eject_jitter=config.eject_jitter,
            ejected_share_max=config.ejected_share_max,
            panic_share=config.panic_share,
            warm_s=config.warm_s,
            warm_share_min=config.warm_share_min,
        ),
        modes=ModeRules(
            away_s=config.store_away_s,
            stale_s=config.view_stale_s,
            blind_s=config.view_blind_s,
            answering_share=config.answering_share,
        ),
        links=HoldDownRules(
            sources_max=config.link_sources_max,
            hold_s=config.link_hold_s,
            hold_s_max=config.link_hold_s_max,
            untold_s=config.link_untold_s,
        ),
        scarcity=ScarcityRules(
            enter_utilisation=config.link_scarce_utilisation,
            leave_utilisation=config.link_abundant_utilisation,
            enter_backlog_s=config.link_scarce_backlog_s,
            leave_backlog_s=config.link_abundant_backlog_s,
            dwell_s=config.link_scarce_dwell_s,
        ),
        measured_within_s=config.link_measured_s,
        plan_s_max=fleet.planner.plan_s_max,
    )
