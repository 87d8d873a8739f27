"""
The policy contract: a pure function from what is known to where to run, with its reasons.

A policy sees a request's features, an immutable view and a seeded generator; it has no clock, no
socket, no store, and no other request. Same arguments, same decision, on every machine, so each
recorded decision replays to itself. It proposes; the store's reservation may refuse, and the
router asks again.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict

from controlplane.domain.cluster import ClusterView, WorkerView
from controlplane.domain.decision import Decision, RequestFeatures
from policies.filters import Rejection


class Parameters(BaseModel):
    """Base of a policy's parameters: checked at start, a misspelt one is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Policy(Protocol):
    """
    What an entry point of the group `prfaas.policies` names.

    The class is built with an instance of its `parameters_model`.
    """

    #: Name in configuration, records and metrics.
    name: ClassVar[str]
    parameters_model: ClassVar[type[Parameters]]

    def __init__(self, parameters: Any) -> None: ...  # noqa: ANN401 - its own parameters_model

    def decide(self, request: RequestFeatures, view: ClusterView, rng: Random) -> Decision:
        """
        Where to prefill and where to decode, and why. Pure.

        Args:
            request: Lengths and prefix hits.
            view: The cluster.
            rng: Breaks ties; the only source of chance. The router records its seed.
        """


class Filter(Protocol):
    """
    A rule of a policy's own that keeps workers out, of both roles. Pure.

    When it raises, a filter for safety keeps the worker out, one for preference lets it pass; either
    way the decision counts it and its explanation names it.
    """

    @property
    def name(self) -> str:
        """Names it in explanations and metrics."""

    @property
    def is_safety(self) -> bool:
        """No worker may pass that it was not able to look at."""

    def __call__(
        self, request: RequestFeatures, worker: WorkerView, view: ClusterView
    ) -> Rejection | None:
        """`Rejection("filter", detail)` for a worker that must not take the request."""


class Scorer(Protocol):
    """
    How good a prefill worker is for a request, in one respect. Pure.

    How much that counts is not its business: its weight is a parameter of the policy.
    """

    @property
    def name(self) -> str:
        """Names it in explanations and metrics."""

    def __call__(self, request: RequestFeatures, worker: WorkerView, view: ClusterView) -> float:
        """From 0 to 1, more is better; what is outside is clamped, and counted as a failure."""


class Picker(Protocol):
    """Chooses among workers that have been scored. Pure but for `rng`."""

    def __call__(self, scores: Sequence[float], rng: Random) -> int:
        """
        The place of the one to take.

        Args:
            scores: The weighted sum of each, >= 0, by id of the worker; at least one.
            rng: The only source of chance.
        """
