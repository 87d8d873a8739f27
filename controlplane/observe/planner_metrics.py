"""Prometheus metrics of planning: what this router follows, and what it does while it leads."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from controlplane.domain.plan import Plan

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class PlannerMetrics:
    """Metrics of one router's planner."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.leader = Gauge(
            "prfaas_planner_leader", "1 on the router that plans, 0 elsewhere.", registry=registry
        )
        self.plans = Counter(
            "prfaas_plans_total",
            "Plans by what became of them: published, prolonged, overtaken, lead_lost, unsolvable, "
            "unreadable, too_little_traffic; and failed, store_away, traffic_refused.",
            ["outcome"],
            registry=registry,
        )
        self.solve_seconds = Histogram(
            "prfaas_plan_solve_seconds",
            "Time to solve one plan.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.role_changes = Counter(
            "prfaas_role_changes_total",
            "Workers asked to change: accepted, refused, unreached or unknown.",
            ["kind", "result"],
            registry=registry,
        )
        self.version = Gauge(
            "prfaas_plan_version",
            "Version of the plan that policies see; 0 without one.",
            registry=registry,
        )
        self.throughput = Gauge(
            "prfaas_plan_throughput_requests_per_second",
            "What the fleet can take under this plan, predicted.",
            registry=registry,
        )
        self.load = Gauge(
            "prfaas_plan_load_ratio", "Arrival rate as a part of that.", registry=registry
        )
        self.threshold_tokens = Gauge(
            "prfaas_plan_threshold_tokens",
            "Uncached tokens above which a prompt is prefilled over the link.",
            ["from_dc", "to_dc"],
            registry=registry,
        )

        self.gap = Gauge(
            "prfaas_plan_gap_ratio",
            "How far what the plan promises may be below the best, as a part of that.",
            registry=registry,
        )
        self.is_cut_short = Gauge(
            "prfaas_plan_cut_short",
            "1 when the plan that policies see is the best found before its work ended, else 0.",
            registry=registry,
        )

    def show(self, plan: Plan | None) -> None:
        """Show the plan that policies see, or that there is none."""
        self.version.set(plan.version if plan is not None else 0)
        self.throughput.set(plan.throughput_per_s if plan is not None else 0.0)
        self.load.set(plan.load if plan is not None else 0.0)
        self.gap.set(plan.gap if plan is not None else 0.0)
        self.is_cut_short.set(plan is not None and not plan.is_complete)
        self.threshold_tokens.clear()
        if plan is not None:
            for link, tokens in plan.threshold_tokens.items():
                from_dc, _, to_dc = link.partition(">")
                self.threshold_tokens.labels(from_dc, to_dc).set(tokens)
