"""Which policy decides, which ones answer beside it, and changing that: `/admin/v1/policy`."""

from __future__ import annotations

import time
from typing import Any

from controlplane.errors import ConflictingChange
from controlplane.router.policy_document import (
    PolicyDocument,
    changed,
    read_change,
    read_document,
)
from controlplane.router.services import Services
from controlplane.store.api import Document
from policies.registry import PolicyError, load_kind, policy_names


async def policy_document(services: Services) -> dict[str, Any]:
    """
    What holds at this router, what is published, and what could be.

    Raises:
        StoreError: The store does not tell what is published.
    """
    published = await services.store.document("policy")
    document = _read(published)
    return {
        "live": {
            "policy": services.policy.name,
            "parameters": all_parameters(services),
            "version": services.policy_version,
            "source": "store" if services.policy_version else "configuration",
        },
        "shadows": [
            {"policy": named.policy.name, "parameters": dict(named.parameters)}
            for named in services.shadows.policies
        ],
        "published_version": published.version if published else 0,
        "history": [] if document is None else document.model_dump(mode="json")["history"],
        "installed": [_installed(name) for name in policy_names()],
    }


async def change_policy(services: Services, body: bytes) -> dict[str, Any]:
    """
    Publish another policy for all routers; they follow within a second.

    Raises:
        MalformedRequest: The body is none, or names what is not installed here.
        ConflictingChange: Somebody else was faster.
        StoreError: The store did not take it; what was live still is.
    """
    change = read_change(body)
    before = await services.store.document("policy")
    stands = before.version if before else 0
    if change.expected_version is not None and change.expected_version != stands:
        raise ConflictingChange(
            f"version {stands} is published, not {change.expected_version}: read it again",
            param="expected_version",
        )
    document = changed(_read(before), change, time.time())
    made = await services.store.publish(
        "policy", document.model_dump_json().encode(), expected_version=stands
    )
    if made is None:
        raise ConflictingChange("another change was published meanwhile: read it and try again")
    return {"published_version": made.version, **document.history[0].model_dump(mode="json")}


def all_parameters(services: Services) -> dict[str, Any]:
    """Parameters of the live policy, defaults included."""
    given = dict(services.policy_parameters)
    return services.policy.parameters_model.model_validate(given).model_dump(mode="json")


def _read(document: Document | None) -> PolicyDocument | None:
    """What is published; garbage is nothing, and the next change replaces it."""
    if document is None:
        return None
    try:
        return read_document(document.body)
    except ValueError:
        return None


def _installed(name: str) -> dict[str, Any]:
    """A policy by name, with the JSON schema of its parameters."""
    try:
        return {"policy": name, "parameters": load_kind(name).parameters_model.model_json_schema()}
    except PolicyError as error:
        return {"policy": name, "error": str(error)}
