from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from builders import a_request, a_view
from policy_builders import ScriptedPolicy, a_broken_policy, a_named_policy
from router_builders import MemoryRouter, a_router

from controlplane.router.asking import PolicyFault, ask


def placed(**changes: str) -> ScriptedPolicy:
    """Decides as `local_only`, with a changed placement."""

    def act(request: Any, view: Any) -> Any:
        decision = ask(a_named_policy().policy, request, view, 1)
        assert decision.placement is not None
        return replace(decision, placement=replace(decision.placement, **changes))

    return ScriptedPolicy(act)


def test_a_policy_that_raises_is_a_fault_with_its_words() -> None:
    with pytest.raises(PolicyFault, match="ZeroDivisionError: no m in epoch"):
        ask(a_broken_policy(), a_request(), a_view(), 1)


def test_an_answer_that_is_no_decision_is_a_fault() -> None:
    with pytest.raises(PolicyFault, match="answered None instead of a Decision"):
        ask(ScriptedPolicy(lambda _, __: None), a_request(), a_view(), 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"prefill_worker": "nowhere/p9"},
        {"decode_worker": "west/p1"},
        {"prefill_datacenter": "north"},
    ],
)
def test_a_placement_on_workers_that_are_not_there_is_a_fault(changes: dict[str, str]) -> None:
    with pytest.raises(PolicyFault, match="there is none such"):
        ask(placed(**changes), a_request(), a_view(), 1)


async def test_a_request_whose_policy_fails_is_placed_by_local_only() -> None:
    async with a_router(policy=a_broken_policy()) as router:
        await router.serve()

        record = await router.record()
        (attempt,) = record.attempts
        assert record.outcome == "done"
        assert attempt.policy == "local_only"
        assert "policy scripted failed (it raised ZeroDivisionError" in attempt.decision.explanation
        assert faults(router) == 1


def faults(router: MemoryRouter) -> float | None:
    return router.metrics.registry.get_sample_value(
        "prfaas_policy_faults_total", {"policy": "scripted"}
    )
