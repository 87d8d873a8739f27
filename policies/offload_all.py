"""The naive use of a remote prefill cluster: everything is prefilled elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import ClassVar

from controlplane.domain.cluster import ClusterView, WorkerView
from controlplane.domain.decision import Decision, RequestFeatures
from policies.api import Parameters
from policies.pipeline import Choice, Option, place, sides


class OffloadAllPolicy:
    """
    Prefill in another datacenter than decode, at the worker with the least predicted TTFT.

    Without any prefill worker elsewhere, the one at home: the reason says so.

    Source:
        PrfaaS (arXiv 2604.15039) section 4.2, "naive heterogeneous PD".
    """

    name: ClassVar[str] = "offload_all"
    parameters_model: ClassVar[type[Parameters]] = Parameters

    def __init__(self, parameters: Parameters) -> None:
        del parameters  # it has none

    def decide(self, request: RequestFeatures, view: ClusterView, rng: Random) -> Decision:
        """Where to prefill and where to decode, and why. Pure."""
        return place(request, view, rng, _choose)


def _choose(options: Sequence[Option], decode: WorkerView) -> Choice:
    local, remote = sides(options, decode)
    home = decode.datacenter
    if remote:
        return Choice(
            preferred=remote,
            reason="offload_all",
            explanation=f"prefill always leaves {home}",
        )
    return Choice(
        preferred=local,
        reason="no_remote_prefill",
        explanation=f"prefill should leave {home}, but no worker elsewhere can take it: kept",
    )
