"""
The health of a worker as a router sees it: what failures, silence and youth make of it. Pure.

Which failure counts against whom:

| Outcome | Told of | Suspect | Counts for ejection |
|---|---|---|---|
| `ok` | both workers of a request | no | ends a row of failures |
| `lost` | whose connection broke or was refused | yes | yes |
| `timeout` | who did not answer in time | yes | yes |
| `stalled` | who went on answering and made no progress | yes | yes |
| `corrupt` | the prefill worker whose chunks did not fit their checksums | no | by a count of its own |
| `refused` | who said no | no | no: saying no is a sign of life |

Times are seconds on the router's own monotonic clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, TypeAlias

#: How one part of a request ended, as told of the worker that ran it; a closed list.
Outcome: TypeAlias = Literal["ok", "lost", "timeout", "refused", "corrupt", "stalled"]

#: The one word for a worker; a closed list, a label of metrics. A dead worker is not known.
WorkerState: TypeAlias = Literal["warming", "healthy", "suspect", "ejected", "draining"]

WORKER_STATES: Final[tuple[WorkerState, ...]] = (
    "warming",
    "healthy",
    "suspect",
    "ejected",
    "draining",
)

_FAILURES: Final = frozenset({"lost", "timeout", "stalled"})
_NEVER_S: Final = -math.inf
#: The share of a warming worker grows in steps, so that a view stays the same between them.
_WARM_STEPS: Final = 10
#: Base times 2 to this is above every bound; more would overflow a float in the end.
_DOUBLINGS_MAX: Final = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthRules:
    """When a worker is suspected, ejected, and let in; each from a field of the configuration."""

    #: No new work for so long after a failed request.
    suspect_s: float = 2.0
    #: No new work after so much silence.
    silent_s: float = 2.0
    #: Failures in a row that eject.
    failures_max: int = 5
    #: A part of the requests of a window that failed, and ejects; 0 < ratio <= 1.
    failure_ratio: float = 0.5
    window_s: float = 10.0
    #: Requests of a window that say something.
    requests_min: int = 10
    #: Corrupt transfers from one source that eject it.
    corrupt_max: int = 3
    #: First time out; twice as long each further time, up to the bound.
    eject_s: float = 10.0
    eject_s_max: float = 300.0
    #: Part by which a time out is longer or shorter by chance, so that workers return apart.
    eject_jitter: float = 0.2
    #: Part of a pool that may be out at the same time; one worker always may.
    ejected_share_max: float = 1 / 3
    #: With less than this part of a pool available, suspicion and ejection are ignored.
    panic_share: float = 0.5
    #: A new worker takes its full share of work after this.
    warm_s: float = 10.0
    #: And this part of it at first; 0 < share <= 1.
    warm_share_min: float = 0.1


class Health(NamedTuple):
    """
    What a router has seen of one process life.

    A tuple, because one is made for each end of a request at a worker (see `lifecycle.Life`).
    """

    #: Since the last success.
    failures_in_row: int = 0
    #: Since the last time out.
    corrupt: int = 0
    suspect_until_s: float = _NEVER_S
    ejected_until_s: float = _NEVER_S
    #: Times out, each of which doubles the next; forgotten after it was well for as long as out.
    ejections: int = 0
    #: Length of the last time out.
    ejected_s: float = 0.0
    #: Start of the newer half of the window, and what was counted in each half.
    half_began_s: float = _NEVER_S
    ended: int = 0
    failed: int = 0
    ended_before: int = 0
    failed_before: int = 0


#: Of a worker that nothing was seen of yet.
UNKNOWN: Final = Health()


def after(health: Health, outcome: Outcome, now_s: float, rules: HealthRules) -> Health:
    """The health after a request has ended in some way; ejection is decided apart."""
    if outcome == "refused":
        return health
    if outcome == "corrupt":
        return health._replace(corrupt=health.corrupt + 1)
    is_failure = outcome in _FAILURES
    half = _half(health, now_s, rules.window_s / 2)
    is_forgiven = not is_failure and now_s >= health.ejected_until_s + health.ejected_s
    return half._replace(
        ended=half.ended + 1,
        failed=half.failed + is_failure,
        failures_in_row=health.failures_in_row + 1 if is_failure else 0,
        suspect_until_s=now_s + rules.suspect_s if is_failure else health.suspect_until_s,
        ejections=0 if is_forgiven else health.ejections,
    )


def suspected(health: Health, now_s: float, rules: HealthRules) -> Health:
    """The health of a worker that somebody has a reason to doubt."""
    return health._replace(suspect_until_s=now_s + rules.suspect_s)


def deserves_ejection(health: Health, now_s: float, rules: HealthRules) -> bool:
    """Too many failures in a row or in the window, or too many corrupt transfers."""
    if now_s < health.ejected_until_s:
        return False
    if health.failures_in_row >= rules.failures_max or health.corrupt >= rules.corrupt_max:
        return True
    half = _half(health, now_s, rules.window_s / 2)
    ended, failed = half.ended + half.ended_before, half.failed + half.failed_before
    return ended >= rules.requests_min and failed >= rules.failure_ratio * ended


def ejected(health: Health, now_s: float, rules: HealthRules, *, chance: float) -> Health:
    """
    The health of a worker that is put out now; its counts begin anew.

    Args:
        health: Before.
        now_s: Now.
        rules: For base, bound and jitter.
        chance: Uniform in [0, 1).
    """
    doubled_s = rules.eject_s * 2.0 ** min(health.ejections, _DOUBLINGS_MAX)
    length_s = min(rules.eject_s_max, doubled_s) * (1 + rules.eject_jitter * (2 * chance - 1))
    return Health(
        ejected_until_s=now_s + length_s,
        ejected_s=length_s,
        ejections=health.ejections + 1,
    )


def may_eject(pool_workers: int, pool_ejected: int, rules: HealthRules) -> bool:
    """Whether one more worker of a pool may be put out: a part of it at most, and always one."""
    return pool_ejected < max(1, math.floor(pool_workers * rules.ejected_share_max + 1e-9))


def is_panic(pool_workers: int, pool_available: int, rules: HealthRules) -> bool:
    """So few workers of a pool are available that the doubt about the others is the likelier error."""
    return pool_available < rules.panic_share * pool_workers


def warm_share(age_s: float | None, rules: HealthRules) -> float:
    """
    Part of its usual work that a worker of this age takes, in steps.

    Args:
        age_s: Seconds since it could first take work; None for one that does not tell, and is old.
        rules: For the ramp.

    Returns:
        From `warm_share_min` to 1.
    """
    if age_s is None or age_s >= rules.warm_s:
        return 1.0
    ramp = rules.warm_share_min + (1 - rules.warm_share_min) * max(0.0, age_s) / rules.warm_s
    return max(rules.warm_share_min, math.floor(ramp * _WARM_STEPS) / _WARM_STEPS)


def state_of(
    health: Health,
    *,
    now_s: float,
    silence_s: float,
    share: float,
    is_draining: bool,
    rules: HealthRules,
) -> WorkerState:
    """
    The one word for a worker.

    Args:
        health: What was seen of it.
        now_s: Now.
        silence_s: Seconds for which it could have been heard and was not.
        share: From `warm_share`.
        is_draining: It says so itself.
        rules: When silence is too long.
    """
    if is_draining:
        return "draining"
    if now_s < health.ejected_until_s:
        return "ejected"
    if now_s < health.suspect_until_s or silence_s >= rules.silent_s:
        return "suspect"
    return "healthy" if share >= 1 else "warming"


def _half(health: Health, now_s: float, half_s: float) -> Health:
    """The window moved on to now: the newer half becomes the older, or both are over."""
    age_s = now_s - health.half_began_s
    if age_s < half_s:
        return health
    is_adjacent = age_s < 2 * half_s
    return health._replace(
        half_began_s=health.half_began_s + half_s if is_adjacent else now_s,
        ended=0,
        failed=0,
        ended_before=health.ended if is_adjacent else 0,
        failed_before=health.failed if is_adjacent else 0,
    )
