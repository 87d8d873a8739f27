"""The baseline without a WAN: prefill where decode is."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import ClassVar

from controlplane.domain.cluster import ClusterView, WorkerView
from controlplane.domain.decision import Decision, RequestFeatures
from policies.api import Parameters
from policies.pipeline import Choice, Option, place, sides


class LocalOnlyPolicy:
    """
    Prefill in the decode worker's datacenter, at the worker with the least predicted TTFT.

    Without any prefill worker there, the cheapest one elsewhere: an answer over the link is
    better than none, and the reason says so.
    """

    name: ClassVar[str] = "local_only"
    parameters_model: ClassVar[type[Parameters]] = Parameters

    def __init__(self, parameters: Parameters) -> None:
        del parameters  # it has none

    def decide(self, request: RequestFeatures, view: ClusterView, rng: Random) -> Decision:
        """Where to prefill and where to decode, and why. Pure."""
        return place(request, view, rng, _choose)


def _choose(options: Sequence[Option], decode: WorkerView) -> Choice:
    home = decode.datacenter
    local, _ = sides(options, decode)
    if local:
        return Choice(
            preferred=local, reason="local_only", explanation=f"prefill always stays in {home}"
        )
    return Choice(
        preferred=options,
        reason="no_local_prefill",
        explanation=f"prefill should stay in {home}, but no worker there can take it: offloaded",
    )
