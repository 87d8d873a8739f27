"""A decision record is self-contained: it survives being written, and it can be decided again."""

from __future__ import annotations

import json
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from builders import a_request, a_view, a_worker
from hypothesis import given, settings
from pydantic import ValidationError
from router_builders import EAST_1, MemoryRouter, url_of
from strategies import Situation, situations

from controlplane.errors import WorkerRefused
from controlplane.router.memory_workers import a_report
from controlplane.router.records import (
    Attempt,
    DecisionRecord,
    Timeline,
    decode_record,
    encode_record,
    replay,
)
from policies.prfaas import PrfaasParameters, PrfaasPolicy
from policies.registry import PolicyError


def a_record(*attempts: Attempt, **overrides: Any) -> DecisionRecord:
    """A request that went well."""
    values: dict[str, Any] = {
        "decision_id": "dec-1",
        "request_id": "req-1",
        "client_request_id": "mine, with \u00e9 and \u2603",
        "router": "west/router-1",
        "at": 1_700_000_000.25,
        "kind": "chat",
        "model": "m",
        "is_stream": True,
        "outcome": "done",
        "code": "ok",
        "attempts": attempts,
        "timeline": Timeline(
            parsed_s=0.001,
            decided_s=0.002,
            reserved_s=None,
            prefill_accepted_s=0.01,
            first_token_s=0.1,
            finished_s=0.2,
        ),
        "report": a_report(),
        "story": ("Placed", "Reserved", "PrefillAccepted", "FirstToken", "StreamEnded"),
    }
    return DecisionRecord(**(values | overrides))


def an_attempt(situation: Situation) -> Attempt:
    """What a router would have recorded of a decision."""
    policy = situation.policy
    checked = getattr(policy, "_parameters", None)
    names = policy.parameters_model.model_fields
    parameters = {
        name: getattr(checked or policy, name if checked else f"_{name}") for name in names
    }
    return Attempt(
        policy=policy.name,
        parameters=parameters,
        seed=situation.seed,
        features=situation.request,
        view=situation.view,
        view_age_s=0.25,
        decision=policy.decide(situation.request, situation.view, Random(situation.seed)),
    )


@settings(deadline=None, max_examples=50)
@given(situations)
def test_a_record_is_read_as_it_was_written(situation: Situation) -> None:
    """Every view, every hit, every candidate, whatever the cluster looked like."""
    record = a_record(an_attempt(situation))

    assert decode_record(encode_record(record)) == record


@settings(deadline=None, max_examples=50)
@given(situations)
def test_a_recorded_decision_replays_to_itself(situation: Situation) -> None:
    """From its bytes alone, with the policy loaded by its name."""
    written = encode_record(a_record(an_attempt(situation)))

    (attempt,) = decode_record(written).attempts

    assert replay(attempt) == attempt.decision


async def test_what_a_router_wrote_replays(router: MemoryRouter) -> None:
    """Both attempts of a request that was refused once."""
    router.workers.on_prefill(url_of(EAST_1), WorkerRefused("full"))
    await router.serve()

    record = await router.record()

    assert [attempt.ended_by for attempt in record.attempts] == ["PrefillRefused", "ok"]
    for attempt in record.attempts:
        assert replay(attempt) == attempt.decision


async def test_another_policy_can_be_asked_the_same(router: MemoryRouter) -> None:
    """With its default parameters; what was recorded stays what it was."""
    await router.serve()
    (attempt,) = (await router.record()).attempts

    other = replay(attempt, policy="local_only")

    assert attempt.decision.placement is not None
    assert attempt.decision.placement.is_offloaded
    assert other.placement is not None
    assert other.reason == "local_only"
    assert not other.placement.is_offloaded


async def test_a_policy_that_is_not_installed_is_named(router: MemoryRouter) -> None:
    """Records outlive the plug-ins that made them."""
    await router.serve()
    (attempt,) = (await router.record()).attempts

    with pytest.raises(PolicyError, match="nowhere"):
        replay(attempt, policy="nowhere")


def test_a_record_is_plain_json() -> None:
    """Anybody can read it, without this code."""
    document = json.loads(encode_record(a_record()))

    assert document["version"] == 1
    assert document["client_request_id"] == "mine, with \u00e9 and \u2603"
    assert document["timeline"]["reserved_s"] is None
    assert document["report"]["transfer"]["bytes"] == 1000


def test_a_record_of_a_later_version_is_read_as_far_as_it_is_known() -> None:
    """Routers of two versions share one store."""
    document = json.loads(encode_record(a_record()))
    document["from_the_future"] = {"a": 1}
    document["timeline"]["from_the_future"] = 1

    assert decode_record(json.dumps(document).encode()) == a_record()


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"decision_id": 1}', b"\xff"])
def test_what_is_no_record_is_refused(data: bytes) -> None:
    """A garbage value in the store must not look like a request."""
    with pytest.raises(ValidationError):
        decode_record(data)


def test_a_record_that_keeps_a_part_of_the_workers_is_not_replayed() -> None:
    """Whoever was left out might have been chosen: no answer is better than a wrong one."""
    situation = Situation(
        policy=PrfaasPolicy(PrfaasParameters()),
        request=a_request(),
        view=a_view(a_worker("west/p1")),
        seed=7,
    )
    whole = an_attempt(situation)
    attempt = replace(whole, view=replace(whole.view, workers_omitted=3))

    with pytest.raises(ValueError, match="3 workers were left out"):
        replay(attempt)
