"""Asks workers to change their roles, and remembers whom: one of a datacenter at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from controlplane.config_planner import PlannerConfig
from controlplane.domain.cluster import Role
from controlplane.domain.plan import SiteRoles
from controlplane.errors import PeerError, RoleRefused, WorkerRefused, WorkerUnreached
from controlplane.observe.logs import get_logger
from controlplane.observe.planner_metrics import PlannerMetrics
from controlplane.planner.role_steps import Step, UnderWay, next_steps, still_under_way
from controlplane.router.workers import RoleClient
from controlplane.wire import RoleChange, WorkerBeat

_log = get_logger()

#: Workers asked in one turn; each answers at once, or is waited for 1.5 s.
_STEPS_PER_TURN: Final = 8


class RoleChanges:
    """The changes that this leader has asked for."""

    def __init__(
        self,
        client: RoleClient,
        metrics: PlannerMetrics,
        rules: PlannerConfig,
        clock: Callable[[], float],
    ) -> None:
        """
        None yet.

        Args:
            client: Reaches workers.
            metrics: Counts what they answer.
            rules: Waits and bounds.
            clock: Monotonic seconds.
        """
        self._client = client
        self._metrics = metrics
        self._rules = rules
        self._clock = clock
        #: By datacenter.
        self._under_way: dict[str, UnderWay] = {}
        #: Workers that said no, by id and incarnation, and until when they are left alone.
        self._refused: dict[tuple[str, str], float] = {}

    def __repr__(self) -> str:
        return f"<RoleChanges {len(self._under_way)} under way, {len(self._refused)} refused>"

    def forget(self) -> None:
        """Another leader may have asked for something else since."""
        self._under_way.clear()
        self._refused.clear()

    def expected(self, beats: Sequence[WorkerBeat]) -> dict[str, tuple[str, Role]]:
        """What changes: by worker, the datacenter and role that it will have."""
        self._look(beats)
        return {step.worker_id: (site, step.role) for site, step in self._under_way.items()}

    async def ask(
        self,
        roles: Mapping[str, SiteRoles],
        beats: Sequence[WorkerBeat],
        *,
        may_ask: Callable[[], bool],
    ) -> None:
        """
        Ask for what brings the workers nearer to a plan's roles.

        Args:
            roles: By datacenter.
            beats: The last heartbeat of each live worker.
            may_ask: Whether this router still leads, asked before each worker.
        """
        self._look(beats)
        refused = {worker_id for worker_id, _ in self._refused}
        steps = next_steps(roles, beats, self._under_way, self._rules, refused=refused)
        for step in steps[:_STEPS_PER_TURN]:
            if not may_ask():
                return
            await self._ask(step)

    async def _ask(self, step: Step) -> None:
        kind = "role" if step.is_role_change else "lend"
        change = RoleChange(
            incarnation=step.incarnation,
            role=step.role,
            lend_share=step.lend_share,
            dwell_s=self._rules.role_dwell_s,
        )
        result, detail = "accepted", ""
        rest_s = self._rules.role_change_s_max
        try:
            await self._client.change_role(step.url, change)
        except RoleRefused as error:
            result, detail = "refused", error.message
            if error.reason != "role_unsupported":
                # Others of its datacenter are asked meanwhile.
                rest_s = max(error.retry_after_s or 0.0, self._rules.role_dwell_s)
        except WorkerRefused as error:
            result, detail = "refused", error.message
        except WorkerUnreached as error:
            result, detail = "unreached", error.message
        except PeerError as error:
            # It may have heard us: it is waited for as if it had.
            result, detail = "unknown", error.message
        self._metrics.role_changes.labels(kind, result).inc()
        _log.info(
            "worker.asked", worker=step.worker_id, role=step.role, outcome=result, detail=detail
        )
        if result in {"refused", "unreached"}:
            self._refused[step.worker_id, step.incarnation] = self._clock() + rest_s
        elif step.is_role_change:
            self._under_way[step.datacenter] = UnderWay(
                worker_id=step.worker_id, role=step.role, since_s=self._clock()
            )

    def _look(self, beats: Sequence[WorkerBeat]) -> None:
        now_s = self._clock()
        self._under_way = still_under_way(self._under_way, beats, now_s=now_s, rules=self._rules)
        lives = {(beat.worker_id, beat.incarnation) for beat in beats}
        self._refused = {
            life: until_s
            for life, until_s in self._refused.items()
            if until_s > now_s and life in lives
        }
