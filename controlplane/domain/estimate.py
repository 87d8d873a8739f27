"""Prediction of what a placement costs: the arithmetic all policies share."""

from __future__ import annotations

from controlplane.domain.cluster import ClusterView, LinkView, WorkerView, link_id
from controlplane.domain.decision import Prediction, RequestFeatures

_BITS = 8


def predict(
    request: RequestFeatures, prefill: WorkerView, decode: WorkerView, view: ClusterView
) -> Prediction:
    """
    Predicted cost of prefilling at one worker and decoding at another.

    Two lengths, never one: compute is what the *computing* side lacks, bytes are what the
    *decoding* side lacks, plus the fixed state of a hybrid model. Inside a datacenter the network
    is fast by assumption and costs nothing.

    Args:
        request: The prompt's lengths and hits.
        prefill: A prefill worker.
        decode: A decode worker of the same fingerprint.
        view: For the link between the two.

    Raises:
        ValueError: They are in different datacenters and there is no link.

    Source:
        PrfaaS (arXiv 2604.15039) section 3.4.1 for the pipelining of compute and transfer;
        queue, state tail and round trip are ours (docs/architecture.md, "Prediction").
    """
    uncached_tokens = request.uncached_tokens(prefill.worker_id)
    attention_bytes = request.lacking_tokens(decode.worker_id) * prefill.kv_bytes_per_token
    queue_s = prefill.pending_tokens * prefill.prefill_s_per_token
    prefill_s = prefill.prefill_fixed_s + uncached_tokens * prefill.prefill_s_per_token
    if prefill.datacenter == decode.datacenter:
        transfer_s = state_tail_s = rtt_s = 0.0
    else:
        link = view.link(prefill.datacenter, decode.datacenter)
        if link is None:
            raise ValueError(f"no link {link_id(prefill.datacenter, decode.datacenter)}")
        transfer_s = transfer_time_s(attention_bytes, link)
        state_tail_s = prefill.kv_state_bytes * _BITS / link.rate_bps
        rtt_s = link.rtt_s
    return Prediction(
        uncached_tokens=uncached_tokens,
        transfer_bytes=attention_bytes + prefill.kv_state_bytes,
        queue_s=queue_s,
        prefill_s=prefill_s,
        transfer_s=transfer_s,
        state_tail_s=state_tail_s,
        rtt_s=rtt_s,
        ttft_s=queue_s + max(prefill_s, transfer_s) + state_tail_s + rtt_s,
    )


def transfer_time_s(transfer_bytes: int, link: LinkView) -> float:
    """
    Time to move bytes over a link behind those already promised, without overlap with prefill.

    Args:
        transfer_bytes: >= 0.
        link: `rate_bps` > 0.

    Returns:
        Seconds, >= 0; the round trip is not included.
    """
    return (transfer_bytes + link.reserved_bytes) * _BITS / link.rate_bps
