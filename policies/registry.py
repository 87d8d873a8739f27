"""Finds policies by name among the entry points of the group `prfaas.policies`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from pydantic import ValidationError

from policies.api import Policy

GROUP = "prfaas.policies"


class PolicyError(ValueError):
    """A policy that cannot be used; says why, and what there is instead."""


def policy_names() -> tuple[str, ...]:
    """Names of all installed policies, sorted."""
    return tuple(sorted({point.name for point in entry_points(group=GROUP)}))


def load_policy(name: str, parameters: Mapping[str, Any]) -> Policy:
    """
    Build a policy, its parameters checked by its own model.

    Raises:
        PolicyError: No policy has this name or several have, it cannot be imported or is none, or
            a parameter is unknown or out of range.
    """
    kind = load_kind(name)
    model = kind.parameters_model
    try:
        checked = model.model_validate(dict(parameters))
    except ValidationError as error:
        known = ", ".join(model.model_fields) or "none"
        complaints = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'parameters'}: {item['msg']}"
            for item in error.errors()
        )
        raise PolicyError(f"policy {name!r}: {complaints}; its parameters are: {known}") from error
    return kind(checked)


def load_kind(name: str) -> type[Policy]:
    """
    The class of a policy.

    Raises:
        PolicyError: No policy has this name or several have, it cannot be imported or is none.
    """
    points = entry_points(group=GROUP, name=name)
    if not points:
        raise PolicyError(f"unknown policy {name!r}; installed are: {', '.join(policy_names())}")
    if len(points) > 1:
        rivals = ", ".join(sorted(point.value for point in points))
        raise PolicyError(f"policy {name!r} is there more than once: {rivals}")
    (point,) = points
    try:
        kind: type[Policy] = point.load()
        kind.parameters_model  # noqa: B018 - a policy has one
    except (ImportError, AttributeError) as error:
        raise PolicyError(f"policy {name!r} ({point.value}) cannot be loaded: {error}") from error
    return kind
