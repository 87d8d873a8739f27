"""
The edge to policies, which may be anybody's code: ask one, and believe no answer that cannot be.

Whatever a policy raises, and whatever it returns that is no decision about workers of its view, is one
`PolicyFault`. What follows of it is the caller's: the live policy's requests go where `local_only` sends
them, a shadow's answer is recorded as a fault.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Final

from controlplane.domain.cluster import ClusterView, WorkerView
from controlplane.domain.decision import Decision, RequestFeatures
from policies.api import Policy
from policies.local_only import LocalOnlyPolicy

#: Characters of a policy's own words that are kept.
_SAID_MAX: Final = 200


@dataclass(frozen=True, slots=True)
class NamedPolicy:
    """A policy and the parameters it was built from, as records name them."""

    policy: Policy
    parameters: Mapping[str, Any]


class PolicyFault(Exception):
    """A policy has raised, or has answered what cannot be."""


#: What stands in for a policy that fails: the answer that can do the least harm.
FALLBACK: Final = NamedPolicy(LocalOnlyPolicy(LocalOnlyPolicy.parameters_model()), {})


def ask(policy: Policy, features: RequestFeatures, view: ClusterView, seed: int) -> Decision:
    """
    What a policy decides.

    Raises:
        PolicyFault: It raised, or its answer names workers that are not there or cannot do it.
    """
    try:
        decision = policy.decide(features, view, Random(seed))
    except Exception as error:
        raise PolicyFault(_said(f"it raised {type(error).__name__}: {error}")) from error
    if not isinstance(decision, Decision):
        raise PolicyFault(_said(f"it answered {decision!r} instead of a Decision"))
    placement = decision.placement
    if placement is not None:
        _check(view, placement.prefill_worker, "prefill", placement.prefill_datacenter)
        _check(view, placement.decode_worker, "decode", placement.decode_datacenter)
    return decision


def stand_in(
    features: RequestFeatures, view: ClusterView, seed: int, fault: PolicyFault, name: str
) -> Decision:
    """The decision of `local_only` in place of a policy that has failed, and why."""
    decision = ask(FALLBACK.policy, features, view, seed)
    said = f"policy {name} failed ({fault}), so local_only decided: {decision.explanation}"
    return replace(decision, explanation=said)


def _check(view: ClusterView, worker_id: str, role: str, datacenter: str) -> None:
    worker: WorkerView | None = view.worker(worker_id)
    if worker is None or (worker.role, worker.datacenter) != (role, datacenter):
        raise PolicyFault(
            _said(f"it chose {worker_id!r} in {datacenter!r} for {role}, and there is none such")
        )


def _said(text: str) -> str:
    return text if len(text) <= _SAID_MAX else f"{text[:_SAID_MAX]}..."
