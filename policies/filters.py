"""What makes a worker unable to take a request, whatever the policy prefers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from controlplane.domain.cluster import ClusterView, WorkerView
from controlplane.domain.decision import RejectedBy, RequestFeatures


@dataclass(frozen=True, slots=True)
class Rejection:
    """Which rule a worker failed, and the numbers."""

    by: RejectedBy
    detail: str


def cannot_serve(request: RequestFeatures, worker: WorkerView) -> Rejection | None:  # noqa: PLR0911 - one return per rule
    """The first rule, in the order of the list, that keeps a worker of either role out."""
    if worker.worker_id in request.excluded:
        return Rejection("failed_before", "it has failed this request")
    if worker.is_suspect:
        return Rejection("suspect", "it failed another request a moment ago")
    if worker.is_draining:
        return Rejection("draining", "it takes no new work")
    if worker.model != request.model:
        return Rejection("model", f"it serves {worker.model}")
    context_tokens = request.input_tokens + request.output_tokens_max
    if context_tokens > worker.context_tokens_max:
        return Rejection("context", f"{context_tokens} tokens exceed {worker.context_tokens_max}")
    if worker.pending_requests >= worker.requests_max:
        return Rejection(
            "full", f"it has {worker.pending_requests} of {worker.requests_max} requests"
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
