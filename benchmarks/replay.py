"""`python -m benchmarks.replay`: requests that one core replays in a second, and how that scales."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

import click
from rich.console import Console
from rich.table import Table

from benchmarks.results.cells import case_study, world
from controlplane.domain.throughput.profile import DecodeProfile, KvSize, QuadraticPrefill
from controlplane.observe.logs import configure_logs
from controlplane.replay.run import NamedPolicy, ReplayOptions, replay
from controlplane.replay.spec import Hardware, LinkSpec, WorkerSpec, WorldSpec
from controlplane.replay.traces.opening import open_trace

#: What issue 4 asks for, of one core with 12 workers and 2 datacenters.
_WANTED_PER_S: Final = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A fleet and a load that it can take."""

    name: str
    world: WorldSpec
    trace: str
    requests: int


def _large(sites: int, workers: int) -> WorldSpec:
    """So many workers in so many datacenters, each with a link to the first."""
    hardware = Hardware(
        prefill=QuadraticPrefill(fixed_s=0.05, s_per_token=4e-5),
        decode=DecodeProfile(slots=20, step_s=0.025),
        kv=KvSize(state_bytes=1e8, bytes_per_token=17_553.0),
    )
    names = [f"dc{number}" for number in range(sites)]
    each = workers // sites
    return WorldSpec(
        workers=tuple(
            WorkerSpec(
                worker_id=f"{name}/{'d' if number % 2 else 'p'}{number}",
                datacenter=name,
                role="decode" if number % 2 else "prefill",
                hardware=hardware,
            )
            for name in names
            for number in range(each)
        ),
        links=tuple(
            LinkSpec(from_datacenter=name, to_datacenter=names[0], capacity_bps=1e11, rtt_s=0.01)
            for name in names[1:]
        ),
        home=names[0],
    )


def _cases(requests: int) -> list[Case]:
    return [
        Case(
            name="12 workers, 2 datacenters",
            world=world(case_study(), roles={"west": (3, 5)}),
            trace="synthetic:rate=2.6,requests=1000000",
            requests=requests,
        ),
        Case(
            name="the same, short prompts at 20 requests/s",
            world=world(case_study(), roles={"west": (3, 5)}),
            trace="synthetic:rate=20,requests=1000000,mu=5.5,sigma=0.5,output=64",
            requests=requests,
        ),
        Case(
            name="1,000 workers, 16 datacenters",
            world=_large(16, 1008),
            trace="synthetic:rate=100,requests=1000000",
            requests=requests // 2,
        ),
    ]


@click.command()
@click.option("--requests", type=click.IntRange(10), default=4000, show_default=True)
@click.option("--policy", default="prfaas", show_default=True)
def main(*, requests: int, policy: str) -> None:
    """Measure how fast production's router is replayed, in CPU time of this process."""
    configure_logs("json", "critical")
    shown = Table(box=None, pad_edge=False)
    for head in ("", "requests", "CPU, s", "requests/s of one core", "virtual s"):
        shown.add_column(head, justify="left" if not head else "right")
    for case in _cases(requests):
        began_s = time.process_time()
        result = replay(
            open_trace(case.trace),
            case.world,
            NamedPolicy(name=policy),
            ReplayOptions(requests=case.requests),
        )
        took_s = time.process_time() - began_s
        shown.add_row(
            case.name,
            f"{result.requests:,}",
            f"{took_s:.2f}",
            f"{result.requests / took_s:,.0f}",
            f"{result.finished_s:,.0f}",
        )
    console = Console(width=110)
    console.print(shown)
    console.print(f"wanted of the first: {_WANTED_PER_S:,} requests/s of one core")


if __name__ == "__main__":
    main()
