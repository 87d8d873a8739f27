"""The baseline of one number: a threshold that nobody solves again."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Annotated, ClassVar

from pydantic import Field

from controlplane.domain.cluster import ClusterView, WorkerView
from controlplane.domain.decision import Decision, RequestFeatures
from policies.api import Parameters
from policies.pipeline import Choice, Option, place, sides


class StaticThresholdParameters(Parameters):
    """Parameters of `static_threshold`."""

    #: Uncached tokens above which a prompt is prefilled elsewhere.
    threshold_tokens: Annotated[int, Field(ge=0, le=1 << 24)] = 19_400


class StaticThresholdPolicy:
    """
    Prefill locally up to a fixed threshold of uncached tokens, elsewhere above it.

    It knows no plan, no scarce link, no queue: what `prfaas` adds to it is what the two differ by.
    The default is the optimum of the paper's case study, and fits nothing else.

    Source:
        PrfaaS (arXiv 2604.15039) section 3.3; 19.4K tokens in section 4.2.
    """

    name: ClassVar[str] = "static_threshold"
    parameters_model: ClassVar[type[Parameters]] = StaticThresholdParameters

    def __init__(self, parameters: StaticThresholdParameters) -> None:
        self._threshold_tokens = parameters.threshold_tokens

    def decide(self, request: RequestFeatures, view: ClusterView, rng: Random) -> Decision:
        """Where to prefill and where to decode, and why. Pure."""

        def rule(options: Sequence[Option], decode: WorkerView) -> Choice:
            return self._choose(request, options, decode)

        return place(request, view, rng, rule)

    def _choose(
        self, request: RequestFeatures, options: Sequence[Option], decode: WorkerView
    ) -> Choice:
        local, remote = sides(options, decode)
        home, threshold = decode.datacenter, self._threshold_tokens
        fewest = [option.fewest_uncached_tokens for option in local]
        uncached_tokens = min(fewest, default=request.prefill_tokens)
        is_long = uncached_tokens > threshold
        said = (
            f"{uncached_tokens} of {request.prefill_tokens} prefill tokens are not cached in "
            f"{home}, {'above' if is_long else 'within'} the threshold of {threshold}"
        )
        if is_long and remote:
            return Choice(
                preferred=remote, reason="uncached_over_threshold", explanation=f"{said}: offloaded"
            )
        if is_long:
            return Choice(
                preferred=local,
                reason="no_remote_prefill",
                explanation=f"{said}, but no prefill worker elsewhere can take it: kept in {home}",
            )
        if local:
            return Choice(
                preferred=local,
                reason="uncached_within_threshold",
                explanation=f"{said}: kept in {home}",
            )
        return Choice(
            preferred=remote,
            reason="no_local_prefill",
            explanation=f"{said}, but no prefill worker in {home} can take it: offloaded",
        )
