"""The state document of `GET /admin/v1/state`, from the router's view. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from controlplane.domain.cluster import ClusterView, LinkView, Role, WorkerView
from controlplane.domain.health import WorkerState
from controlplane.domain.modes import MODES
from controlplane.domain.plan import NEVER_TOKENS, Plan

_ROLES: tuple[Role, ...] = ("prefill", "decode")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerHoldings:
    """What a worker holds; not part of what policies see."""

    #: Blocks in its prefix cache, as far as the router knows.
    held_blocks: int = 0
    #: Bytes of KV, prefix cache and segments, by its own count.
    kv_bytes: int = 0
    #: Seconds since it was heard, through the store or directly; None if it is not known.
    silence_s: float | None = None
    state: WorkerState = "healthy"


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterFacts:
    """What a state document says beside the view."""

    router_id: str
    fleet: str
    #: Configured datacenters, in their order: one without workers is shown too.
    datacenters: Sequence[str]
    policy: str
    policy_parameters: Mapping[str, Any]
    is_store_away: bool
    #: Seconds since the newest input from the store, now.
    view_age_s: float
    requests_in_flight: int
    requests_max: int
    #: By worker id.
    holdings: Mapping[str, WorkerHoldings]
    #: By link id.
    link_bytes_total: Mapping[str, int]
    #: By link id; None while it is not known.
    link_egress_bps: Mapping[str, float | None]
    #: Of the document that named it; 0 for the configuration's.
    policy_version: int = 0
    #: Names of the policies that answer beside it.
    shadows: Sequence[str] = ()


def state_document(view: ClusterView, facts: RouterFacts) -> dict[str, Any]:
    """The whole document; every figure has its unit in its name."""
    names = dict.fromkeys((*facts.datacenters, *(worker.datacenter for worker in view.workers)))
    return {
        "router": {
            "router_id": facts.router_id,
            "fleet": facts.fleet,
            "home_datacenter": view.home_datacenter,
            "requests_in_flight": facts.requests_in_flight,
            "requests_max": facts.requests_max,
        },
        "view": {
            "epoch": view.epoch,
            "age_s": facts.view_age_s,
            "mode": view.mode,
            "mode_step": MODES.index(view.mode),
            "prefix_trust": view.prefix_trust,
        },
        "store": {"status": "away" if facts.is_store_away else "ok"},
        "policy": {
            "name": facts.policy,
            "parameters": dict(facts.policy_parameters),
            "version": facts.policy_version,
            "shadows": list(facts.shadows),
        },
        "plan": _plan(view.plan),
        "datacenters": [_datacenter(name, view, facts) for name in names],
        "links": [_link(link, facts) for link in view.links],
    }


def worker_status(worker: WorkerView) -> Literal["ready", "suspect", "ejected", "draining"]:
    """The one word that says whether it gets new work."""
    if worker.is_draining:
        return "draining"
    if worker.is_ejected:
        return "ejected"
    return "suspect" if worker.is_suspect else "ready"


def queue(workers: Iterable[WorkerView]) -> dict[str, int]:
    """Sums over workers: what waits, and room for it."""
    known = tuple(workers)
    return {
        "workers": len(known),
        "workers_ready": sum(worker_status(worker) == "ready" for worker in known),
        "pending_requests": sum(worker.pending_requests for worker in known),
        "pending_tokens": sum(worker.pending_tokens for worker in known),
        "slots": sum(worker.slots for worker in known),
        "requests_max": sum(worker.requests_max for worker in known),
    }


def _plan(plan: Plan | None) -> dict[str, Any]:
    """The plan in short; `GET /admin/v1/plan` has it whole."""
    if plan is None:
        return {"version": 0, "summary": "none", "threshold_tokens": {}}
    thresholds = {
        link: None if tokens >= NEVER_TOKENS else round(tokens)
        for link, tokens in plan.threshold_tokens.items()
    }
    listed = ", ".join(
        f"{link} {'never' if tokens is None else f'over {tokens} tokens'}"
        for link, tokens in thresholds.items()
    )
    return {
        "version": plan.version,
        "summary": f"#{plan.version}: {listed or 'no link'}; load {plan.load:.0%}, limit: "
        f"{plan.bottleneck}",
        "threshold_tokens": thresholds,
        "load_ratio": plan.load,
        "throughput_per_s": plan.throughput_per_s,
        "bottleneck": plan.bottleneck,
    }


def _datacenter(name: str, view: ClusterView, facts: RouterFacts) -> dict[str, Any]:
    workers = [worker for worker in view.workers if worker.datacenter == name]
    return {
        "name": name,
        "is_home": name == view.home_datacenter,
        "queues": {role: queue(w for w in workers if w.role == role) for role in _ROLES},
        "workers": [
            _worker(worker, facts.holdings.get(worker.worker_id, WorkerHoldings()))
            for worker in workers
        ],
    }


def _worker(worker: WorkerView, holdings: WorkerHoldings) -> dict[str, Any]:
    return {
        "worker_id": worker.worker_id,
        "role": worker.role,
        "incarnation": worker.incarnation,
        "model": worker.model,
        "status": worker_status(worker),
        "is_draining": worker.is_draining,
        "is_suspect": worker.is_suspect,
        "is_ejected": worker.is_ejected,
        "is_needed": worker.is_needed,
        "state": holdings.state,
        "share_ratio": worker.share,
        "silence_s": holdings.silence_s,
        "pending_requests": worker.pending_requests,
        "pending_tokens": worker.pending_tokens,
        "slots": worker.slots,
        "requests_max": worker.requests_max,
        "busy_ratio": worker.pending_requests / worker.slots if worker.slots else 0.0,
        "held_blocks": holdings.held_blocks,
        "kv_bytes": holdings.kv_bytes,
        "profile": {
            "prefill_s_per_token": worker.prefill_s_per_token,
            "prefill_fixed_s": worker.prefill_fixed_s,
            "decode_step_s": worker.decode_step_s,
            "kv_bytes_per_token": worker.kv_bytes_per_token,
            "kv_state_bytes": worker.kv_state_bytes,
        },
    }


def _link(link: LinkView, facts: RouterFacts) -> dict[str, Any]:
    egress_bps = facts.link_egress_bps.get(link.link_id)
    return {
        "link_id": link.link_id,
        "from_datacenter": link.from_datacenter,
        "to_datacenter": link.to_datacenter,
        "capacity_bps": link.capacity_bps,
        "goodput_bps": link.goodput_bps,
        "rate_bps": link.rate_bps,
        "rtt_s": link.rtt_s,
        "is_down": link.is_down,
        "is_measured": link.is_measured,
        "reserved_bytes": link.reserved_bytes,
        "reserved_s": link.reserved_bytes * 8 / link.rate_bps,
        "bytes_total": facts.link_bytes_total.get(link.link_id, 0),
        "egress_bps": egress_bps,
        "utilisation_ratio": None if egress_bps is None else egress_bps / link.capacity_bps,
    }
