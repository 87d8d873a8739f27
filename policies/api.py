"""
The policy contract: a pure function from what is known to where to run, with its reasons.

A policy sees a request's features, an immutable view and a seeded generator; it has no clock, no
socket, no store, and no other request. Same arguments, same decision, on every machine, so each
recorded decision replays to itself. It proposes; the store's reservation may refuse, and the
router asks again.
"""

from __future__ import annotations

from random import Random
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict

from controlplane.domain.cluster import ClusterView
from controlplane.domain.decision import Decision, RequestFeatures


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
