"""The baseline that knows capacity but not length: each datacenter gets its share of all prompts."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Annotated, ClassVar, Final

from pydantic import Field

from controlplane.domain.cluster import ClusterView, WorkerView
from controlplane.domain.decision import Decision, RequestFeatures
from controlplane.domain.estimate import prefill_time_s
from policies.api import Parameters
from policies.pipeline import Choice, Option, place, sides

#: Speeds of datacenters are compared on a prompt of this length, whatever the request's own.
_TYPICAL_TOKENS: Final = 8192

#: Its multiples, without their whole part, fill the range from 0 to 1 as evenly as can be.
_GOLDEN: Final = 0.618_033_988_749_894_9


class BalancedSplitParameters(Parameters):
    """Parameters of `balanced_split`."""

    #: Part of all requests that is prefilled elsewhere; None follows from the capacities.
    offloaded_share: Annotated[float, Field(ge=0, le=1)] | None = None


class BalancedSplitPolicy:
    """
    Share prompts between datacenters in proportion to their prefill capacity, blind to length.

    Capacity is the number of prefill workers, from the plan where it has them, times their speed. The
    router's running number of the request decides whose turn it is, so that shares are kept exactly.
    """

    name: ClassVar[str] = "balanced_split"
    parameters_model: ClassVar[type[Parameters]] = BalancedSplitParameters

    def __init__(self, parameters: BalancedSplitParameters) -> None:
        self._offloaded_share = parameters.offloaded_share

    def decide(self, request: RequestFeatures, view: ClusterView, rng: Random) -> Decision:
        """Where to prefill and where to decode, and why. Pure."""

        def rule(options: Sequence[Option], decode: WorkerView) -> Choice:
            shares = self._shares(options, decode, view)
            chosen = _whose_turn(shares, request.sequence)
            share = shares[chosen]
            return Choice(
                preferred=[options[chosen]],
                reason="balanced_split",
                explanation=(
                    f"{options[chosen].worker.datacenter} has {share:.1%} of all prompts, "
                    "and it is its turn"
                ),
            )

        return place(request, view, rng, rule)

    def _shares(
        self, options: Sequence[Option], decode: WorkerView, view: ClusterView
    ) -> list[float]:
        """Part of all requests for each option; they add up to 1."""
        weights = [_capacity(option, view) for option in options]
        local, remote = sides(options, decode)
        if self._offloaded_share is None or not local or not remote:
            total = sum(weights)
            return [weight / total for weight in weights]
        home = decode.datacenter
        side_of = {True: 1 - self._offloaded_share, False: self._offloaded_share}
        totals = {
            is_home: sum(
                weight
                for option, weight in zip(options, weights, strict=True)
                if (option.worker.datacenter == home) is is_home
            )
            for is_home in (True, False)
        }
        return [
            side_of[option.worker.datacenter == home]
            * weight
            / totals[option.worker.datacenter == home]
            for option, weight in zip(options, weights, strict=True)
        ]


def _capacity(option: Option, view: ClusterView) -> float:
    """Typical prompts a second that a datacenter can prefill, > 0."""
    inputs = view.plan.inputs if view.plan is not None else None
    planned = inputs.workers.get(f"{option.worker.datacenter}/prefill") if inputs else None
    typical_s = prefill_time_s(option.worker, _TYPICAL_TOKENS, 0)
    return (planned or option.workers) / (typical_s or 1.0)


def _whose_turn(shares: Sequence[float], sequence: int) -> int:
    """The option whose part of the range from 0 to 1 the request falls into."""
    # Modulo first: the product of a large number has no fraction left.
    drawn = (sequence % (1 << 20)) * _GOLDEN % 1.0
    for number, share in enumerate(shares):
        if drawn < share:
            return number
        drawn -= share
    return max(range(len(shares)), key=lambda number: shares[number])
