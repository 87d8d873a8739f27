"""The baseline of KV-aware routers: where most of the prompt is cached, whatever the way."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Annotated, ClassVar

from pydantic import Field

from controlplane.domain.cluster import ClusterView, WorkerView
from controlplane.domain.decision import Decision, RequestFeatures
from policies.api import Parameters
from policies.loads import least_of, queue_of
from policies.pipeline import Choice, Option, place
from policies.search import Feasible


class PrefixAffinityParameters(Parameters):
    """Parameters of `prefix_affinity`."""

    #: A worker with more seconds of prefill before it is passed over, while another one has less.
    queue_s_max: Annotated[float, Field(ge=0, le=3600)] = 10.0


class PrefixAffinityPolicy:
    """
    Prefill at the worker that holds most of the prompt; of equals, at the one with the least to do.

    It knows nothing of links: a cache behind a slow one is as good as one at home.
    """

    name: ClassVar[str] = "prefix_affinity"
    parameters_model: ClassVar[type[Parameters]] = PrefixAffinityParameters

    def __init__(self, parameters: PrefixAffinityParameters) -> None:
        self._queue_s_max = parameters.queue_s_max

    def decide(self, request: RequestFeatures, view: ClusterView, rng: Random) -> Decision:
        """Where to prefill and where to decode, and why. Pure."""

        def nominate(feasible: Feasible, rng: Random) -> Sequence[WorkerView]:
            seen = list(feasible.looked_at(rng))
            calm = [worker for worker in seen if queue_of(worker) <= self._queue_s_max] or seen
            # The request as it is placed: its hits count for less when the view is old.
            left = {
                worker.worker_id: feasible.request.uncached_tokens(worker.worker_id)
                for worker in calm
            }
            fewest = min(left.values())
            return [least_of([one for one in calm if left[one.worker_id] == fewest], rng)]

        def rule(options: Sequence[Option], decode: WorkerView) -> Choice:
            del decode
            (option,) = options
            held_tokens = request.prefill_tokens - option.prediction.uncached_tokens
            return Choice(
                preferred=options,
                reason="prefix_affinity",
                explanation=(
                    f"{option.worker.worker_id} holds {held_tokens} of {request.prefill_tokens} "
                    "prefill tokens, and nobody who is not too busy holds more"
                ),
            )

        return place(request, view, rng, rule, nominate=nominate)
