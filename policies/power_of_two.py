"""The baseline of two choices: of two workers by chance the one with less to do."""

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

_TWO = 2


class PowerOfTwoPolicy:
    """
    Draw two prefill workers anywhere, and take the one with the shorter queue.

    Nearly as even as asking everybody, and routers with the same old view do not all choose the
    same worker.

    Source:
        M. Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001.
    """

    name: ClassVar[str] = "power_of_two"
    parameters_model: ClassVar[type[Parameters]] = Parameters

    def __init__(self, parameters: Parameters) -> None:
        del parameters  # it has none

    def decide(self, request: RequestFeatures, view: ClusterView, rng: Random) -> Decision:
        """Where to prefill and where to decode, and why. Pure."""

        def nominate(feasible: Feasible, rng: Random) -> Sequence[WorkerView]:
            drawn = rng.sample(range(len(feasible)), min(_TWO, len(feasible)))
            return [least_of([feasible[number] for number in drawn], rng)]

        def rule(options: Sequence[Option], decode: WorkerView) -> Choice:
            del decode
            return Choice(
                preferred=options,
                reason="power_of_two",
                explanation=f"{waiting(options[0].worker)}, the shorter queue of two drawn by chance",
            )

        return place(request, view, rng, rule, nominate=nominate)
