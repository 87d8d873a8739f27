"""The paper's rule: long uncached prompts are prefilled in another datacenter."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Annotated, ClassVar

from pydantic import Field

from controlplane.domain.cluster import ClusterView, WorkerView
from controlplane.domain.decision import Decision, RequestFeatures
from policies.api import Parameters
from policies.pipeline import Choice, Option, place


class PrfaasParameters(Parameters):
    """Parameters of `prfaas`."""

    #: Uncached tokens above which a prompt is prefilled elsewhere.
    threshold_tokens: Annotated[int, Field(ge=0, le=1 << 24)] = 512


class PrfaasPolicy:
    """
    Prefill locally up to a threshold of uncached tokens, elsewhere above it.

    The cache of the decode side's datacenter decides the length, as in the paper's case of scarce
    bandwidth: a prompt whose prefix is cached near the user has little left to compute and stays.
    Within the chosen side the worker with the least predicted TTFT takes it. Each side stands in
    for the other when it has no worker that can take the request.

    Source:
        PrfaaS (arXiv 2604.15039) section 3.3 and 3.4.3, first case.
    """

    name: ClassVar[str] = "prfaas"
    parameters_model: ClassVar[type[Parameters]] = PrfaasParameters

    def __init__(self, parameters: PrfaasParameters) -> None:
        self._threshold_tokens = parameters.threshold_tokens

    def decide(self, request: RequestFeatures, view: ClusterView, rng: Random) -> Decision:
        """Where to prefill and where to decode, and why. Pure."""

        def rule(options: Sequence[Option], decode: WorkerView) -> Choice:
            return self._choose(request, options, decode)

        return place(request, view, rng, rule)

    def _choose(
        self,
        request: RequestFeatures,
        options: Sequence[Option],
        decode: WorkerView,
    ) -> Choice:
        home = decode.datacenter
        local = [option for option in options if option.worker.datacenter == home]
        remote = [option for option in options if option.worker.datacenter != home]
        uncached_tokens = min(
            (option.prediction.uncached_tokens for option in local),
            default=request.prefill_tokens,
        )
        threshold = self._threshold_tokens
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
