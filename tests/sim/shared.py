"""What all processes of a world share: its fleet, and what lies between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from sim.engine import EngineTimes
from sim.network import Network, Process
from sim.store import StoreNode
from sim.story import Story

from controlplane.config import DatacenterConfig as Site
from controlplane.config import (
    FleetConfig,
    KvConfig,
    LimitsConfig,
    LinkConfig,
    ModelConfig,
    RouterConfig,
)
from controlplane.config_health import HealthConfig
from controlplane.wire import Role

MODEL = "sim"
FINGERPRINT = "sim-1"

#: A request's whole time, virtual seconds.
REQUEST_S = 30.0

PREFILLS = ("east/p1", "east/p2", "west/p1", "west/p2")
DECODES = ("west/d1", "west/d2", "west/d3", "east/d4")
ROUTERS = ("west/r1", "west/r2")


def parameters_of(policy: str) -> dict[str, Any]:
    """Parameters under which prompts of this small world cross links."""
    return {"threshold_tokens": 64} if policy == "prfaas" else {}


def a_fleet(policy: str) -> FleetConfig:
    """Two datacenters with two prefill workers each, and four decode workers."""
    return FleetConfig(
        name="sim",
        router=RouterConfig(
            datacenter="west",
            policy=policy,
            policy_parameters=parameters_of(policy),
        ),
        model=ModelConfig(
            name=MODEL, context_tokens_max=2048, decode_slots=4, queue_requests_max=12
        ),
        datacenters=(
            Site(name="east", prefill_workers=2, decode_workers=1),
            Site(name="west", prefill_workers=2, decode_workers=3),
        ),
        links=(
            LinkConfig(from_datacenter="east", to_datacenter="west", capacity_mbit_per_s=80),
            LinkConfig(from_datacenter="west", to_datacenter="east", capacity_mbit_per_s=80),
        ),
        limits=LimitsConfig(
            request_timeout_s=REQUEST_S,
            coalesce_tokens_min=96,
            coalesce_wait_s=5.0,
            client_write_timeout_s=5.0,
            reservation_ttl_s=6.0,
            retry_floor=2,
        ),
        kv=KvConfig(lease_s=6.0, renew_interval_s=2.0),
        # As often as in production they would be a third of all that is simulated.
        health=HealthConfig(link_probe_interval_s=1.5),
    )


@dataclass(slots=True, kw_only=True)
class Shared:
    """What all processes of a world share."""

    fleet: FleetConfig
    network: Network
    store: StoreNode
    story: Story
    #: A source of its own for each use in each life, so that one more use changes no other.
    random: Callable[[Process, str], Random]
    #: Told of what may never be, by invariant.
    violate: Callable[[str, str], None]
    times: EngineTimes = field(default_factory=EngineTimes)
    #: Workers that are of a version before resuming.
    old: set[str] = field(default_factory=set)
    #: What each worker does from its next life on.
    roles: dict[str, Role] = field(
        default_factory=lambda: (
            dict.fromkeys(PREFILLS, "prefill") | dict.fromkeys(DECODES, "decode")
        )
    )
    on_poison: Callable[[str], None] = lambda _: None
