"""Two prefill pools, one of them behind a slow link: the trap of routers that look at caches alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from benchmarks.results.cells import Cell, known, run_all
from benchmarks.results.tables import table
from controlplane.domain.throughput.profile import DecodeProfile, KvSize, QuadraticPrefill
from controlplane.replay.results import PolicyResult
from controlplane.replay.run import NamedPolicy
from controlplane.replay.spec import Hardware, LinkSpec, WorkerSpec, WorldSpec

_CLIENTS: Final = 8
_SLOW: Final = "slow>home"

_HARDWARE: Final = Hardware(
    prefill=QuadraticPrefill(fixed_s=0.02, s_per_token=5e-5),
    decode=DecodeProfile(slots=16, step_s=0.01),
    kv=KvSize(state_bytes=0.0, bytes_per_token=256 * 1024),
    cache_blocks=0,
    snapshot_blocks=0,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowLink:
    """What was found."""

    #: With the fast pool alone.
    alone: PolicyResult
    results: dict[str, PolicyResult]

    def over_slow(self, name: str) -> float:
        """Part of the requests that went over the slow link."""
        one = self.results[name]
        per_request = 1023 * _HARDWARE.kv.bytes_per_token
        return one.links[_SLOW].bytes_total / per_request / max(1, one.done)


def _worlds() -> tuple[WorldSpec, WorldSpec]:
    """Both pools, and the fast one alone."""

    def worker(site: str, number: int, role: str) -> WorkerSpec:
        return WorkerSpec(
            worker_id=f"{site}/{role[0]}{number}",
            datacenter=site,
            role=role,  # type: ignore[arg-type]
            hardware=_HARDWARE,
        )

    decoders = tuple(worker("home", number, "decode") for number in (1, 2))
    fast = tuple(worker("fast", number, "prefill") for number in (1, 2))
    slow = tuple(worker("slow", number, "prefill") for number in (1, 2))
    links = (
        LinkSpec(from_datacenter="fast", to_datacenter="home", capacity_bps=100e9, rtt_s=0.001),
        LinkSpec(from_datacenter="slow", to_datacenter="home", capacity_bps=1e9, rtt_s=0.001),
    )
    both = WorldSpec(workers=(*decoders, *fast, *slow), links=links, home="home")
    return both, replace(both, workers=(*decoders, *fast), links=links[:1])


def measure(*, requests: int, jobs: int | None = None) -> SlowLink:
    """
    Serve a closed loop of eight clients with prompts of 1,024 tokens.

    Args:
        requests: Of each replay.
        jobs: Replays at a time.
    """
    both, alone = _worlds()
    trace = (
        f"synthetic:requests={requests},rate=1000,mu=6.931,sigma=0.0001,"
        "input_min=1024,input_max=1024,output=16"
    )
    names = known(
        "prfaas", "lookahead", "least_loaded", "power_of_two", "round_robin", "balanced_split",
        "prefix_affinity",
    )  # fmt: skip
    cells = [
        Cell(
            policy=NamedPolicy(name="round_robin", label="fast pool alone"),
            trace=trace, world=alone, requests=requests, clients=_CLIENTS,
        ),
        *(
            Cell(
                policy=NamedPolicy(name=name),
                trace=trace, world=both, requests=requests, clients=_CLIENTS,
            )
            for name in names
        ),
    ]  # fmt: skip
    first, *others = run_all(cells, jobs=jobs)
    return SlowLink(alone=first, results={one.policy: one for one in others})


def page(found: SlowLink) -> str:
    """As it stands in the document."""
    rows = [("fast pool alone", "-", f"{found.alone.throughput_per_s:.2f}", "100 %")]
    rows += [
        (
            name,
            f"{found.over_slow(name):.1%}",
            f"{one.throughput_per_s:.2f}",
            f"{one.throughput_per_s / found.alone.throughput_per_s:.1%}",
        )
        for name, one in found.results.items()
    ]
    heads = ("policy", "over the slow link", "requests/s", "of the fast pool alone")
    return (
        "Two pools of two prefill workers, behind 100 and 1 Gbit/s; 256 KiB of KV for each token, "
        f"prompts of 1,024 tokens, {_CLIENTS} clients in a closed loop.\n\n{table(heads, rows)}"
    )
