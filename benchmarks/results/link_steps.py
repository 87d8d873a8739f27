"""A link that changes under load: who notices, how soon, and what a frozen threshold costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from benchmarks.results.cells import (
    PLANS,
    PLANS_ROLES,
    Cell,
    case_study,
    known,
    run_all,
    solved,
    synthetic,
    world,
)
from benchmarks.results.tables import table
from controlplane.config_planner import PlannerConfig
from controlplane.domain.plan import SiteRoles
from controlplane.replay.results import PolicyResult
from controlplane.replay.run import NamedPolicy
from controlplane.replay.spec import LinkStep

_LINK: Final = "east>west"
_GBIT_PER_S: Final = (100.0, 10.0, 5.0, 2.0, 100.0)
#: A closed loop that keeps the fleet saturated without filling its queues to the brim.
_CLIENTS: Final = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One capacity, and what can be done with it."""

    gbit_per_s: float
    #: With the roles as they are, and with the best ones.
    fixed_per_s: float
    best_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """What was found."""

    phase_s: float
    phases: tuple[Phase, ...]
    results: dict[str, PolicyResult]

    def rates(self, name: str, *, settle_s: float) -> list[float]:
        """Throughput in each phase, from so many seconds after its beginning."""
        result = self.results[name]
        ends = [(number + 1) * self.phase_s for number in range(len(self.phases))]
        return [
            _done(result, end_s - self.phase_s + settle_s, end_s) / (self.phase_s - settle_s)
            for end_s in ends
        ]


def _done(result: PolicyResult, from_s: float, until_s: float) -> float:
    first, last = round(from_s / result.step_s), round(until_s / result.step_s)
    return sum(result.series["done"][first:last])


def measure(
    *,
    phase_s: float,
    policies: tuple[str, ...] = ("prfaas", "lookahead"),
    gbit_per_s: tuple[float, ...] = _GBIT_PER_S,
    changes_roles: bool = True,
    jobs: int | None = None,
) -> Steps:
    """
    Step the link down and up again.

    Args:
        phase_s: Length of each phase, virtual seconds.
        policies: With a planner, for thresholds alone and for roles too.
        gbit_per_s: Of the link, phase by phase.
        changes_roles: Whether planners that change roles are shown too.
        jobs: Replays at a time.
    """
    phases = []
    for capacity in gbit_per_s:
        fleet = case_study(link_gbit_per_s=capacity)
        phases.append(
            Phase(
                gbit_per_s=capacity,
                fixed_per_s=solved(
                    fleet, roles={"west": SiteRoles(prefill_workers=3, decode_workers=5)}
                ).throughput_per_s,
                best_per_s=solved(fleet).throughput_per_s,
            )
        )
    best = solved(case_study())
    (threshold,) = best.threshold_tokens.values()
    changes = tuple(
        LinkStep(at_s=number * phase_s, link=_LINK, capacity_bps=phase.gbit_per_s * 1e9)
        for number, phase in enumerate(phases)
    )
    frozen = known("static_threshold")
    chosen: list[tuple[NamedPolicy, PlannerConfig | None]] = [
        (
            NamedPolicy(
                name=name,
                parameters={"threshold_tokens": round(threshold)},
                label="frozen threshold",
            ),
            None,
        )
        for name in frozen
    ]
    for name in known(*policies):
        chosen.append((NamedPolicy(name=name, label=f"{name}, threshold"), PLANS))
        if changes_roles:
            label = f"{name}, threshold and roles"
            chosen.append((NamedPolicy(name=name, label=label), PLANS_ROLES))
    most = round(len(phases) * phase_s * best.throughput_per_s * 1.3)
    cells = [
        Cell(
            policy=policy,
            trace=synthetic(1000.0, most),
            world=world(case_study(), roles={"west": (3, 5)}, changes=changes),
            requests=most,
            clients=_CLIENTS,
            planner=planner,
            until_s=len(phases) * phase_s,
        )
        for policy, planner in chosen
    ]
    results = run_all(cells, jobs=jobs)
    return Steps(
        phase_s=phase_s,
        phases=tuple(phases),
        results={one.policy: one for one in results},
    )


def page(found: Steps) -> str:
    """As it stands in the document."""
    heads = ("requests/s", *(f"{phase.gbit_per_s:g} Gbit/s" for phase in found.phases))
    rows = [
        ("optimum with 3 prefill, 5 decode", *(f"{one.fixed_per_s:.2f}" for one in found.phases)),
        ("optimum with the best roles", *(f"{one.best_per_s:.2f}" for one in found.phases)),
    ]
    for name in found.results:
        has_roles = name.endswith("roles")
        rates = found.rates(name, settle_s=min(300.0 if has_roles else 60.0, found.phase_s / 2))
        rows.append(
            (
                name,
                *(
                    f"{rate:.2f} ({rate / (one.best_per_s if has_roles else one.fixed_per_s):.0%})"
                    for rate, one in zip(rates, found.phases, strict=True)
                ),
            )
        )
    lost = {name: one.requests - one.done for name, one in found.results.items()}
    told = ", ".join(f"{name} {count}" for name, count in lost.items())
    return (
        f"Closed loop of {_CLIENTS} clients, {found.phase_s:g} s each; counted from 60 s after each "
        "step for thresholds alone and from 300 s where roles change, against the optimum with the "
        f"same freedom.\n\n{table(heads, rows)}\n\nRequests that were not served: {told}."
    )
