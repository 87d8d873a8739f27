"""What makes a worker unable to take a request, whatever the policy prefers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from controlplane.domain.cluster import ClusterView, WorkerView
from controlplane.domain.decision import RejectedBy, RequestFeatures
from controlplane.domain.fingerprint import fingerprint_difference
from controlplane.domain.modes import is_wary
from controlplane.domain.sites import Kind, Site, Standing, standing_of


@dataclass(frozen=True, slots=True)
class Rejection:
    """Which rule a worker failed, and the numbers."""

    by: RejectedBy
    detail: str


#: In words, what keeps a worker from any request.
_STANDINGS: Final[dict[Standing, str]] = {
    "ejected": "it failed too many requests and is out for a while",
    "suspect": "it failed a request a moment ago, or is silent",
    "draining": "it takes no new work",
}


def cannot_serve(request: RequestFeatures, worker: WorkerView) -> Rejection | None:
    """The first rule, in the order of the list, that keeps a worker of either role out."""
    rejection = may_not_be_in(request, worker.datacenter)
    if rejection is not None:
        return rejection
    if worker.worker_id in request.excluded:
        return Rejection("failed_before", "it has failed this request")
    standing = standing_of(worker)
    if standing is not None and standing != "full":
        return Rejection(standing, _STANDINGS[standing])
    rejection = is_of_another_kind(request, worker)
    if rejection is None and standing == "full":
        detail = f"it has {worker.pending_requests} of {worker.requests_max} requests"
        return Rejection("full", detail)
    return rejection


def may_not_be_in(request: RequestFeatures, datacenter: str) -> Rejection | None:
    """Data residency: prompt and KV are kept in the datacenters that the request allows."""
    allowed = request.allowed_datacenters
    if allowed is None or datacenter in allowed:
        return None
    return Rejection(
        "residency", f"its data may be in {', '.join(allowed) or 'no datacenter'} only"
    )


def is_of_another_kind(request: RequestFeatures, worker: WorkerView | Kind) -> Rejection | None:
    """What a request asks of a worker that its whole pool has, or has not."""
    if worker.model != request.model:
        return Rejection("model", f"it serves {worker.model}")
    context_tokens = request.input_tokens + request.output_tokens_max
    if context_tokens > worker.context_tokens_max:
        return Rejection("context", f"{context_tokens} tokens exceed {worker.context_tokens_max}")
    if request.resumed_tokens and worker.role == "decode" and not worker.can_resume:
        return Rejection("cannot_resume", "its version cannot go on with another worker's output")
    return None


def is_out_of_reach(worker: WorkerView | Site, view: ClusterView) -> Rejection | None:
    """What a degraded router does not dare: see `domain/modes.py`."""
    if view.mode == "shed":
        return Rejection("degraded", "nobody answers this router")
    if view.mode == "local_only" and worker.datacenter != view.home_datacenter:
        return Rejection(
            "degraded",
            f"the store and most workers are silent: only {view.home_datacenter} is used",
        )
    return None


def cannot_hand_over(
    prefill: WorkerView, decode: WorkerView, view: ClusterView
) -> Rejection | None:
    """What keeps KV of one worker from reaching another."""
    if prefill.fingerprint != decode.fingerprint:
        differs = fingerprint_difference(prefill.fingerprint, decode.fingerprint)
        return Rejection("fingerprint", f"its KV does not fit {decode.worker_id}: {differs}")
    is_local = prefill.datacenter == decode.datacenter
    if not is_local and view.link(prefill.datacenter, decode.datacenter) is None:
        return Rejection("no_link", f"no link {prefill.datacenter}>{decode.datacenter}")
    return None


def unwise_offloads(
    able: Sequence[WorkerView], decode: WorkerView, view: ClusterView
) -> dict[str, Rejection]:
    """
    Datacenters that prefill should not leave for, as long as there is another way.

    A link that is held down is not used; below the top of the degraded ladder no offload is
    speculative, and without the store none goes over a link that was not measured a moment ago
    (`domain/modes.py`). Where no prefill worker would be left, nothing is kept out.

    Args:
        able: Prefill workers that could hand over to `decode`.
        decode: The chosen decode worker.
        view: For mode and links.
    """
    if view.mode == "normal" and not any(link.is_down for link in view.links):
        return {}
    home = decode.datacenter
    sites = dict.fromkeys(worker.datacenter for worker in able)
    has_room = any(
        worker.datacenter == home and worker.pending_requests < worker.slots for worker in able
    )
    unwise: dict[str, Rejection] = {}
    for site in sites:
        link = view.link(site, home)
        if site == home or link is None:
            continue
        if link.is_down:
            unwise[site] = Rejection("link_down", f"transfers over {link.link_id} have failed")
        elif is_wary(view.mode) and has_room:
            unwise[site] = Rejection(
                "degraded", f"{view.mode}: {home} has a free prefill slot, so nothing leaves it"
            )
        elif view.mode == "store_down" and home in sites and not link.is_measured:
            unwise[site] = Rejection(
                "degraded", f"{view.mode}: {link.link_id} has not been measured lately"
            )
    return unwise if len(unwise) < len(sites) else {}


def cannot_be_fed(
    decode: WorkerView, prefills: Iterable[tuple[WorkerView, int]], view: ClusterView
) -> Rejection | None:
    """
    What keeps a decode worker from getting KV: none of the prefill workers can hand over to it.

    Args:
        decode: A decode worker that could take the request.
        prefills: One prefill worker of each kind that could, and how many there are of it; when
            there are none, that is not its fault.
        view: For the links.
    """
    reasons: Counter[str] = Counter()
    for prefill, count in prefills:
        rejection = cannot_hand_over(prefill, decode, view)
        if rejection is None:
            return None
        reasons[rejection.by] += count
    if not reasons:
        return None
    return Rejection("placement", f"no prefill worker can hand over to it ({counted(reasons)})")


def counted(reasons: Mapping[str, int]) -> str:
    """Counts by reason, for people: `2 draining, 1 full`."""
    return ", ".join(f"{count} {by}" for by, count in sorted(reasons.items()))
