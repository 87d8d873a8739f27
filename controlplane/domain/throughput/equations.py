"""
Equations 1 to 8 of PrfaaS, each a function. Pure.

Units: lengths in tokens, KV in bytes, times in seconds, links in bits per second, rates in requests
per second. Stages are added up by mean lengths as in the paper, `T(E[L | L > t])`, or exactly,
`E[T(L) | L > t]`: a prompt of twice the length takes more than twice as long, so the first form is
too good, by 1 to 4 % in the paper's case study.

Source:
    PrfaaS (arXiv 2604.15039) sections 2.1, 2.3 and 3.4; the exact form is ours.
"""

from __future__ import annotations

import math
from typing import Literal

from controlplane.domain.throughput.fleet import BITS_PER_BYTE
from controlplane.domain.throughput.lengths import (
    LengthDistribution,
    Moments,
)
from controlplane.domain.throughput.profile import DecodeProfile, KvSize, PrefillProfile

#: `exact`: `E[T(L) | L > t]`. `mean_length`: the paper's `T(E[L | L > t])`.
Form = Literal["exact", "mean_length"]


def kv_throughput_bps(kv: KvSize, prefill: PrefillProfile, tokens: float) -> float:
    """
    Bits of KV that one instance makes a second: `Phi_kv(l) = S_kv(l) / T_prefill(l)`.

    Args:
        kv: `S_kv`, size of KV by length.
        prefill: `T_prefill` of the instance's hardware.
        tokens: `l`, > 0.

    Returns:
        Bits per second; `inf` if prefill takes no time.

    Source:
        PrfaaS Eq. 1.
    """
    return _rate(kv.segment_bytes(tokens) * BITS_PER_BYTE, prefill.prefill_s(tokens))


def egress_bps(instances: float, kv: KvSize, prefill: PrefillProfile, tokens: float) -> float:
    """
    Egress that a busy prefill cluster needs: `B_out = (N / P) * Phi_kv(L_avg)`.

    Args:
        instances: `N / P`: GPUs by GPUs of an instance, >= 0.
        kv: `S_kv`.
        prefill: `T_prefill`.
        tokens: `L_avg`, mean uncached length of the requests that are really offloaded.

    Returns:
        Bits per second.

    Source:
        PrfaaS Eq. 2.
    """
    return instances * kv_throughput_bps(kv, prefill, tokens)


def prefill_s_in_range(
    prefill: PrefillProfile,
    lengths: LengthDistribution,
    above: float,
    up_to: float,
    form: Form = "exact",
) -> float:
    """
    Prefill time of requests of a range of lengths, per request of all lengths.

    `E[T(L) ; a < L <= b]`, or in the paper's form `P(a < L <= b) * T(E[L | a < L <= b])`.

    Args:
        prefill: `T_prefill` of the hardware that takes them.
        lengths: Distribution of `L`.
        above: `a`, tokens.
        up_to: `b`, tokens.
        form: Which of both.

    Returns:
        Seconds, >= 0; 0 when nothing is in the range.

    Source:
        PrfaaS section 3.4.1; `p * T(l_long)` and `(1 - p) * T(l_short)` of Eqs. 3, 4 and 6.
    """
    if form == "mean_length":
        share, tokens, _ = lengths.moments(above, up_to)
        return share * prefill.prefill_s(tokens / share) if share > 0 else 0.0
    return exact_prefill_s(prefill, lengths, above, up_to)


def exact_prefill_s(
    prefill: PrefillProfile, lengths: LengthDistribution, above: float, up_to: float
) -> float:
    """`E[T(L) ; a < L <= b]`, seconds: the polynomials of a profile over their own ranges."""
    pieces = prefill.pieces()
    total = 0.0
    for position, piece in enumerate(pieces):
        end = pieces[position + 1].from_tokens if position + 1 < len(pieces) else math.inf
        start = piece.from_tokens if position else -math.inf
        low, high = max(above, start), min(up_to, end)
        if high > low:
            total += dot((piece.c0, piece.c1, piece.c2), lengths.moments(low, high))
    return total


def kv_bytes_in_range(kv: KvSize, lengths: LengthDistribution, above: float, up_to: float) -> float:
    """
    KV of requests of a range of lengths, per request of all lengths: `E[S_kv(L) ; a < L <= b]`.

    The size is linear in the length, so both forms agree.

    Returns:
        Bytes, >= 0.

    Source:
        PrfaaS section 3.4.1; `p * S_kv(l_long)` of Eqs. 3 and 6.
    """
    share, tokens, _ = lengths.moments(above, up_to)
    return share * kv.state_bytes + tokens * kv.bytes_per_token


