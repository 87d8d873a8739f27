"""`lookahead` against every baseline: three traces, three loads, two links."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.results.cells import PLANS, Cell, case_study, known, run_all, solved, world
from benchmarks.results.tables import table
from controlplane.replay.results import PolicyResult, Slo
from controlplane.replay.run import NamedPolicy

_BASELINES: Final = (
    "prfaas", "static_threshold", "balanced_split", "least_loaded", "power_of_two",
    "prefix_affinity", "round_robin", "local_only", "offload_all",
)  # fmt: skip
#: `lookahead` that is not told the objective, as the baselines cannot be.
_UNTOLD: Final = "lookahead, untold"
_LINKS: Final = (100.0, 10.0)
_ROLES: Final = {"west": (3, 5)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A trace and how fast it is replayed."""

    name: str
    file: str
    speeds: tuple[float, ...]
    slo: Slo


#: Objectives of a few times the prefill of a usual prompt, and 30 tokens a second.
LOADS: Final = (
    Load(
        name="Mooncake conversation",
        file="mooncake_fast25_conversation_trace.jsonl.gz",
        speeds=(1.2, 1.6, 2.0),
        slo=Slo(ttft_s=5.0, tpot_s=0.033),
    ),
    Load(
        name="Mooncake synthetic",
        file="mooncake_fast25_synthetic_trace.jsonl.gz",
        speeds=(1.0, 1.4, 1.8),
        slo=Slo(ttft_s=5.0, tpot_s=0.033),
    ),
    Load(
        name="Azure conversation",
        file="azure2023_conv.csv.gz",
        speeds=(1.6, 2.0, 2.4),
        slo=Slo(ttft_s=2.0, tpot_s=0.033),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One cell of the table."""

    trace: str
    speed: float
    link_gbit_per_s: float
    results: dict[str, PolicyResult]

    @property
    def best_baseline(self) -> PolicyResult:
        """The best but `lookahead`."""
        others = [one for name, one in self.results.items() if name not in {"lookahead", _UNTOLD}]
        return max(others, key=lambda one: one.goodput_per_s)

    @property
    def gain(self) -> float:
        """Of `lookahead` over the best baseline; below 0 it loses."""
        mine = self.results["lookahead"].goodput_per_s
        return mine / self.best_baseline.goodput_per_s - 1 if mine else -1.0


def measure(
    traces: Path, *, requests: int, loads: tuple[Load, ...] = LOADS, jobs: int | None = None
) -> list[Place]:
    """
    Replay all that is there.

    Args:
        traces: The folder of the traces; those that are missing are left out.
        requests: Of each replay.
        loads: Traces, loads and objectives.
        jobs: Replays at a time.
    """
    names = ["lookahead", _UNTOLD, *known(*_BASELINES)]
    (threshold,) = solved(case_study()).threshold_tokens.values()
    wanted = [
        (load, speed, link)
        for load in loads
        if (traces / load.file).exists()
        for speed in load.speeds
        for link in _LINKS
    ]
    cells = [
        Cell(
            policy=_policy(name, load, round(threshold)),
            trace=str(traces / load.file),
            world=world(case_study(link_gbit_per_s=link), roles=_ROLES),
            requests=requests,
            speed=speed,
            planner=PLANS if name in {"prfaas", "lookahead", _UNTOLD} else None,
            slo=load.slo,
        )
        for load, speed, link in wanted
        for name in names
    ]
    results = iter(run_all(cells, jobs=jobs)) if cells else iter(())
    return [
        Place(
            trace=load.name,
            speed=speed,
            link_gbit_per_s=link,
            results={name: next(results) for name in names},
        )
        for load, speed, link in wanted
    ]


def _policy(name: str, load: Load, threshold_tokens: int) -> NamedPolicy:
    """With what it can be told."""
    if name == "lookahead":
        return NamedPolicy(name=name, parameters={"ttft_slo_s": load.slo.ttft_s})
    if name == "static_threshold":
        return NamedPolicy(name=name, parameters={"threshold_tokens": threshold_tokens})
    return NamedPolicy(name="lookahead" if name == _UNTOLD else name)


def page(found: list[Place]) -> str:
    """As it stands in the document."""
    if not found:
        return "The traces are not on this machine; see `--traces`."
    names = list(found[0].results)
    rows = [
        (
            f"{one.trace}, x{one.speed:g}, {one.link_gbit_per_s:g} Gbit/s",
            *(f"{one.results[name].goodput_per_s:.2f}" for name in names),
            f"{one.gain:+.1%} ({one.best_baseline.policy})",
        )
        for one in found
    ]
    better = sum(one.gain > 0 for one in found)
    within = sum(one.gain >= -0.02 for one in found)
    worst = min(found, key=lambda one: one.gain)
    heads = (
        "goodput, requests/s",
        *(f"`{name}`" for name in names),
        "`lookahead` against the best",
    )
    return (
        f"{table(heads, rows)}\n\n"
        f"`lookahead` is better than the best baseline in {better} of {len(found)} cells, and at most "
        f"2 % worse in {within}. Its worst is {worst.gain:+.1%}, on {worst.trace} at "
        f"x{worst.speed:g} and {worst.link_gbit_per_s:g} Gbit/s. Goodput counts requests "
        "whose first token comes within 5 s (Mooncake) or 2 s (Azure), with 30 tokens a second after it. "
        f"`lookahead` is told that objective (`ttft_slo_s`); `{_UNTOLD}` is not, and the baselines have no "
        "use for it. In an overloaded fleet it is what makes the difference: requests that are late "
        "anyway wait behind one another, as under `round_robin` they happen to, and the others are in "
        "time. Those that are late are much later for it. "
        f"At its worst the 99th percentile of TTFT is {_late(found, 'lookahead')} s, "
        f"with `{_UNTOLD}` {_late(found, _UNTOLD)} s."
    )


def _late(found: list[Place], name: str) -> str:
    """The worst TTFT p99 of a policy, seconds."""
    return f"{max(one.results[name].ttft_s.p99 for one in found):.0f}"
