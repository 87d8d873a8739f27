"""A routing policy for prfaas: closes datacenters for maintenance, and spreads the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Annotated, ClassVar

from pydantic import Field

from controlplane.domain.cluster import ClusterView, WorkerView
from controlplane.domain.decision import Decision, RequestFeatures
from controlplane.domain.estimate import queue_time_s
from policies.api import Parameters
from policies.filters import Rejection
from policies.scored import Weighed, place_scored


@dataclass(frozen=True, slots=True)
class Open:
    """A filter: nothing new goes to a datacenter that is closed."""

    closed: tuple[str, ...]
    name: str = "open"
    is_safety: bool = True

    def __call__(
        self, request: RequestFeatures, worker: WorkerView, view: ClusterView
    ) -> Rejection | None:
        """A rejection for workers of closed datacenters."""
        del request, view
        if worker.datacenter not in self.closed:
            return None
        return Rejection("filter", f"{worker.datacenter} is closed for maintenance")


@dataclass(frozen=True, slots=True)
class Affinity:
    """A scorer: the part of the prompt that a worker has cached."""

    name: str = "affinity"

    def __call__(self, request: RequestFeatures, worker: WorkerView, view: ClusterView) -> float:
        """1 for a worker that has nothing left to compute."""
        del view
        uncached_tokens = request.uncached_tokens(worker.worker_id)
        return 1 - uncached_tokens / max(1, request.prefill_tokens)


@dataclass(frozen=True, slots=True)
class Idle:
    """A scorer: how little a worker has to do."""

    #: A queue of this length scores one half.
    half_s: float
    name: str = "idle"

    def __call__(self, request: RequestFeatures, worker: WorkerView, view: ClusterView) -> float:
        """1 for a worker without a queue."""
        del request, view
        return self.half_s / (self.half_s + queue_time_s(worker))


@dataclass(frozen=True, slots=True)
class AmongTheBest:
    """A picker: by chance among those that score nearly as high as the best."""

    margin: float

    def __call__(self, scores: Sequence[float], rng: Random) -> int:
        """A place whose score is within the margin of the highest."""
        limit = max(scores) - self.margin
        near = [place for place, score in enumerate(scores) if score >= limit]
        return near[rng.randrange(len(near))]


class MaintenanceParameters(Parameters):
    """Parameters of `maintenance`."""

    #: Datacenters that get nothing new.
    closed: list[str] = Field(default_factory=list, max_length=64)
    affinity_weight: Annotated[float, Field(ge=0, le=100)] = 1.0
    idle_weight: Annotated[float, Field(ge=0, le=100)] = 1.0
    #: Seconds of queue that halve the score for being idle.
    half_s: Annotated[float, Field(gt=0, le=3600)] = 1.0
    #: How much lower than the best a score may be to be taken.
    margin: Annotated[float, Field(ge=0, le=1)] = 0.05


class MaintenancePolicy:
    """Caches and queues decide, except in datacenters that are closed."""

    name: ClassVar[str] = "maintenance"
    parameters_model: ClassVar[type[Parameters]] = MaintenanceParameters

    def __init__(self, parameters: MaintenanceParameters) -> None:
        self._filters = (Open(tuple(parameters.closed)),)
        self._scorers = (
            Weighed(Affinity(), parameters.affinity_weight),
            Weighed(Idle(parameters.half_s), parameters.idle_weight),
        )
        self._picker = AmongTheBest(parameters.margin)

    def decide(self, request: RequestFeatures, view: ClusterView, rng: Random) -> Decision:
        """Where to prefill and where to decode, and why. Pure."""
        return place_scored(
            request,
            view,
            rng,
            scorers=self._scorers,
            filters=self._filters,
            picker=self._picker,
        )
