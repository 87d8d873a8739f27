"""Policies that misbehave, for what surrounds policies."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, ClassVar

from controlplane.domain.cluster import ClusterView
from controlplane.domain.decision import Decision, RequestFeatures
from controlplane.router.asking import NamedPolicy
from policies.api import Parameters
from policies.registry import load_policy


class ScriptedPolicy:
    """Does what a test says instead of deciding."""

    name: ClassVar[str] = "scripted"
    parameters_model: ClassVar[type[Parameters]] = Parameters

    def __init__(self, act: Callable[[RequestFeatures, ClusterView], Any]) -> None:
        self._act = act

    def decide(self, request: RequestFeatures, view: ClusterView, rng: Random) -> Decision:
        del rng
        answer: Decision = self._act(request, view)
        return answer


def a_broken_policy() -> ScriptedPolicy:
    """Raises."""

    def act(request: RequestFeatures, view: ClusterView) -> None:
        raise ZeroDivisionError(f"no {request.model} in epoch {view.epoch}")

    return ScriptedPolicy(act)


def a_hanging_policy() -> ScriptedPolicy:
    """Never comes back, and swallows what it can."""

    def act(request: RequestFeatures, view: ClusterView) -> None:
        del request, view
        while True:
            try:
                sum(range(1000))
            except Exception:  # noqa: BLE001, S112 - that is what it is for
                continue

    return ScriptedPolicy(act)


def a_named_policy(name: str = "local_only", **parameters: Any) -> NamedPolicy:
    """An installed one."""
    return NamedPolicy(load_policy(name, parameters), parameters)
