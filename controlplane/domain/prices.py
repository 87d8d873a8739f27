"""
What a placement takes from others, in seconds: shadow prices of the plan, weighed by the load. Pure.

The least time to the first token for each request is not the least for all: near saturation every
request goes where it is fastest, also those that would be nearly as fast elsewhere, and those that
gain most find no room. A plan's shadow prices say what a second of prefill time, a decode slot or a
byte of a link is worth in requests; the difference of two placements in this currency is what the
dearer one takes from requests to come. Far below saturation nothing is taken from anybody, so the
prices count with a weight that grows with the plan's load.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from controlplane.domain.plan import Plan, ShadowPrices

#: The weight ends here: plans are solved for means, and queues are seen as they are.
_PRESSURE_MAX: Final = 20.0
#: How late the weight rises: at 4 it is 0.1 at half load and 2 at 80 %.
_PRESSURE_POWER: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Uses:
    """What one placement takes of each scarce resource."""

    prefill_datacenter: str
    prefill_s: float
    decode_datacenter: str
    #: One slot for as long as the output is expected to take.
    decode_slot_s: float = 0.0
    #: By link id.
    link_bytes: Mapping[str, int] = field(default_factory=dict)


def pressure(load: float) -> float:
    """
    How much longer others wait for a second of work, as a multiple of it: `load**4 / (1 - load)`.

    In a single queue a second of work delays all that come before it is empty again, which are
    `load / (1 - load)` seconds of work. The power keeps it near 0 while there is room elsewhere.

    Args:
        load: Arrivals as a part of the throughput, >= 0.

    Returns:
        0 to `_PRESSURE_MAX`, growing with the load.
    """
    if load >= 1:
        return _PRESSURE_MAX
    return min(_PRESSURE_MAX, max(0.0, load) ** _PRESSURE_POWER / (1 - load))


def seconds_per_request(plan: Plan) -> float:
    """
    What one request that finds no room costs, in seconds of waiting.

    It is the prefill time that one request takes at saturation, in the mean over all workers, times
    the pressure. 0 without throughput, when there is nothing to be sparing with.
    """
    if plan.throughput_per_s <= 0:
        return 0.0
    counted = {} if plan.inputs is None else plan.inputs.workers
    workers = sum(count for kind, count in counted.items() if kind.endswith("/prefill"))
    return max(1, workers) / plan.throughput_per_s * pressure(plan.load)


def shares_of_requests(prices: ShadowPrices, uses: Uses) -> dict[str, float]:
    """
    What a placement uses at the plan's prices, in requests, by the name of what is used.

    Only differences between placements of the same request mean something. What has no price, or is
    not used, is left out.
    """
    shares = {
        f"prefill time in {uses.prefill_datacenter}": uses.prefill_s
        * prices.prefill_per_s.get(uses.prefill_datacenter, 0.0),
        f"decode slots in {uses.decode_datacenter}": uses.decode_slot_s
        * prices.decode_slot_per_s.get(uses.decode_datacenter, 0.0),
    }
    for name, link_bytes in uses.link_bytes.items():
        shares[f"link {name}"] = link_bytes * prices.link_per_byte.get(name, 0.0)
    return {name: share for name, share in shares.items() if share > 0}
