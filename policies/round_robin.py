"""The baseline that knows nothing: prefill workers in turn."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import ClassVar

from controlplane.domain.cluster import ClusterView, WorkerView
from controlplane.domain.decision import Decision, RequestFeatures
from policies.api import Parameters
from policies.pipeline import Choice, Option, place
from policies.search import Feasible


class RoundRobinPolicy:
    """All feasible prefill workers in turn, by the router's running number of the request."""

    name: ClassVar[str] = "round_robin"
    parameters_model: ClassVar[type[Parameters]] = Parameters

    def __init__(self, parameters: Parameters) -> None:
        del parameters  # it has none

    def decide(self, request: RequestFeatures, view: ClusterView, rng: Random) -> Decision:
        """Where to prefill and where to decode, and why. Pure."""
        number = request.sequence

        def in_turn(feasible: Feasible, rng: Random) -> Sequence[WorkerView]:
            del rng
            return [feasible[number % len(feasible)]]

        def rule(options: Sequence[Option], decode: WorkerView) -> Choice:
            del decode
            workers = options[0].workers_everywhere
            return Choice(
                preferred=options,
                reason="round_robin",
                explanation=f"turn {number % workers + 1} of {workers} prefill workers",
            )

        return place(request, view, rng, rule, nominate=in_turn)
