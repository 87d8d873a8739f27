"""Where else a request could be decoded, when it would have to wait beside the router."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from controlplane.domain.cluster import ClusterView, WorkerView
from controlplane.domain.decision import Decision, RequestFeatures
from controlplane.domain.sites import sites_of

#: Other datacenters that are looked at: each costs as much as the first one.
_SITES_MAX: Final = 3


def decode_wait_s(decode: WorkerView, request: RequestFeatures, view: ClusterView) -> float:
    """
    How long a request waits for a slot of a decode worker, roughly.

    Requests that run end one after the other, evenly over the time that an output takes.

    Returns:
        Seconds, >= 0; 0 while a slot is free.
    """
    before = decode.pending_requests - decode.slots + 1
    if before <= 0:
        return 0.0
    inputs = None if view.plan is None else view.plan.inputs
    output_tokens: float = request.output_tokens_max
    if inputs is not None and inputs.output_tokens_mean > 0:
        output_tokens = min(output_tokens, inputs.output_tokens_mean)
    return before * output_tokens * decode.decode_step_s / decode.slots


def way_s(datacenter: str, view: ClusterView) -> float:
    """Round trip between the router and a datacenter, seconds; 0 at home, or when nobody knows."""
    home = view.home_datacenter
    if datacenter == home:
        return 0.0
    links = (view.link(datacenter, home), view.link(home, datacenter))
    return max((link.rtt_s for link in links if link is not None), default=0.0)


def other_sites(decision: Decision, view: ClusterView) -> Iterator[str]:
    """
    Datacenters with decode workers to look at as well, the nearest first.

    None while a slot is free beside the router, when decode has left already, or when the router hears
    too little to be choosy.
    """
    placement = decision.placement
    if placement is None or view.mode != "normal":
        return
    decode = view.worker(placement.decode_worker)
    if decode is None or decode.datacenter != view.home_datacenter:
        return
    if decode.pending_requests < decode.slots:
        return
    names = [
        site.datacenter
        for site in sites_of(view)
        if site.datacenter != decode.datacenter
        and any(pool.kind.role == "decode" and pool.by_load for pool in site.pools)
    ]
    yield from sorted(names, key=lambda name: (way_s(name, view), name))[:_SITES_MAX]


def seen_from(datacenter: str, view: ClusterView) -> ClusterView:
    """The same picture as a router in another datacenter would have it."""
    return ClusterView.of_sites(
        sites_of(view),
        view.links,
        epoch=view.epoch,
        age_s=view.age_s,
        home_datacenter=datacenter,
        mode=view.mode,
        prefix_trust=view.prefix_trust,
        plan=view.plan,
        link_places=view.link_places,
    )