def offload_stage_per_s(
    instances: float,
    prefill: PrefillProfile,
    link_bps: float,
    kv: KvSize,
    lengths: LengthDistribution,
    threshold: float,
    form: Form = "exact",
) -> float:
    """
    Requests the remote prefill stage completes: `min(N / T(l_long), B_out / S_kv(l_long))`.

    Args:
        instances: `N_prfaas`, >= 0.
        prefill: `T_prefill` of the remote hardware.
        link_bps: `B_out`, bits per second.
        kv: `S_kv`.
        lengths: Distribution of `L`.
        threshold: `t`; longer requests go there.
        form: Mean length or exact expectation.

    Returns:
        `Theta_prfaas`, requests per second; `inf` when no request is longer.

    Source:
        PrfaaS Eq. 3.
    """
    share = lengths.moments(threshold, lengths.longest)[0]
    if share <= 0:
        return math.inf
    work_s = prefill_s_in_range(prefill, lengths, threshold, lengths.longest, form)
    sent = kv_bytes_in_range(kv, lengths, threshold, lengths.longest)
    return share * min(_rate(instances, work_s), _rate(link_bps, sent * BITS_PER_BYTE))


def local_prefill_stage_per_s(
    instances: float,
    prefill: PrefillProfile,
    lengths: LengthDistribution,
    threshold: float,
    form: Form = "exact",
) -> float:
    """
    Requests the local prefill stage completes: `N_p / T(l_short)`.

    Args:
        instances: `N_p`, >= 0; not whole when decode instances lend a part of their time.
        prefill: `T_prefill` of the local hardware.
        lengths: Distribution of `L`.
        threshold: `t`; requests up to it stay.
        form: Mean length or exact expectation.

    Returns:
        `Theta_pd-p`, requests per second; `inf` when every request is longer.

    Source:
        PrfaaS Eq. 4.
    """
    share = lengths.moments(-math.inf, threshold)[0]
    if share <= 0:
        return math.inf
    work_s = prefill_s_in_range(prefill, lengths, -math.inf, threshold, form)
    return share * _rate(instances, work_s)


def decode_stage_per_s(instances: float, decode: DecodeProfile, output_tokens: float) -> float:
    """
    Requests the decode stage completes: `N_d * BS_max / (T_decode * L_out)`.

    Args:
        instances: `N_d`, >= 0.
        decode: `BS_max` and `T_decode`.
        output_tokens: `L_out`, mean, > 0.

    Returns:
        `Theta_pd-d`, requests per second.

    Source:
        PrfaaS Eq. 5.
    """
    return instances * decode.requests_per_s(output_tokens)


def system_per_s(
    offload_per_s: float, local_per_s: float, decode_per_s: float, offloaded_share: float
) -> float:
    """
    Requests the system takes: `min(Theta_prfaas / p, Theta_pd-p / (1 - p), Theta_pd-d)`.

    Args:
        offload_per_s: `Theta_prfaas`.
        local_per_s: `Theta_pd-p`.
        decode_per_s: `Theta_pd-d`.
        offloaded_share: `p = P(L > t)`, 0 to 1. A stage that gets nothing limits nothing.

    Returns:
        `Lambda_max`, requests per second.

    Source:
        PrfaaS Eq. 6.
    """
    remote = offload_per_s / offloaded_share if offloaded_share > 0 else math.inf
    local = local_per_s / (1 - offloaded_share) if offloaded_share < 1 else math.inf
    return min(remote, local, decode_per_s)


def threshold_imbalance(offload_per_s: float, local_per_s: float, offloaded_share: float) -> float:
    """
    How far a threshold is from the best one: `(Theta_prfaas / p) / (Theta_pd-p / (1-p)) - 1`.

    Returns:
        0 at the best threshold; above it when the remote stage could take more.

    Source:
        PrfaaS Eq. 7.
    """
    return offload_per_s * (1 - offloaded_share) / (local_per_s * offloaded_share) - 1


def role_imbalance(offload_per_s: float, local_per_s: float, decode_per_s: float) -> float:
    """
    How far the roles are from the best ones: `(Theta_prfaas + Theta_pd-p) / Theta_pd-d - 1`.

    Returns:
        0 where producers equal the consumer, which whole instances rarely reach; below it when
        decode could take more.

    Source:
        PrfaaS Eq. 8.
    """
    return (offload_per_s + local_per_s) / decode_per_s - 1


def dot(a: Moments, b: Moments) -> float:
    """Coefficients times moments."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _rate(amount: float, per: float) -> float:
    """Amount by use of each; `inf` where each uses nothing."""
    return amount / per if per > 0 else math.inf
