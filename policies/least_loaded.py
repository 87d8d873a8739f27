"""The baseline of load balancers: the worker with the least to do, wherever it is."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import ClassVar

from controlplane.domain.cluster import ClusterView, WorkerView
from controlplane.domain.decision import Decision, RequestFeatures
from policies.api import Parameters
from policies.loads import least_of, waiting
from policies.pipeline import Choice, Option, place
from policies.search import Feasible


class LeastLoadedPolicy:
    """
    Prefill where the queue is shortest in seconds; equals by chance.

    It sees neither caches nor links: the home datacenter is one among others.
    """

    name: ClassVar[str] = "least_loaded"
    parameters_model: ClassVar[type[Parameters]] = Parameters

    def __init__(self, parameters: Parameters) -> None:
        del parameters  # it has none

    def decide(self, request: RequestFeatures, view: ClusterView, rng: Random) -> Decision:
        """Where to prefill and where to decode, and why. Pure."""

        def nominate(feasible: Feasible, rng: Random) -> Sequence[WorkerView]:
            return [least_of(list(feasible.looked_at(rng)), rng)]

        def rule(options: Sequence[Option], decode: WorkerView) -> Choice:
            del decode
            return Choice(
                preferred=options,
                reason="least_loaded",
                explanation=(
                    f"{waiting(options[0].worker)}, the shortest queue of "
                    f"{options[0].workers_everywhere} prefill workers"
                ),
            )

        return place(request, view, rng, rule, nominate=nominate)
