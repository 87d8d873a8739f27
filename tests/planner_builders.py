"""Values for tests of the planner: each argument has a default, a test names what it is about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from builders import a_beat

from controlplane.config_planner import PlannerConfig
from controlplane.domain.plan import Plan, PlanInputs
from controlplane.planner.facts import FleetFacts, SiteFacts
from controlplane.planner.histogram import of_lengths
from controlplane.planner.publication import Solved
from controlplane.planner.traffic import Demand, SiteTraffic
from controlplane.wire import Load, Profile, WorkerBeat

LINK = "east>west"
BOTH = ("prefill", "decode")


def rules(**overrides: Any) -> PlannerConfig:
    """The defaults."""
    return PlannerConfig(**overrides)


def a_demand(
    *,
    per_s: float = 1.0,
    burst_per_s: float | None = None,
    lengths: Sequence[float] = (1000,) * 100,
) -> Demand:
    """A hundred requests for west, of one length, and 100 tokens of output each."""
    return Demand(
        sites={
            "west": SiteTraffic(
                arrival_per_s=per_s,
                burst_per_s=per_s if burst_per_s is None else burst_per_s,
                uncached=of_lengths(lengths),
                output=of_lengths([100.0] * len(lengths)),
            )
        }
    )


def some_facts(*, link_bps: float = 100e6, **workers: int) -> FleetFacts:
    """Two workers that prefill in east, and one that prefills and two that decode in west."""
    counts = {"prefill": 1, "decode": 2} | workers
    return FleetFacts(
        sites={
            "east": SiteFacts(name="east", prefill_workers=2),
            "west": SiteFacts(
                name="west", prefill_workers=counts["prefill"], decode_workers=counts["decode"]
            ),
        },
        link_bps={LINK: link_bps},
    )


def some_inputs(**overrides: Any) -> PlanInputs:
    """One request a second over 100 Mbit/s, for the workers of `some_facts`."""
    values: dict[str, Any] = {
        "arrival_per_s": 1.0,
        "uncached_tokens_mean": 1000.0,
        "uncached_tokens_p50": 1000.0,
        "uncached_tokens_p90": 1000.0,
        "output_tokens_mean": 100.0,
        "link_bps": {LINK: 100e6},
        "workers": some_facts().workers(),
        "observed_requests": 100,
    }
    return PlanInputs(**values | overrides)


def solved(threshold_tokens: float = 1000.0, **overrides: Any) -> Solved:
    """One threshold, ten requests a second."""
    values: dict[str, Any] = {
        "threshold_tokens": {LINK: threshold_tokens},
        "throughput_per_s": 10.0,
    }
    return Solved(**values | overrides)


def a_plan(threshold_tokens: float = 1000.0, **overrides: Any) -> Plan:
    """The first plan, with one threshold."""
    values: dict[str, Any] = {
        "version": 1,
        "author": "west/router-1",
        "threshold_tokens": {LINK: threshold_tokens},
        "inputs": some_inputs(),
    }
    return Plan(**values | overrides)


def a_worker_beat(worker_id: str, *, queue: int = 0, **overrides: Any) -> WorkerBeat:
    """
    A worker that can take both roles, with so many requests.

    Prefill takes 20 ms and 1 ms a token; a step of decode takes 20 ms for all four slots. KV has
    1,000 bytes a token and 50,000 of state.
    """
    values: dict[str, Any] = {
        "roles": BOTH,
        "load": Load(queue_requests=queue),
        "profile": Profile(
            prefill_s_per_token=0.001,
            prefill_fixed_s=0.02,
            decode_step_s=0.02,
            kv_bytes_per_token=1000,
            kv_state_bytes=50_000,
        ),
        "url": f"http://{worker_id}",
    }
    return a_beat(worker_id, **values | overrides)
