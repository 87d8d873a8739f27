from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest
from router_builders import LogBook, MemoryRouter, a_few_turns, a_router

from controlplane.domain.plan import NEVER_TOKENS, Plan
from controlplane.router import documents
from controlplane.router.documents import DocumentFeed, take_plan, take_policy
from controlplane.router.policy_document import PolicyChange, PolicyChoice, changed
from controlplane.store.api import Published
from controlplane.wire_plan import decode_plan, encode_plan

PLAN = Plan(version=3, author="west/router-1", threshold_tokens={"east>west": 19_400.0})


def a_feed(router: MemoryRouter) -> DocumentFeed:
    return DocumentFeed(
        router.store,
        router.metrics,
        {
            "policy": lambda document: take_policy(router.services, document),
            "plan": lambda document: take_plan(router.tracker, document),
        },
    )


def a_change(policy: str = "local_only", *shadows: str) -> bytes:
    choices = tuple(PolicyChoice(policy=name) for name in shadows)
    document = changed(None, PolicyChange(policy=policy, shadows=choices), 1.0)
    return document.model_dump_json().encode()


async def test_a_published_policy_decides_the_next_request_and_its_record_says_so() -> None:
    async with a_router() as router:
        await router.serve()
        await router.store.publish("policy", a_change("local_only", "prfaas", "round_robin"))
        await a_feed(router).look()
        await router.serve()

        before, after = await router.records()
        assert [before.attempts[0].policy, before.attempts[0].policy_version] == ["prfaas", 0]
        assert [after.attempts[0].policy, after.attempts[0].policy_version] == ["local_only", 1]
        assert [one.policy for one in after.attempts[0].shadows] == ["prfaas", "round_robin"]


async def test_a_router_is_told_of_a_new_version_and_reads_it_at_once() -> None:
    async with a_router() as router:
        feed = a_feed(router)
        running = asyncio.ensure_future(feed.run())
        await a_few_turns()
        await router.store.publish("policy", a_change())
        feed.published(Published("policy", 1))
        await a_few_turns()

        assert router.services.policy.name == "local_only"
        running.cancel()


async def test_a_router_whose_events_broke_off_looks_for_what_it_may_have_missed() -> None:
    async with a_router() as router:
        feed = a_feed(router)
        running = asyncio.ensure_future(feed.run())
        await a_few_turns()
        await router.store.publish("policy", a_change())
        feed.missed()
        await a_few_turns()

        assert router.services.policy.name == "local_only"
        running.cancel()


@pytest.mark.parametrize("body", [b"[1]", b'{"history":[]}', a_change().replace(b"local", b"no")])
async def test_what_cannot_be_used_changes_nothing_and_is_said_once(
    body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = LogBook()
    monkeypatch.setattr(documents, "_log", log)
    async with a_router() as router:
        await router.store.publish("policy", body)
        feed = a_feed(router)
        await feed.look()
        await feed.look()

        assert router.services.policy.name == "prfaas"
        assert [event for _, event, _ in log.events] == ["document.refused"]


async def test_a_published_plan_is_part_of_the_view_until_it_is_too_old() -> None:
    async with a_router() as router:
        await router.store.publish("plan", encode_plan(PLAN))
        await a_feed(router).look()

        assert router.tracker.view().plan == PLAN
        router.clock.advance(901.0)
        assert router.tracker.view().plan is None


async def test_a_decision_under_a_plan_is_recorded_with_it() -> None:
    async with a_router() as router:
        router.tracker.follow_plan(PLAN)
        await router.serve()

        assert (await router.record()).attempts[0].view.plan == PLAN


def test_a_plan_survives_its_way_through_the_store() -> None:
    assert decode_plan(encode_plan(PLAN)) == PLAN


def test_a_plan_of_a_router_before_this_version_is_complete_for_all_we_know() -> None:
    said = json.loads(encode_plan(PLAN))
    del said["is_complete"], said["gap"]

    plan = decode_plan(json.dumps(said).encode())

    assert plan.is_complete
    assert plan.gap == 0


def test_a_plan_with_a_field_to_come_is_read_without_it() -> None:
    """So a router of the version before reads what one of this version publishes."""
    said = json.loads(encode_plan(PLAN)) | {"confidence": "high"}

    assert decode_plan(json.dumps(said).encode()) == PLAN


@pytest.mark.parametrize("gap", [-0.1, 1.1])
def test_a_plan_with_an_absurd_gap_is_none(gap: float) -> None:
    said = json.loads(encode_plan(PLAN)) | {"gap": gap}

    with pytest.raises(ValueError, match="gap"):
        decode_plan(json.dumps(said).encode())


@pytest.mark.parametrize("tokens", [-1.0, 2 * NEVER_TOKENS])
def test_a_plan_with_an_absurd_threshold_is_none(tokens: float) -> None:
    absurd = replace(PLAN, threshold_tokens={"east>west": tokens})

    with pytest.raises(ValueError, match="threshold_tokens of east>west"):
        decode_plan(encode_plan(absurd))
