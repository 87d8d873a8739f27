"""
Which worker is asked to change next, so that a datacenter comes to the roles of the plan. Pure.

One worker of a datacenter at a time, the one with the least to finish; never the last of a role in the
fleet. Time that is lent needs no drain, so all decode workers of a datacenter lend alike, at once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from controlplane.config_planner import PlannerConfig
from controlplane.domain.cluster import Role
from controlplane.domain.plan import SiteRoles
from controlplane.planner.facts import can_change
from controlplane.wire import WorkerBeat


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one worker is asked for."""

    worker_id: str
    datacenter: str
    incarnation: str
    url: str
    #: What it is now, and what it should be.
    from_role: Role
    role: Role
    lend_share: float = 0.0

    @property
    def is_role_change(self) -> bool:
        """It drains and comes back as another; else it only lends another share."""
        return self.from_role != self.role


@dataclass(frozen=True, slots=True, kw_only=True)
class UnderWay:
    """A role change that was asked for and has not been seen to be over."""

    worker_id: str
    role: Role
    since_s: float


def still_under_way(
    steps: Mapping[str, UnderWay],
    beats: Sequence[WorkerBeat],
    *,
    now_s: float,
    rules: PlannerConfig,
) -> dict[str, UnderWay]:
    """
    Changes that are not over, by datacenter: not back in the new role, and not given up.

    Args:
        steps: By datacenter.
        beats: The last heartbeat of each live worker.
        now_s: Monotonic seconds.
        rules: How long a worker is waited for.
    """
    roles = {beat.worker_id: beat.role for beat in beats if not beat.is_draining}
    return {
        site: step
        for site, step in steps.items()
        if roles.get(step.worker_id) != step.role and now_s - step.since_s < rules.role_change_s_max
    }


def next_steps(
    roles: Mapping[str, SiteRoles],
    beats: Sequence[WorkerBeat],
    under_way: Mapping[str, UnderWay],
    rules: PlannerConfig,
    *,
    refused: Collection[str] = (),
) -> tuple[Step, ...]:
    """
    What to ask for now, role changes first.

    Args:
        roles: The plan's, by datacenter.
        beats: The last heartbeat of each live worker.
        under_way: Changes that are not over, by datacenter.
        rules: Steps and bounds of lent time.
        refused: Workers that have said no a moment ago.
    """
    workers = [beat for beat in beats if beat.lent_by is None and not beat.is_draining]
    steps: list[Step] = []
    for site, target in sorted(roles.items()):
        there = [beat for beat in workers if beat.datacenter == site]
        # A worker that drains may be the change of a leader before this one.
        is_busy = site in under_way or any(
            beat.is_draining and can_change(beat) and beat.datacenter == site for beat in beats
        )
        able = [beat for beat in there if can_change(beat) and beat.worker_id not in refused]
        change = None if is_busy else _role_change(target, there, workers, able)
        if change is not None:
            steps.append(change)
        elif not is_busy:
            steps += _lending(target, able, rules)
    return tuple(steps)


def _role_change(
    target: SiteRoles,
    there: Sequence[WorkerBeat],
    fleet: Sequence[WorkerBeat],
    able: Sequence[WorkerBeat],
) -> Step | None:
    prefill = sum(beat.role == "prefill" and can_change(beat) for beat in there)
    decode = sum(beat.role == "decode" and can_change(beat) for beat in there)
    from_role: Role
    role: Role
    if prefill < target.prefill_workers and decode > target.decode_workers:
        from_role, role = "decode", "prefill"
    elif prefill > target.prefill_workers and decode < target.decode_workers:
        from_role, role = "prefill", "decode"
    else:
        return None
    if sum(beat.role == from_role for beat in fleet) <= 1:
        return None
    chosen = min((beat for beat in able if beat.role == from_role), key=_work_left, default=None)
    return None if chosen is None else _step(chosen, role, 0.0)


def _work_left(beat: WorkerBeat) -> tuple[float, float, str]:
    load = beat.load
    return (load.queue_requests, load.queue_tokens, beat.worker_id)


def _lending(target: SiteRoles, able: Sequence[WorkerBeat], rules: PlannerConfig) -> list[Step]:
    """Shares for all decode workers that can lend, alike and in whole steps."""
    lenders = [beat for beat in able if beat.role == "decode"]
    if not lenders:
        return []
    wanted = min(target.lent_workers / len(lenders), rules.lend_share_max)
    # Down, so that rounding never takes more from decode than was solved for.
    share = round(int(wanted / rules.lend_step + _ROUNDING) * rules.lend_step, 6)
    return [
        _step(beat, "decode", share) for beat in lenders if abs(beat.lend_share - share) > _ROUNDING
    ]


#: Shares closer than this are the same.
_ROUNDING = 1e-6


def _step(beat: WorkerBeat, role: Role, lend_share: float) -> Step:
    return Step(
        worker_id=beat.worker_id,
        datacenter=beat.datacenter,
        incarnation=beat.incarnation,
        url=beat.url,
        from_role=beat.role,
        role=role,
        lend_share=lend_share,
    )
