"""
The slow loop: every router tells its traffic, one of them leads, solves and publishes the plan.

A leader that cannot renew its lease stops at once. Should the store give the lead to two, both publish
against the version they have read: one of them does, the other one steps down.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final, Protocol, TypeVar

from controlplane.config_planner import PlannerConfig
from controlplane.domain.cluster import ClusterView
from controlplane.domain.plan import Plan, PlanInputs
from controlplane.domain.throughput.profile import QuadraticPrefill
from controlplane.domain.throughput.profile_fit import Normals, fit
from controlplane.errors import RequestTooLarge, StoreError
from controlplane.observe.logs import get_logger
from controlplane.observe.planner_metrics import PlannerMetrics
from controlplane.planner.early import early_reason, rate_to_plan_for
from controlplane.planner.facts import FleetFacts, fleet_facts
from controlplane.planner.links import looked, steady_bps
from controlplane.planner.meter import TrafficMeter
from controlplane.planner.publication import Memory, next_plan
from controlplane.planner.role_changes import RoleChanges
from controlplane.planner.solving import Problem, Solutions, Unsolvable, solve
from controlplane.planner.traffic import Demand, decode_demand, encode_demand, summed
from controlplane.store.api import StateStore
from controlplane.wire import WorkerBeat
from controlplane.wire_plan import decode_plan, encode_plan

_log = get_logger()

_T = TypeVar("_T")

#: A summary outlives so many of its intervals: two may be lost.
_SUMMARY_INTERVALS: Final = 3
#: While the solver runs in a thread it gives the interpreter back after so long.
_SWITCH_S: Final = 0.0005
#: Giving the lead up is worth no longer wait.
_RESIGN_S: Final = 1.0


class Cluster(Protocol):
    """What the planner asks of the router's picture: `ViewTracker` does."""

    def view(self) -> ClusterView:
        """The current picture."""

    def beats(self) -> list[WorkerBeat]:
        """What all workers last said of themselves."""


class Work(Protocol):
    """Runs the solver: on the loop in simulations, beside it in production."""

    async def __call__(self, work: Callable[[], _T], /) -> _T:
        """What the work returns."""


async def inline(work: Callable[[], _T]) -> _T:
    """Do it at once, on the loop."""
    return work()


async def in_thread(work: Callable[[], _T]) -> _T:
    """
    Do it in a thread: with 16 datacenters it takes a good part of a second.

    Requests wait for the interpreter as long as a thread may hold it, each time the loop wakes: with
    the usual 5 ms that was 5 to 10 ms late in the middle, with this 0.8 ms.
    """
    usual_s = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_S)
    try:
        return await asyncio.to_thread(work)
    finally:
        sys.setswitchinterval(usual_s)


