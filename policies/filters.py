"""What makes a worker unable to take a request, whatever the policy prefers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from controlplane.domain.cluster import ClusterView, WorkerView
from controlplane.domain.decision import RejectedBy, RequestFeatures
from controlplane.domain.modes import is_wary


@dataclass(frozen=True, slots=True)
class Rejection:
    """Which rule a worker failed, and the numbers."""

    by: RejectedBy
    detail: str


def cannot_serve(request: RequestFeatures, worker: WorkerView) -> Rejection | None:  # noqa: PLR0911 - one return per rule
    """The first rule, in the order of the list, that keeps a worker of either role out."""
    if worker.worker_id in request.excluded:
        return Rejection("failed_before", "it has failed this request")
    if worker.is_ejected and not worker.is_needed:
        return Rejection("ejected", "it failed too many requests and is out for a while")
    if worker.is_suspect and not worker.is_needed:
        return Rejection("suspect", "it failed a request a moment ago, or is silent")
    if worker.is_draining:
        return Rejection("draining", "it takes no new work")
    if worker.model != request.model:
        return Rejection("model", f"it serves {worker.model}")
    context_tokens = request.input_tokens + request.output_tokens_max
    if context_tokens > worker.context_tokens_max:
        return Rejection("context", f"{context_tokens} tokens exceed {worker.context_tokens_max}")
    if request.resumed_tokens and worker.role == "decode" and not worker.can_resume:
        return Rejection("cannot_resume", "its version cannot go on with another worker's output")
    if worker.pending_requests >= worker.requests_max:
        return Rejection(
            "full", f"it has {worker.pending_requests} of {worker.requests_max} requests"
        )
    return None


def is_out_of_reach(worker: WorkerView, view: ClusterView) -> Rejection | None:
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
        return Rejection("fingerprint", f"its KV does not fit {decode.worker_id}")
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
    decode: WorkerView, prefills: Iterable[WorkerView], view: ClusterView
) -> Rejection | None:
    """
    What keeps a decode worker from getting KV: none of the prefill workers can hand over to it.

    Args:
        decode: A decode worker that could take the request.
        prefills: Prefill workers that could; when there are none, that is not its fault.
        view: For the links.
    """
    reasons: Counter[str] = Counter()
    for prefill in prefills:
        rejection = cannot_hand_over(prefill, decode, view)
        if rejection is None:
            return None
        reasons[rejection.by] += 1
    if not reasons:
        return None
    return Rejection("placement", f"no prefill worker can hand over to it ({counted(reasons)})")


def counted(reasons: Counter[str]) -> str:
    """Counts by reason, for people: `2 draining, 1 full`."""
    return ", ".join(f"{count} {by}" for by, count in sorted(reasons.items()))
