"""What the fleet is, as the planner sees it: workers by datacenter, profiles by the workers' own word. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TypeVar

from controlplane.domain.cluster import Role
from controlplane.domain.throughput.profile import DecodeProfile, KvSize, QuadraticPrefill
from controlplane.wire import WorkerBeat

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteFacts:
    """A datacenter's workers that can take work, and what they can do."""

    name: str
    prefill_workers: int = 0
    decode_workers: int = 0
    #: Of them those that can change to the other role.
    movable_prefill: int = 0
    movable_decode: int = 0
    #: Time that decode workers lend to prefill now, in workers.
    lent_workers: float = 0.0
    #: By the word of the workers; None where none has one.
    prefill: QuadraticPrefill | None = None
    decode: DecodeProfile | None = None
    kv: KvSize | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetFacts:
    """Datacenters and links, as they are now."""

    sites: Mapping[str, SiteFacts] = field(default_factory=dict)
    #: Bits per second by link id; 0 for a link that is down.
    link_bps: Mapping[str, float] = field(default_factory=dict)

    def workers(self) -> dict[str, int]:
        """Workers by `datacenter/role`, for the plan's inputs."""
        counts: dict[str, int] = {}
        for site in self.sites.values():
            counts[f"{site.name}/prefill"] = site.prefill_workers
            counts[f"{site.name}/decode"] = site.decode_workers
        return counts


def fleet_facts(
    beats: Iterable[WorkerBeat],
    link_bps: Mapping[str, float],
    *,
    out: Collection[str] = (),
    changing: Mapping[str, tuple[str, Role]] | None = None,
) -> FleetFacts:
    """
    The fleet from what its workers say.

    Args:
        beats: The last heartbeat of each live worker.
        link_bps: Bits per second by link id; 0 for a link that is down.
        out: Workers that get no work, because they fail.
        changing: By worker, the datacenter and role that it was asked to take: it counts as what it
            will be, whatever it is meanwhile.
    """
    coming = changing or {}
    by_site: dict[str, list[WorkerBeat]] = {}
    for beat in beats:
        # Lent time is counted at the worker that lends it.
        if beat.lent_by is None and beat.worker_id not in out and beat.worker_id not in coming:
            by_site.setdefault(beat.datacenter, []).append(beat)
    roles: dict[str, list[Role]] = {}
    for site, role in coming.values():
        roles.setdefault(site, []).append(role)
    return FleetFacts(
        sites={
            name: _site(name, each, roles.get(name, ())) for name, each in sorted(by_site.items())
        },
        link_bps=link_bps,
    )


def can_change(beat: WorkerBeat) -> bool:
    """A worker that can take the other role too."""
    return set(beat.roles) >= {"prefill", "decode"}


def _site(name: str, beats: list[WorkerBeat], coming: Sequence[Role]) -> SiteFacts:
    working = [beat for beat in beats if not beat.is_draining]
    prefill = [beat for beat in working if beat.role == "prefill"]
    decode = [beat for beat in working if beat.role == "decode"]
    return SiteFacts(
        name=name,
        prefill_workers=len(prefill) + coming.count("prefill"),
        decode_workers=len(decode) + coming.count("decode"),
        movable_prefill=sum(map(can_change, prefill)) + coming.count("prefill"),
        movable_decode=sum(map(can_change, decode)) + coming.count("decode"),
        lent_workers=sum(beat.lend_share for beat in decode),
        prefill=_prefill_profile(beats),
        decode=_decode_profile(beats),
        kv=_kv_size(beats),
    )


def _prefill_profile(beats: list[WorkerBeat]) -> QuadraticPrefill | None:
    """The mean of those who have one: the workers of a datacenter are of one kind."""
    known = [
        beat.profile
        for beat in beats
        if beat.profile.prefill_s_per_token > 0 or beat.profile.prefill_fixed_s > 0
    ]
    if not known:
        return None
    return QuadraticPrefill(
        fixed_s=_mean(known, lambda each: each.prefill_fixed_s),
        s_per_token=_mean(known, lambda each: each.prefill_s_per_token),
        s_per_token_squared=_mean(known, lambda each: each.prefill_s_per_token_squared),
    )


def _decode_profile(beats: list[WorkerBeat]) -> DecodeProfile | None:
    able = [beat for beat in beats if beat.profile.decode_step_s > 0]
    # What one that prefills says of its slots are those of prefill.
    known = [beat for beat in able if beat.role == "decode"] or able
    if not known:
        return None
    return DecodeProfile(
        slots=_mean(known, lambda beat: beat.slots),
        # As it would be if no time was lent.
        step_s=_mean(known, lambda beat: beat.profile.decode_step_s * (1 - beat.lend_share)),
    )


def _kv_size(beats: list[WorkerBeat]) -> KvSize | None:
    known = [
        beat.profile
        for beat in beats
        if beat.profile.kv_bytes_per_token or beat.profile.kv_state_bytes
    ]
    if not known:
        return None
    return KvSize(
        state_bytes=_mean(known, lambda each: each.kv_state_bytes),
        bytes_per_token=_mean(known, lambda each: each.kv_bytes_per_token),
    )


def _mean(items: list[_T], number: Callable[[_T], float]) -> float:
    return fmean(number(item) for item in items)