class Planner:
    """One router's part in planning."""

    def __init__(
        self,
        *,
        router_id: str,
        store: StateStore,
        cluster: Cluster,
        meter: TrafficMeter,
        changes: RoleChanges,
        metrics: PlannerMetrics,
        rules: PlannerConfig,
        clock: Callable[[], float],
        work: Work = inline,
    ) -> None:
        """
        A planner that does nothing until `run`.

        Args:
            router_id: This life of this router.
            store: Where traffic and plans are.
            cluster: The router's picture.
            meter: The router's own traffic.
            changes: Asks workers to change their roles.
            metrics: Shows what it does.
            rules: Intervals, steps and bounds.
            clock: Monotonic seconds.
            work: Runs the solver.
        """
        self._router_id = router_id
        self._store = store
        self._cluster = cluster
        self._meter = meter
        self._changes = changes
        self._metrics = metrics
        self._rules = rules
        self._clock = clock
        self._work = work
        self._lead_until_s = -1.0
        #: The plan that this leader published last, and what it remembers.
        self._plan: Plan | None = None
        self._memory = Memory()
        self._solved_s: float | None = None
        #: Why nothing could be solved, the last time.
        self._unsolvable = ""
        #: The last looks at each link, by link id; kept also while another router leads.
        self._links: dict[str, tuple[float, ...]] = {}

    def __repr__(self) -> str:
        return f"<Planner {self._router_id}{', leads' if self.leads else ''}>"

    @property
    def leads(self) -> bool:
        """It may publish now."""
        return self._clock() < self._lead_until_s

    async def run(self) -> None:
        """Plan until cancelled; then let another router lead."""
        try:
            while True:
                await self._safe_turn()
                await asyncio.sleep(self._rules.report_interval_s)
        finally:
            if self.leads:
                await self._resign()

    async def turn(self) -> None:
        """Tell the traffic, ask for the lead, and do what a leader does."""
        try:
            await self._tell()
            self._look_at_links()
            had_led = self.leads
            leads = await self._ask_for_lead()
            if leads != had_led:
                self._took_over(leads=leads)
            if leads:
                await self._lead()
        except StoreError:
            # What is published stands. Leading ends by itself if this goes on.
            self._metrics.plans.labels("store_away").inc()
        self._show()

    # --- Inside -------------------------------------------------------------------------------

    async def _safe_turn(self) -> None:
        """A turn whose bugs cost a plan, and never the requests of this router."""
        try:
            await self.turn()
        except Exception:  # noqa: BLE001 - the edge of the planner: what is served goes on without it
            self._metrics.plans.labels("failed").inc()
            _log.exception("internal.error", router=self._router_id)
            # What it stumbled over here may be all right with another router's picture.
            if self.leads:
                await self._resign()

    def _look_at_links(self) -> None:
        links = self._cluster.view().links
        now_bps = {link.link_id: 0.0 if link.is_down else link.rate_bps for link in links}
        self._links = looked(self._links, now_bps)

    async def _ask_for_lead(self) -> bool:
        """Take the lead or keep it; it lasts from before the call, so that it ends here first."""
        asked_s = self._clock()
        leads = await self._store.lead("plan", self._router_id, ttl_s=self._rules.lease_s)
        self._lead_until_s = asked_s + self._rules.lease_s if leads else -1.0
        return leads

    async def _tell(self) -> None:
        ttl_s = _SUMMARY_INTERVALS * self._rules.report_interval_s
        try:
            await self._store.put_traffic(
                self._router_id, encode_demand(self._meter.demand()), ttl_s=ttl_s
            )
        except RequestTooLarge:
            self._metrics.plans.labels("traffic_refused").inc()

    def _took_over(self, *, leads: bool) -> None:
        self._plan, self._memory, self._solved_s = None, Memory(), None
        self._changes.forget()
        if leads:
            _log.info("planner.leads", router=self._router_id)
        else:
            _log.info("planner.follows", router=self._router_id)

    async def _lead(self) -> None:
        beats = self._cluster.beats()
        demand = summed(self._readable(await self._store.traffic()))
        facts = self._facts(beats)
        cause = self._cause(demand, facts)
        if cause:
            await self._plan_anew(demand, facts, cause)
        if self._plan is not None and self._rules.changes_roles and self.leads:
            await self._changes.ask(self._plan.roles, beats, may_ask=lambda: self.leads)

    def _readable(self, bodies: Sequence[bytes]) -> list[Demand]:
        demands: list[Demand] = []
        for body in bodies:
            try:
                demands.append(decode_demand(body))
            except ValueError as error:
                self._metrics.plans.labels("traffic_refused").inc()
                _log.warning("document.refused", reason="traffic", detail=str(error)[:500])
        return demands

    def _facts(self, beats: Sequence[WorkerBeat]) -> FleetFacts:
        view = self._cluster.view()
        return fleet_facts(
            beats,
            steady_bps(self._links),
            out={worker.worker_id for worker in view.workers if worker.is_ejected},
            changing=self._changes.expected(beats),
        )

    def _cause(self, demand: Demand, facts: FleetFacts) -> str:
        """Why to solve now; empty when it is not time yet."""
        if self._solved_s is None:
            return "a new leader"
        since_s = self._clock() - self._solved_s
        if since_s >= self._rules.plan_interval_s:
            return "regular"
        if since_s < self._rules.early_interval_s:
            return ""
        planned = self._plan.inputs if self._plan is not None else None
        if planned is None:
            # There was too little traffic, or too few workers, to plan at all.
            return "the first plan"
        return early_reason(planned, demand, facts, self._rules)

    async def _plan_anew(self, demand: Demand, facts: FleetFacts, cause: str) -> None:
        self._solved_s = self._clock()
        document = await self._store.document("plan")
        version = document.version if document is not None else 0
        before: Plan | None = None
        if document is not None:
            try:
                before = decode_plan(document.body)
            except ValueError:
                # It is garbage, or of a version to come: what is solved now takes its place.
                self._metrics.plans.labels("unreadable").inc()
        if demand.requests < self._rules.requests_min:
            await self._prolong(version)
            return
        profiles = fitted_profiles(facts, demand.prefills, self._rules)
        problem = Problem(
            facts=facts,
            demand=demand,
            profiles=profiles,
            arrival_per_s=rate_to_plan_for(demand, self._rules),
            lend_share_max=self._rules.lend_share_max if self._rules.changes_roles else 0.0,
        )
        began_s = self._clock()
        try:
            solutions: Solutions = await self._work(lambda: solve(problem))
        except Unsolvable as error:
            self._metrics.plans.labels("unsolvable").inc()
            if str(error) != self._unsolvable:
                self._unsolvable = str(error)
                _log.warning("plan.unsolvable", reason=self._unsolvable[:500])
            return
        self._unsolvable = ""
        self._metrics.solve_seconds.observe(self._clock() - began_s)
        # A large fleet takes seconds to solve, a busy machine many: nobody renewed meanwhile.
        await self._ask_for_lead()
        plan, memory = next_plan(
            before,
            self._memory,
            now=solutions.now,
            best=solutions.best,
            inputs=inputs_of(problem),
            author=self._router_id,
            cause=cause,
            rules=self._rules,
            now_s=self._clock(),
        )
        if await self._publish(replace(plan, version=version + 1), version):
            self._memory = memory
            if before is None or _is_news(before, plan):
                _log.info(
                    "plan.published",
                    version=version + 1,
                    reason=plan.reason,
                    is_complete=plan.is_complete,
                    gap=plan.gap,
                )

    async def _prolong(self, version: int) -> None:
        """Too little traffic to plan for: what was planned last holds on, if it is ours."""
        if self._plan is not None and self._plan.version == version:
            reason = "too little traffic to plan anew"
            await self._publish(replace(self._plan, version=version + 1, reason=reason), version)
        else:
            self._metrics.plans.labels("too_little_traffic").inc()

    async def _publish(self, plan: Plan, expected_version: int) -> bool:
        """Publish if this router still leads and nobody else has; whether it did."""
        if not self.leads:
            # The lease has ended while it was solved: what another leader says stands.
            self._metrics.plans.labels("lead_lost").inc()
            return False
        published = await self._store.publish(
            "plan", encode_plan(plan), expected_version=expected_version
        )
        if published is None:
            self._metrics.plans.labels("overtaken").inc()
            _log.warning("plan.overtaken", router=self._router_id, version=expected_version)
            await self._resign()
            return False
        self._plan = plan
        self._metrics.plans.labels("published").inc()
        return True

    async def _resign(self) -> None:
        self._lead_until_s = -1.0
        self._took_over(leads=False)
        try:
            async with asyncio.timeout(_RESIGN_S):
                await self._store.resign("plan", self._router_id)
        except (StoreError, TimeoutError):
            # The lease ends by itself.
            self._metrics.plans.labels("store_away").inc()

    def _show(self) -> None:
        self._metrics.leader.set(self.leads)
        self._metrics.show(self._cluster.view().plan)


