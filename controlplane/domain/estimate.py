"""Prediction of what a placement costs: the arithmetic all policies share."""

from __future__ import annotations

from dataclasses import dataclass

from controlplane.domain.cluster import ClusterView, LinkView, WorkerView, link_id
from controlplane.domain.decision import Prediction, RequestFeatures

_BITS = 8
_GIGABYTE = 1e9


@dataclass(frozen=True, slots=True)
class CacheCopy:
    """A cached prefix that a prefill worker fetches from another one before it computes the rest."""

    #: Who holds it.
    source: WorkerView
    #: Leading tokens, a position that a prefill can resume from, > 0.
    tokens: int


def predict(
    request: RequestFeatures,
    prefill: WorkerView,
    decode: WorkerView,
    view: ClusterView,
    copy: CacheCopy | None = None,
) -> Prediction:
    """
    Predicted cost of prefilling at one worker and decoding at another.

    Two lengths, never one: compute is what the *computing* side lacks, bytes are what the
    *decoding* side lacks, plus the fixed state of a hybrid model. Inside a datacenter the network
    is fast by assumption and costs nothing. What the link has promised already moves while the
    request waits for its turn, and so does a cached prefix that is copied.

    Args:
        request: The prompt's lengths and hits.
        prefill: A prefill worker.
        decode: A decode worker of the same fingerprint.
        view: For the links.
        copy: What the prefill worker copies first; None when it uses its own cache.

    Raises:
        ValueError: They are in different datacenters and there is no link, or none for the copy.

    Source:
        PrfaaS (arXiv 2604.15039) section 3.4.1 for the pipelining of compute and transfer;
        queue, state tail, round trip and copies are ours (docs/policies.md, "The prediction").
    """
    prefill_tokens = request.prefill_tokens
    uncached_tokens = request.uncached_tokens(prefill.worker_id)
    queue_s = queue_time_s(prefill)
    copy_bytes, copy_s, egress_cost = 0, 0.0, 0.0
    if copy is not None:
        copy_bytes, copy_s, egress_cost = _copied(request, prefill, view, copy)
        uncached_tokens = max(0, min(uncached_tokens, prefill_tokens - copy.tokens))
        queue_s = max(queue_s, copy_s)
    prefill_s = prefill_time_s(prefill, uncached_tokens, prefill_tokens - uncached_tokens)
    attention_bytes = request.lacking_tokens(decode.worker_id) * prefill.kv_bytes_per_token
    transfer_bytes = attention_bytes + prefill.kv_state_bytes
    if prefill.datacenter == decode.datacenter:
        transfer_s = state_tail_s = rtt_s = 0.0
    else:
        link = _link(view, prefill.datacenter, decode.datacenter)
        rate_bps = link.rate_bps
        # As `transfer_time_s` has it; the rate is found once for both parts.
        promised_s = max(0.0, link.reserved_bytes * _BITS / rate_bps - queue_s)
        transfer_s = promised_s + attention_bytes * _BITS / rate_bps
        state_tail_s = prefill.kv_state_bytes * _BITS / rate_bps
        rtt_s = link.rtt_s
        egress_cost += transfer_bytes / _GIGABYTE * link.egress_price_per_gb
    return Prediction(
        uncached_tokens=uncached_tokens,
        transfer_bytes=transfer_bytes,
        queue_s=queue_s,
        prefill_s=prefill_s,
        transfer_s=transfer_s,
        state_tail_s=state_tail_s,
        rtt_s=rtt_s,
        ttft_s=queue_s + max(prefill_s, transfer_s) + state_tail_s + rtt_s,
        copy_bytes=copy_bytes,
        copy_s=copy_s,
        egress_cost=egress_cost,
    )


def queue_time_s(worker: WorkerView) -> float:
    """
    Seconds of prefill that a worker has before it: its own estimate, else its tokens at its rate.

    Returns:
        Seconds, >= 0.
    """
    return worker.pending_s or worker.pending_tokens * worker.prefill_s_per_token


def prefill_time_s(worker: WorkerView, uncached_tokens: int, cached_tokens: int) -> float:
    """
    Seconds a worker takes to prefill tokens behind a cached prefix.

    Each computed token attends to all before it, so a cached prefix of `c` saves only its own part:
    `fixed + a*u + b*((c + u)**2 - c**2)`.

    Args:
        worker: For its measured times.
        uncached_tokens: `u`, >= 0.
        cached_tokens: `c`, >= 0.
    """
    pairs = uncached_tokens * (uncached_tokens + 2 * cached_tokens)
    return (
        worker.prefill_fixed_s
        + uncached_tokens * worker.prefill_s_per_token
        + pairs * worker.prefill_s_per_token_squared
    )


def transfer_time_s(transfer_bytes: int, link: LinkView, *, after_s: float = 0.0) -> float:
    """
    Time to move bytes over a link behind those already promised, without overlap with prefill.

    Args:
        transfer_bytes: >= 0.
        link: `rate_bps` > 0.
        after_s: They cannot start earlier than that; what was promised moves meanwhile. >= 0.

    Returns:
        Seconds from `after_s` on, >= 0; the round trip is not included.
    """
    promised_s = max(0.0, link.reserved_bytes * _BITS / link.rate_bps - after_s)
    return promised_s + transfer_bytes * _BITS / link.rate_bps


def idle_ttft_s(prediction: Prediction, prefill: WorkerView, link: LinkView | None) -> float:
    """
    What a predicted TTFT would be if nobody else had anything to do.

    Args:
        prediction: Of prefilling at `prefill`.
        prefill: For the size of its state.
        link: Between prefill and decode; None inside a datacenter.

    Returns:
        Seconds, at most `prediction.ttft_s` but for rounding. The rest is waiting: for the worker
        and for what was promised on the link.
    """
    it = prediction
    alone_s = 0.0
    if link is not None:
        alone_s = (it.transfer_bytes - prefill.kv_state_bytes) * _BITS / link.rate_bps
    return it.copy_s + max(it.prefill_s, alone_s) + it.state_tail_s + it.rtt_s


def egress_price(egress_bytes: int, link: LinkView) -> float:
    """What bytes over a link cost now, in the fleet's currency."""
    return egress_bytes / _GIGABYTE * link.egress_price_per_gb


def _copied(
    request: RequestFeatures, prefill: WorkerView, view: ClusterView, copy: CacheCopy
) -> tuple[int, float, float]:
    """Bytes that the target lacks of a copy, the seconds they take, and what they cost."""
    held_tokens = request.hit(prefill.worker_id).attention_tokens
    copy_bytes = (
        max(0, copy.tokens - held_tokens) * prefill.kv_bytes_per_token + prefill.kv_state_bytes
    )
    if copy.source.datacenter == prefill.datacenter:
        return copy_bytes, 0.0, 0.0
    link = _link(view, copy.source.datacenter, prefill.datacenter)
    return (
        copy_bytes,
        transfer_time_s(copy_bytes, link) + link.rtt_s,
        egress_price(copy_bytes, link),
    )


def _link(view: ClusterView, from_datacenter: str, to_datacenter: str) -> LinkView:
    link = view.link(from_datacenter, to_datacenter)
    if link is None:
        raise ValueError(f"no link {link_id(from_datacenter, to_datacenter)}")
    return link
