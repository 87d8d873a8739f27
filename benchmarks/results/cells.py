"""One replay as a value that another process can be given, and many of them at once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from controlplane.config_planner import PlannerConfig
from controlplane.domain.plan import SiteRoles
from controlplane.domain.throughput.fleet import TrafficModel
from controlplane.domain.throughput.lengths import LengthDistribution, TruncatedLogNormal
from controlplane.domain.throughput.solution import Solution
from controlplane.domain.throughput.solve import solve
from controlplane.observe.logs import configure_logs
from controlplane.planfile import PlanningFleet, load_planning_fleet
from controlplane.replay.fleet import world_of
from controlplane.replay.results import PolicyResult, Slo
from controlplane.replay.run import NamedPolicy, ReplayOptions, replay
from controlplane.replay.spec import Change, WorldSpec
from controlplane.replay.traces.opening import open_trace
from controlplane.replay.world import WorldOptions
from policies.registry import policy_names

CASE_STUDY: Final = Path(__file__).with_name("case_study.toml")

#: The paper's lengths (section 4.1), with K = 1000.
LENGTHS: Final = TruncatedLogNormal(mu=9.90, sigma=1.0, shortest=128.0, longest=128_000.0)
OUTPUT_TOKENS: Final = 1024

PLANS: Final = PlannerConfig(changes_roles=False)
PLANS_ROLES: Final = PlannerConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Everything that one replay depends on."""

    policy: NamedPolicy
    trace: str
    world: WorldSpec
    requests: int
    speed: float = 1.0
    clients: int | None = None
    planner: PlannerConfig | None = None
    slo: Slo = field(default_factory=Slo)
    seed: int = 0
    warmup_s: float = 0.0
    #: No new requests from then on, virtual seconds.
    until_s: float | None = None

    def run(self) -> PolicyResult:
        """Replay it."""
        configure_logs("json", "critical")
        options = ReplayOptions(
            seed=self.seed,
            speed=self.speed,
            requests=self.requests,
            clients=self.clients,
            slo=self.slo,
            world=WorldOptions(planner=self.planner),
            warmup_s=self.warmup_s,
            until_s=self.until_s,
        )
        return replay(open_trace(self.trace), self.world, self.policy, options)


def run_all(cells: Sequence[Cell], *, jobs: int | None = None) -> list[PolicyResult]:
    """
    Replay all.

    Args:
        cells: What to replay.
        jobs: So many at a time; None is as many as there are processors, 1 is in this process.

    Returns:
        What each came to, in their order.
    """
    if jobs == 1 or len(cells) <= 1:
        return [cell.run() for cell in cells]
    with ProcessPoolExecutor(max_workers=jobs or os.cpu_count()) as pool:
        return list(pool.map(Cell.run, cells))


def case_study(*, link_gbit_per_s: float = 100.0) -> PlanningFleet:
    """The paper's fleet, behind a link of another speed."""
    fleet = load_planning_fleet(CASE_STUDY)
    links = tuple(
        link.model_copy(update={"capacity_gbit_per_s": link_gbit_per_s}) for link in fleet.links
    )
    return fleet.model_copy(update={"links": links})


def solved(
    fleet: PlanningFleet,
    *,
    lengths: LengthDistribution = LENGTHS,
    output_tokens: float = OUTPUT_TOKENS,
    roles: Mapping[str, SiteRoles] | None = None,
    lend_max: float = 0.0,
) -> Solution:
    """The throughput model's optimum, with exact expectations."""
    traffic = TrafficModel(
        arrival_per_s=1.0, lengths=lengths, output_tokens=output_tokens, kv=fleet.model.kv
    )
    return solve(fleet.fleet_model(), traffic, roles=roles, lend_max=lend_max)


def world(
    fleet: PlanningFleet,
    *,
    roles: dict[str, tuple[int, int]],
    changes: Sequence[Change] = (),
    queue_requests: int = 64,
) -> WorldSpec:
    """The fleet to replay on."""
    made = world_of(fleet, block_tokens=512, roles=roles, changes=changes)
    return replace(made, queue_requests=queue_requests)


def known(*names: str) -> list[str]:
    """Those of the policies that are installed."""
    installed = policy_names()
    return [name for name in names if name in installed]


def synthetic(rate: float, requests: int, **more: float) -> str:
    """The paper's traffic at a rate."""
    rest = "".join(f",{name}={value}" for name, value in more.items())
    return f"synthetic:rate={rate},requests={requests}{rest}"