def _is_news(before: Plan, plan: Plan) -> bool:
    """Whether a plan sets something else, or is sure of it in another way: that is worth a line."""
    return (
        plan.threshold_tokens != before.threshold_tokens or plan.is_complete != before.is_complete
    )


def fitted_profiles(
    facts: FleetFacts, prefills: Mapping[str, Normals], rules: PlannerConfig
) -> dict[str, QuadraticPrefill]:
    """Prefill profiles by datacenter, from the workers' own word and the prefills that were seen."""
    profiles: dict[str, QuadraticPrefill] = {}
    for name, site in facts.sites.items():
        profile = fit(
            prefills.get(name, Normals()),
            site.prefill,
            prior_requests=rules.prior_requests,
            requests_min=rules.requests_min,
            factor_max=rules.profile_factor_max,
        )
        if profile is not None:
            profiles[name] = profile
    return profiles


def inputs_of(problem: Problem) -> PlanInputs:
    """What a plan was solved for, in words and figures for people."""
    uncached, output = problem.uncached(), problem.output()
    return PlanInputs(
        arrival_per_s=problem.arrival_per_s,
        uncached_tokens_mean=uncached.mean,
        uncached_tokens_p50=uncached.quantile(0.5),
        uncached_tokens_p90=uncached.quantile(0.9),
        output_tokens_mean=output.mean,
        link_bps=dict(problem.facts.link_bps),
        workers=problem.facts.workers(),
        observed_requests=round(problem.demand.requests),
    )
