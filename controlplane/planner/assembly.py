"""A router's planner put together: the same in production, in replays and in tests."""

from __future__ import annotations

from collections.abc import Callable

from controlplane.config_planner import PlannerConfig
from controlplane.domain.cluster import Role
from controlplane.observe.planner_metrics import PlannerMetrics
from controlplane.planner.meter import TrafficMeter
from controlplane.planner.planner import Planner, Work, inline
from controlplane.planner.role_changes import RoleChanges
from controlplane.router.services import Services
from controlplane.router.workers import RoleClient


def assemble_planner(
    services: Services,
    rules: PlannerConfig,
    *,
    home: str,
    clock: Callable[[], float],
    client: RoleClient,
    work: Work = inline,
) -> Planner:
    """
    A planner for a router, whose requests it is told of from now on.

    Nothing runs yet: `run()` is a task of the caller.

    Args:
        services: The router's parts.
        rules: Intervals, steps and bounds.
        home: The router's datacenter.
        clock: Monotonic seconds.
        client: Reaches workers to change their roles.
        work: Runs the solver; production should not do it on the loop.
    """
    tracker = services.tracker

    def role_of(worker_id: str) -> tuple[str, Role] | None:
        beat = tracker.beat(worker_id)
        return None if beat is None else (beat.datacenter, beat.role)

    meter = TrafficMeter(
        home=home,
        role_of=role_of,
        window_s=rules.window_s,
        burst_window_s=rules.burst_window_s,
        profile_window_s=rules.profile_window_s,
        clock=clock,
    )
    services.traffic = meter
    metrics = PlannerMetrics(services.metrics.registry)
    return Planner(
        router_id=services.router_id,
        store=services.store,
        cluster=tracker,
        meter=meter,
        changes=RoleChanges(client, metrics, rules, clock),
        metrics=metrics,
        rules=rules,
        clock=clock,
        work=work,
    )
