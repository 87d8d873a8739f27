"""
Decision records: what was known, what was chosen, what happened; and their replay.

A record is self-contained: `replay(record)` asks the named policy again with the recorded
features, view and seed, and must get the recorded decision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from pydantic import TypeAdapter

from controlplane.domain.cluster import ClusterView
from controlplane.domain.decision import Decision, RequestFeatures
from controlplane.router.prefixes import CopyStep
from controlplane.router.shadows import ShadowDecision
from controlplane.wire import DecodeReport
from policies.registry import load_policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One decision of a request, with all its inputs, and how it ended."""

    policy: str
    parameters: Mapping[str, Any]
    seed: int
    features: RequestFeatures
    view: ClusterView
    #: Age of the view when it was used, seconds.
    view_age_s: float
    decision: Decision
    #: "ok", or the name of the event that ended the attempt.
    ended_by: str = "ok"
    #: Version of the document that named the policy; 0 for the configuration's.
    policy_version: int = 0
    #: What other policies would have done.
    shadows: tuple[ShadowDecision, ...] = ()
    #: What was asked of the worker whose cached prefix should be copied; None where it was not.
    copy: CopyStep | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """When things happened, seconds since the request was accepted; None if they did not."""

    parsed_s: float
    decided_s: float | None = None
    #: When the store had answered to the claim, or was not waited for any longer.
    reserved_s: float | None = None
    prefill_accepted_s: float | None = None
    #: When it no longer had to wait for another request that computed its prefix.
    turn_came_s: float | None = None
    first_token_s: float | None = None
    #: When the output went on after its last migration.
    resumed_s: float | None = None
    finished_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionRecord:
    """Everything about one request but its text."""

    #: Format of the record.
    version: int = 1
    decision_id: str
    request_id: str
    #: The id the client gave, for its own search.
    client_request_id: str | None = None
    router: str
    #: Wall-clock time of acceptance, Unix seconds; for people, never for arithmetic.
    at: float
    kind: str
    model: str
    is_stream: bool
    #: Terminal state: done, failed, cancelled or rejected.
    outcome: str
    code: str
    #: What went wrong, in words; empty when nothing did.
    detail: str = ""
    attempts: tuple[Attempt, ...]
    timeline: Timeline
    #: What the decode worker measured; None unless the stream ended well.
    report: DecodeReport | None = None
    #: Names of the life-cycle events in order.
    story: tuple[str, ...] = field(default=())


_ADAPTER = TypeAdapter(DecisionRecord)


def encode_record(record: DecisionRecord) -> bytes:
    """The record as JSON."""
    # By its schema, which takes two thirds of the time of finding out what each value is. Without
    # warnings: a policy may give a list where the schema has a tuple, and JSON has arrays alone.
    return _ADAPTER.dump_json(record, warnings="none")


def decode_record(data: bytes) -> DecisionRecord:
    """
    The record of a JSON document.

    Raises:
        pydantic.ValidationError: It is not one.
    """
    return _ADAPTER.validate_json(data)


def replay(attempt: Attempt, *, policy: str | None = None) -> Decision:
    """
    Decide again on what was known then.

    Args:
        attempt: From a record.
        policy: Another policy's name, with its default parameters; None for the recorded one.

    Raises:
        policies.registry.PolicyError: The policy is not installed or refuses its parameters.
        ValueError: The record keeps only a part of the workers that were known; see
            `ClusterView.workers_omitted`.
    """
    omitted = attempt.view.workers_omitted
    if omitted:
        raise ValueError(f"{omitted} workers were left out of this record: it cannot be replayed")
    chosen = (
        load_policy(attempt.policy, attempt.parameters)
        if policy is None
        else load_policy(policy, {})
    )
    return chosen.decide(attempt.features, attempt.view, Random(attempt.seed))
