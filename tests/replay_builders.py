"""Small fleets and traces for tests of the replay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from controlplane.domain.throughput.profile import DecodeProfile, KvSize, QuadraticPrefill
from controlplane.replay.results import PolicyResult
from controlplane.replay.run import NamedPolicy, ReplayOptions, replay
from controlplane.replay.spec import Change, Hardware, LinkSpec, WorkerSpec, WorldSpec
from controlplane.replay.traces.request import TraceRequest


def a_hardware(**changes: object) -> Hardware:
    """One second for each 1,000 tokens, two slots of 10 ms steps, 1,000 bytes a token."""
    values: dict[str, object] = {
        "prefill": QuadraticPrefill(fixed_s=0.0, s_per_token=0.001),
        "decode": DecodeProfile(slots=2, step_s=0.01),
        "kv": KvSize(state_bytes=0.0, bytes_per_token=1000.0),
        "cache_blocks": 100,
    }
    return Hardware(**(values | changes))  # type: ignore[arg-type]


def a_worker(worker_id: str, hardware: Hardware | None = None) -> WorkerSpec:
    """`east/p1` prefills in east, `west/d1` decodes in west."""
    site, _, name = worker_id.partition("/")
    return WorkerSpec(
        worker_id=worker_id,
        datacenter=site,
        role="prefill" if name.startswith("p") else "decode",
        hardware=hardware or a_hardware(),
    )


def a_world(
    *worker_ids: str,
    gbit_per_s: float = 1.0,
    rtt_s: float = 0.0,
    egress_price_per_gb: float = 0.0,
    hardware: Hardware | None = None,
    changes: Sequence[Change] = (),
) -> WorldSpec:
    """Workers in east and west, the router in west, and a link from east."""
    names = worker_ids or ("east/p1", "west/p1", "west/d1", "west/d2")
    return WorldSpec(
        workers=tuple(a_worker(name, hardware) for name in names),
        links=(
            LinkSpec(
                from_datacenter="east",
                to_datacenter="west",
                capacity_bps=gbit_per_s * 1e9,
                rtt_s=rtt_s,
                egress_price_per_gb=egress_price_per_gb,
            ),
        ),
        home="west",
        changes=tuple(changes),
    )


@dataclass
class ListTrace:
    """Requests from a list."""

    rows: Sequence[TraceRequest]
    name: str = "a list"
    block_tokens: int = 512

    @property
    def count(self) -> int | None:
        return len(self.rows)

    def requests(self, seed: int) -> Iterator[TraceRequest]:
        del seed
        yield from self.rows


def some_requests(
    count: int,
    *,
    every_s: float = 1.0,
    input_tokens: int = 1001,
    output_tokens: int = 11,
    blocks: tuple[int, ...] = (),
) -> ListTrace:
    """Equal requests at equal distances."""
    return ListTrace(
        [
            TraceRequest(number * every_s, input_tokens, output_tokens, blocks)
            for number in range(count)
        ]
    )


def replayed(
    trace: ListTrace, world: WorldSpec, policy: str = "local_only", **options: object
) -> PolicyResult:
    """A replay under one policy."""
    return replay(trace, world, NamedPolicy(name=policy), ReplayOptions(**options))  # type: ignore[arg-type]
