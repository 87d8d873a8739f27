"""The fleet under measurement: two datacenters, and workers that announce what they hold."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import Final, Literal

from benchmarks.cells import Size, bodies
from controlplane.config import DatacenterConfig, FleetConfig, LinkConfig, ModelConfig, RouterConfig
from controlplane.domain.prefix import scope_of
from controlplane.edge.requests import ModelFacts, parse_request
from controlplane.tokenizing import tokenizer_for
from controlplane.wire import Inventory, Profile, WorkerBeat

FINGERPRINT: Final = "bench"
KV_BYTES_PER_TOKEN: Final = 512
KV_STATE_BYTES: Final = 65_536
_REQUESTS_MAX: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """A worker that registers itself."""

    datacenter: str
    role: Literal["prefill", "decode"]
    name: str

    @property
    def worker_id(self) -> str:
        """`west/decode-0`."""
        return f"{self.datacenter}/{self.name}"


WORKERS: Final = (
    WorkerSpec(datacenter="east", role="prefill", name="prefill-0"),
    WorkerSpec(datacenter="west", role="prefill", name="prefill-0"),
    WorkerSpec(datacenter="west", role="decode", name="decode-0"),
    WorkerSpec(datacenter="west", role="decode", name="decode-1"),
)


def bench_fleet(size: Size, *, port: int = 0, admin_port: int = 0) -> FleetConfig:
    """Default limits; the context holds the longest prompt, and the link has room."""
    return FleetConfig(
        name=f"bench-{size.name}",
        router=RouterConfig(
            port=port,
            admin_port=admin_port,
            datacenter="west",
            policy_parameters={"threshold_tokens": 512, "follows_plan": False},
        ),
        model=ModelConfig(context_tokens_max=131_072),
        datacenters=(
            DatacenterConfig(name="east", prefill_workers=1),
            DatacenterConfig(name="west", prefill_workers=1, decode_workers=2),
        ),
        links=(
            LinkConfig(from_datacenter="east", to_datacenter="west", capacity_mbit_per_s=10_000),
        ),
    )


def facts_of(size: Size, fleet: FleetConfig) -> dict[str, ModelFacts]:
    """The model as the router will see it once the workers have registered."""
    model = fleet.model
    scope = scope_of(
        model=model.name, fingerprint=FINGERPRINT, tenant_salt=fleet.router.tenant_salt
    )
    facts = ModelFacts(
        name=model.name,
        tokenizer=tokenizer_for(model),
        block_tokens=size.block_tokens,
        context_tokens_max=model.context_tokens_max,
        scope=scope,
    )
    return {model.name: facts}


def shared_inventory(size: Size, fleet: FleetConfig) -> Inventory:
    """The blocks that all prompts share, as a prefix cache would hold them."""
    facts = facts_of(size, fleet)
    chains = [
        parse_request("chat", body, facts).hashes
        for body in bodies(size, fleet.model.name, is_stream=False)
    ]
    shared = [
        blocks[0]
        for blocks in takewhile(lambda blocks: len(set(blocks)) == 1, zip(*chains, strict=False))
    ]
    return Inventory(is_full=True, stored={block.hex(): "as" for block in shared})


def beat_of(
    worker: WorkerSpec, *, url: str, size: Size, fleet: FleetConfig, inventory: Inventory
) -> WorkerBeat:
    """What a worker says of itself at first."""
    return WorkerBeat(
        worker_id=worker.worker_id,
        datacenter=worker.datacenter,
        role=worker.role,
        incarnation=f"{worker.name}.bench",
        sequence=1,
        url=url,
        model=fleet.model.name,
        fingerprint=FINGERPRINT,
        vocabulary_size=272,
        block_tokens=size.block_tokens,
        context_tokens_max=fleet.model.context_tokens_max,
        requests_max=_REQUESTS_MAX,
        slots=_REQUESTS_MAX,
        profile=Profile(
            prefill_s_per_token=1e-6,
            prefill_fixed_s=1e-4,
            decode_step_s=1e-4,
            kv_bytes_per_token=KV_BYTES_PER_TOKEN,
            kv_state_bytes=KV_STATE_BYTES,
        ),
        inventory=inventory,
    )
