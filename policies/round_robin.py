"""The baseline that knows nothing: prefill workers in turn."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import ClassVar

from controlplane.domain.cluster import ClusterView, WorkerView
from controlplane.domain.decision import Decision, RequestFeatures
from policies.api import Parameters
from policies.pipeline import Choice, Option, place


class RoundRobinPolicy:
    """All feasible prefill workers in turn, by the router's running number of the request."""

    name: ClassVar[str] = "round_robin"
    parameters_model: ClassVar[type[Parameters]] = Parameters

    def __init__(self, parameters: Parameters) -> None:
        del parameters  # it has none

    def decide(self, request: RequestFeatures, view: ClusterView, rng: Random) -> Decision:
        """Where to prefill and where to decode, and why. Pure."""

        def rule(options: Sequence[Option], decode: WorkerView) -> Choice:
            del decode
            turn = request.sequence % len(options)
            return Choice(
                preferred=[options[turn]],
                reason="round_robin",
                explanation=f"turn {turn + 1} of {len(options)} prefill workers",
            )

        return place(request, view, rng, rule)
