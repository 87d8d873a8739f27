"""The state of a fleet as `GET /admin/v1/state` tells it, and how the terminal shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pydantic import TypeAdapter
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from controlplane.admin.text import NOTHING, count, percent, rate, seconds, size
from controlplane.cli.explain_output import plain

_STATUS_STYLES: Final = {
    "ready": "green", "draining": "yellow", "suspect": "yellow", "ejected": "bold red",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileState:
    """Times that predictions are made from."""

    prefill_s_per_token: float
    decode_step_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerState:
    """A worker."""

    worker_id: str
    role: str
    status: str
    share_ratio: float
    silence_s: float | None
    pending_requests: int
    pending_tokens: int
    slots: int
    busy_ratio: float
    kv_bytes: int
    profile: ProfileState


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteState:
    """A datacenter."""

    name: str
    is_home: bool
    workers: tuple[WorkerState, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkState:
    """A link."""

    link_id: str
    capacity_bps: float
    goodput_bps: float | None
    rtt_s: float
    is_down: bool
    reserved_s: float
    bytes_total: int
    egress_bps: float | None
    utilisation_ratio: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterState:
    """The router that was asked."""

    router_id: str
    fleet: str
    requests_in_flight: int
    requests_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewState:
    """Its picture of the fleet."""

    age_s: float
    mode: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreState:
    """The store, as it sees it."""

    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyState:
    """What decides."""

    name: str
    version: int
    shadows: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanState:
    """The plan in short."""

    summary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetState:
    """The part of an answer that is shown."""

    router: RouterState
    view: ViewState
    store: StoreState
    policy: PolicyState
    plan: PlanState
    datacenters: tuple[SiteState, ...]
    links: tuple[LinkState, ...]


STATE: Final = TypeAdapter(FleetState)


def summary(state: FleetState) -> Text:
    """A few lines: router, view, policy, plan."""
    router, policy = state.router, state.policy
    shadows = f", shadows {', '.join(policy.shadows)}" if policy.shadows else ""
    is_well = state.store.status == "ok" and state.view.mode == "normal"
    text = Text()
    text.append(
        f"{plain(router.fleet)}: {router.requests_in_flight} of {router.requests_max} requests run, "
        f"at {plain(router.router_id)}\n"
    )
    text.append(
        f"store {state.store.status}, mode {state.view.mode}, "
        f"view {seconds(state.view.age_s)} old\n",
        style="" if is_well else "bold yellow",
    )
    text.append(f"policy {plain(policy.name)} (version {policy.version}){plain(shadows)}\n")
    text.append(f"plan {plain(state.plan.summary)}")
    return text


def sites_table(state: FleetState) -> Table:
    """A row for each datacenter."""
    table = _table("datacenter", "prefill", "waiting", "tokens", "decode", "running")
    for site in state.datacenters:
        prefill = [one for one in site.workers if one.role == "prefill"]
        decode = [one for one in site.workers if one.role == "decode"]
        table.add_row(
            plain(site.name) + (" (home)" if site.is_home else ""),
            _ready(prefill),
            count(sum(one.pending_requests for one in prefill)),
            count(sum(one.pending_tokens for one in prefill)),
            _ready(decode),
            f"{count(sum(one.pending_requests for one in decode))} of "
            f"{count(sum(one.slots for one in decode))}",
        )
    return table


def workers_table(workers: list[WorkerState]) -> Table:
    """A row for each worker."""
    table = _table(
        "worker", "role", "status", "heard", "requests", "tokens", "busy", "share", "KV", "speed"
    )
    for one in workers:
        speed_s = (
            one.profile.prefill_s_per_token if one.role == "prefill" else one.profile.decode_step_s
        )
        table.add_row(
            plain(one.worker_id),
            one.role,
            Text(one.status, style=_STATUS_STYLES.get(one.status, "")),
            NOTHING if one.silence_s is None else f"{seconds(one.silence_s)} ago",
            count(one.pending_requests),
            count(one.pending_tokens),
            percent(one.busy_ratio),
            percent(one.share_ratio),
            size(one.kv_bytes),
            f"{count(1 / speed_s)} tokens/s" if speed_s else NOTHING,
        )
    return table


def links_table(state: FleetState) -> Table:
    """A row for each link."""
    table = _table("link", "budget", "used", "goodput", "RTT", "promised", "moved", "")
    for one in state.links:
        table.add_row(
            plain(one.link_id),
            rate(one.capacity_bps),
            NOTHING if one.utilisation_ratio is None else percent(one.utilisation_ratio),
            rate(one.goodput_bps) if one.goodput_bps else NOTHING,
            seconds(one.rtt_s) if one.rtt_s else NOTHING,
            seconds(one.reserved_s),
            size(one.bytes_total),
            Text("down", style="bold red") if one.is_down else "",
        )
    return table


def _ready(workers: list[WorkerState]) -> str:
    ready = sum(one.status == "ready" for one in workers)
    return f"{ready} of {len(workers)} ready" if workers else NOTHING


def _table(first: str, *others: str) -> Table:
    table = Table(first, box=SIMPLE_HEAD)
    for name in others:
        table.add_column(name, justify="left" if name in {"role", "status", ""} else "right")
    return table
