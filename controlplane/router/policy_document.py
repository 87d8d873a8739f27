"""
The document that says which policy is live and which ones run in its shadow.

It stands in the store under the topic `policy`. Who changes it publishes a whole new one, with the
changes before it, so that the newest version tells its own history.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from controlplane.config import describe_validation
from controlplane.errors import MalformedRequest
from controlplane.router.asking import NamedPolicy
from policies.registry import PolicyError, load_policy

#: Policies that may run beside the live one: each costs a decision per request.
SHADOWS_MAX: Final = 3
#: Changes that a document remembers, newest first.
HISTORY_MAX: Final = 20


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PolicyChoice(_Part):
    """A policy by name, and its parameters."""

    policy: Annotated[str, Field(min_length=1, max_length=96)]
    parameters: Annotated[dict[str, Any], Field(max_length=64)] = {}

    def load(self) -> NamedPolicy:
        """
        The policy, its parameters checked.

        Raises:
            PolicyError: It is not installed, or refuses its parameters.
        """
        return NamedPolicy(load_policy(self.policy, self.parameters), self.parameters)


class PolicyChange(_Part):
    """What is asked for: `PUT /admin/v1/policy`."""

    policy: Annotated[str, Field(min_length=1, max_length=96)]
    parameters: Annotated[dict[str, Any], Field(max_length=64)] = {}
    shadows: Annotated[tuple[PolicyChoice, ...], Field(max_length=SHADOWS_MAX)] = ()
    #: Who asks, and why; kept with the change.
    by: Annotated[str, Field(max_length=96)] = ""
    reason: Annotated[str, Field(max_length=500)] = ""
    #: The version that it replaces, 0 for none; without it whatever is there is replaced.
    expected_version: Annotated[int, Field(ge=0)] | None = None


class PastChange(_Part):
    """A change that was made."""

    policy: str
    parameters: dict[str, Any]
    shadows: tuple[PolicyChoice, ...] = ()
    by: str = ""
    reason: str = ""
    #: Unix seconds, of the router that took it; for people.
    at: float


class PolicyDocument(_Part):
    """What is published: the newest change is what holds."""

    history: Annotated[tuple[PastChange, ...], Field(min_length=1, max_length=HISTORY_MAX)]

    @property
    def live(self) -> PolicyChoice:
        """The policy that decides."""
        newest = self.history[0]
        return PolicyChoice(policy=newest.policy, parameters=newest.parameters)

    @property
    def shadows(self) -> tuple[PolicyChoice, ...]:
        """Those that only answer."""
        return self.history[0].shadows


def changed(before: PolicyDocument | None, change: PolicyChange, at: float) -> PolicyDocument:
    """
    The document after a change.

    Raises:
        MalformedRequest: A policy is not installed, is named twice as a shadow with the same
            parameters, or refuses its parameters.
    """
    asked = PolicyChoice(policy=change.policy, parameters=change.parameters)
    for number, choice in enumerate((asked, *change.shadows)):
        where = f"shadows[{number - 1}]" if number else "policy"
        try:
            choice.load()
        except PolicyError as error:
            raise MalformedRequest(f"{where}: {error}", param=where) from error
        if choice in change.shadows[: max(0, number - 1)]:
            raise MalformedRequest(f"{where} is there twice", param=where)
    newest = PastChange(
        policy=change.policy,
        parameters=change.parameters,
        shadows=change.shadows,
        by=change.by,
        reason=change.reason,
        at=at,
    )
    past = before.history if before is not None else ()
    return PolicyDocument(history=(newest, *past)[:HISTORY_MAX])


def read_change(body: bytes) -> PolicyChange:
    """
    What a client asks for.

    Raises:
        MalformedRequest: Not JSON, or a field is wrong; names the field.
    """
    try:
        return PolicyChange.model_validate_json(body)
    except ValidationError as error:
        param = ".".join(str(part) for part in error.errors()[0]["loc"]) or None
        raise MalformedRequest(describe_validation(error), param=param) from error


def read_document(body: bytes) -> PolicyDocument:
    """
    A published document.

    Raises:
        ValueError: It is none.
    """
    return PolicyDocument.model_validate_json(body)
