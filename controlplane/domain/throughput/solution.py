"""What the throughput model finds: thresholds, roles, throughput and what limits it. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from controlplane.domain.plan import (
    NEVER_TOKENS,
    Bottleneck,
    Plan,
    PlanInputs,
    ShadowPrices,
    SiteRoles,
)
from controlplane.domain.throughput.equations import Form
from controlplane.domain.throughput.fleet import BITS_PER_BYTE

#: A resource that is used so much, or more, at saturation limits the throughput.
BINDING = 0.995
#: Below this part of the throughput nothing is a bottleneck.
_IDLE_LOAD = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Takes:
    """Lengths above one and up to another, and which datacenters prefill them."""

    #: Tokens; `-inf` for the lowest.
    above: float
    up_to: float
    #: By datacenter: part of these requests; parts sum to 1.
    parts: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRoles:
    """What a group's workers do."""

    site: str
    hardware: str
    prefill_workers: int
    decode_workers: int
    #: Time that decode workers lend to prefill, in workers.
    lent_workers: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """The answer for one fleet and one traffic. All rates are those at saturation."""

    form: Form
    #: Requests per second that fit, with these thresholds and roles: Eq. 6 over all resources.
    throughput_per_s: float
    #: What no thresholds could exceed with these roles; the difference is what bands give away.
    bound_per_s: float
    #: By link id, uncached tokens above which a prompt is prefilled behind it; `inf`: never. Of two
    #: thresholds that a prompt is above the higher one counts; equal ones share by their queues.
    threshold_tokens: Mapping[str, float]
    #: By datacenter with workers that can do both: those workers.
    roles: Mapping[str, SiteRoles]
    groups: tuple[GroupRoles, ...]
    #: By serving datacenter.
    bands: Mapping[str, tuple[Takes, ...]]
    #: By serving datacenter: part of its requests that is prefilled elsewhere.
    offloaded_share: Mapping[str, float]
    #: By `prefill DATACENTER/HARDWARE`, `decode DATACENTER` and `link ID`, 0 to 1.
    utilisation: Mapping[str, float]
    #: By link id, bits per second.
    egress_bps: Mapping[str, float]
    #: By link id, bits per second that it could carry.
    capacity_bps: Mapping[str, float]
    prices: ShadowPrices = field(default_factory=ShadowPrices)
    #: False where the allowed work ended first: roles and bands are the best found by then.
    is_complete: bool = True

    @property
    def gap(self) -> float:
        """How much more than this the bound allows, as a part of the bound, 0 to 1."""
        return max(0.0, 1 - self.throughput_per_s / self.bound_per_s)

    @property
    def binding(self) -> tuple[str, ...]:
        """What is used up at saturation, by the names of `utilisation`."""
        return tuple(name for name, used in self.utilisation.items() if used >= BINDING)

    @property
    def bottleneck(self) -> Bottleneck:
        """The phase that limits: a link if one binds, for prefill near it waits; else decode first."""
        kinds = {name.partition(" ")[0] for name in self.binding}
        for kind in ("link", "decode", "prefill"):
            if kind in kinds:
                return kind
        return "none"

    def load(self, arrival_per_s: float) -> float:
        """An arrival rate as a part of the throughput; `inf` without any."""
        return arrival_per_s / self.throughput_per_s if self.throughput_per_s else math.inf

    def plan(
        self,
        *,
        version: int,
        author: str,
        inputs: PlanInputs,
        reason: str = "",
    ) -> Plan:
        """
        The plan that says this.

        Args:
            version: 1, 2, 3 ...
            author: Who solved it.
            inputs: What it was solved for.
            reason: Why it differs from the one before.
        """
        load = self.load(inputs.arrival_per_s)
        return Plan(
            version=version,
            author=author,
            threshold_tokens={
                link: min(tokens, NEVER_TOKENS) for link, tokens in self.threshold_tokens.items()
            },
            roles=dict(self.roles),
            prices=self.prices,
            throughput_per_s=self.throughput_per_s,
            load=load,
            bottleneck="none" if load < _IDLE_LOAD else self.bottleneck,
            inputs=inputs,
            reason=reason,
            is_complete=self.is_complete,
            gap=self.gap,
        )

    def egress_at(self, rate_per_s: float) -> dict[str, float]:
        """By link id, bits per second at another rate than saturation."""
        part = rate_per_s / self.throughput_per_s if self.throughput_per_s else 0.0
        return {link: bps * part for link, bps in self.egress_bps.items()}


def bits(amount_bytes: float) -> float:
    """Bytes in bits."""
    return amount_bytes * BITS_PER_BYTE
