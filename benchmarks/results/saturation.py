"""The paper's case study: saturated throughput by policy, then waiting at parts of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from benchmarks.results.cells import (
    PLANS,
    Cell,
    case_study,
    known,
    run_all,
    solved,
    synthetic,
    world,
)
from benchmarks.results.tables import table
from controlplane.replay.results import PolicyResult
from controlplane.replay.run import NamedPolicy

#: A closed loop of so many clients keeps every queue of the fleet filled.
_CLIENTS: Final = 240

_PARTS: Final = (0.6, 0.8, 0.95)

#: The paper's fleet with the roles of its Table 6.
_ROLES: Final = {"west": (3, 5)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Saturation:
    """What was found."""

    #: By the throughput model, exact expectations.
    analytical_per_s: float
    threshold_tokens: float
    #: By label.
    saturated: dict[str, PolicyResult]
    #: By part of saturation and label.
    waiting: dict[float, dict[str, PolicyResult]]


def _policies(threshold: float) -> list[tuple[NamedPolicy, dict[str, tuple[int, int]], bool]]:
    """Policy, roles, and whether a planner plans for it."""
    frozen = {"threshold_tokens": round(threshold)}
    return [
        (NamedPolicy(name="prfaas", label="prfaas"), _ROLES, True),
        *(
            (NamedPolicy(name=name, parameters=frozen), _ROLES, False)
            for name in known("static_threshold")
        ),
        *((NamedPolicy(name=name), _ROLES, True) for name in known("lookahead")),
        *(
            (NamedPolicy(name=name), _ROLES, False)
            for name in known(
                "balanced_split", "least_loaded", "power_of_two", "round_robin", "local_only"
            )
        ),
        *(
            (NamedPolicy(name=name, label="offload_all, all decode"), {"west": (0, 8)}, False)
            for name in known("offload_all")
        ),
    ]


def measure(
    *,
    requests: int,
    parts: tuple[float, ...] = _PARTS,
    only: tuple[str, ...] = (),
    jobs: int | None = None,
) -> Saturation:
    """
    Saturate the fleet, and load it in part.

    Args:
        requests: Of each replay.
        parts: Of the analytical throughput.
        only: Policies by name; empty for all.
        jobs: Replays at a time.
    """
    fleet = case_study()
    best = solved(fleet)
    (threshold,) = best.threshold_tokens.values()
    chosen = [one for one in _policies(threshold) if not only or one[0].name in only]
    saturating = [
        Cell(
            policy=policy,
            trace=synthetic(1000.0, requests),
            world=world(fleet, roles=roles),
            requests=requests,
            clients=_CLIENTS,
            planner=PLANS if plans else None,
            warmup_s=120.0,
        )
        for policy, roles, plans in chosen
    ]
    waiting = [
        Cell(
            policy=policy,
            trace=synthetic(part * best.throughput_per_s, requests),
            world=world(fleet, roles=roles),
            requests=requests,
            planner=PLANS if plans else None,
        )
        for part in parts
        for policy, roles, plans in chosen
    ]
    results = run_all([*saturating, *waiting], jobs=jobs)
    labels = [policy.shown for policy, _, _ in chosen]
    count = len(labels)
    return Saturation(
        analytical_per_s=best.throughput_per_s,
        threshold_tokens=threshold,
        saturated=dict(zip(labels, results[:count], strict=True)),
        waiting={
            part: dict(zip(labels, results[count * (n + 1) : count * (n + 2)], strict=True))
            for n, part in enumerate(parts)
        },
    )


def page(found: Saturation) -> str:
    """As it stands in the document."""
    rows = [
        (
            name,
            f"{one.throughput_per_s:.3f}",
            f"{one.throughput_per_s / found.analytical_per_s - 1:+.1%}",
            f"{one.offloaded:.1%}",
            f"{max(use.utilisation for use in one.links.values()):.1%}",
        )
        for name, one in found.saturated.items()
    ]
    model = (
        f"By the throughput model (exact expectations): **{found.analytical_per_s:.3f} requests/s** "
        f"at a threshold of {found.threshold_tokens:,.0f} tokens, 3 prefill and 5 decode workers."
    )
    times = (
        "Seconds to the first token, with queues and transfer, at parts of that throughput; the "
        "paper's Table 6 has the prefill alone:"
    )
    heads = ("saturated", "requests/s", "against the model", "offloaded", "link")
    parts = [model, table(heads, rows)]
    if found.waiting:
        parts.append(times)
    for part, results in found.waiting.items():
        named = (f"{part:.0%}", "mean", "p50", "p90", "p99", "mean queue")
        parts.append(table(named, [_times(name, one) for name, one in results.items()]))
    return "\n\n".join(parts)


def _times(name: str, one: PolicyResult) -> tuple[str, ...]:
    ttft = one.ttft_s
    times_s = (ttft.mean, ttft.p50, ttft.p90, ttft.p99, one.prefill_queue_s.mean)
    return (name, *(f"{time_s:.2f}" for time_s in times_s))
