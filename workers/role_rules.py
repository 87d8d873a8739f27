"""Whether a worker does what a planner asks of it: pure, so that two planners do no harm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from controlplane.wire import Role, RoleChange

#: What a change comes to.
Step: TypeAlias = Literal["nothing", "lending", "role"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Duties:
    """What a worker does, or is about to do."""

    role: Role
    #: Part of its time that it lends.
    lend_share: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a change does not come about; `RoleReply` lists the codes."""

    code: Literal["role_dwell", "role_incarnation", "role_unsupported", "role_busy"]
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleState:
    """All that the answer depends on."""

    incarnation: str
    #: Roles that it can have; empty when it keeps the one it has.
    roles: tuple[Role, ...]
    #: Its KV is reached at a port of its own choice, which a second registration needs.
    can_lend: bool = True
    #: What it does; while it changes, what it will do.
    duties: Duties
    #: It changes, or leaves.
    is_busy: bool
    #: Seconds for which it still refuses another role.
    dwell_left_s: float


def step_of(state: RoleState, change: RoleChange) -> Step | Refusal:
    """
    What a worker in this state has to do for a change, or why it refuses. Pure.

    Asking again for what is under way is answered like the first time. Only another role has to
    wait for the dwell time: a share of time comes and goes without a drain.
    """
    wanted = duties_of(change)
    if change.incarnation != state.incarnation:
        return Refusal(
            code="role_incarnation",
            message="the change is for another life of this worker; look again",
        )
    if wanted == state.duties:
        return "nothing"
    is_role = wanted.role != state.duties.role
    return _refusal(state, wanted, is_role=is_role) or ("role" if is_role else "lending")


def _refusal(state: RoleState, wanted: Duties, *, is_role: bool) -> Refusal | None:
    if not _can(state, wanted):
        return Refusal(code="role_unsupported", message=_said_of_abilities(state, wanted))
    if state.is_busy:
        return Refusal(code="role_busy", message="this worker changes already, or leaves")
    if is_role and state.dwell_left_s > 0:
        return Refusal(
            code="role_dwell",
            message=f"its last change is too fresh: it stays for {state.dwell_left_s:.1f} s more",
        )
    return None


def duties_of(change: RoleChange) -> Duties:
    """What a change asks for."""
    return Duties(role=change.role, lend_share=change.lend_share)


def _can(state: RoleState, wanted: Duties) -> bool:
    if wanted.role not in (state.roles or (state.duties.role,)):
        return False
    is_lender = wanted.role == "decode" and "prefill" in state.roles and state.can_lend
    return is_lender or not wanted.lend_share


def _said_of_abilities(state: RoleState, wanted: Duties) -> str:
    if wanted.role == "prefill" and wanted.lend_share:
        return "a prefill worker has no time to lend: all of it is prefill"
    if wanted.lend_share and not state.can_lend:
        return "its KV port is mapped: what it lends would not be reached"
    return f"this worker stays what it is: it can change to {list(state.roles) or 'nothing'}"
