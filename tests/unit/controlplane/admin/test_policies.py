from __future__ import annotations

from typing import Any

import aiohttp
import pytest
from admin_world import AdminWorld

from controlplane.domain.plan import Plan
from controlplane.router.documents import take_policy

PATH = "/admin/v1/policy"
LOCAL = {"policy": "local_only", "by": "ann", "reason": "the link is being repaired"}


async def follow(world: AdminWorld) -> None:
    """The router reads what is published."""
    document = await world.services.store.document("policy")
    assert document is not None
    take_policy(world.services, document)


async def put(
    client: aiohttp.ClientSession, body: object, status: int = 200, **headers: str
) -> dict[str, Any]:
    async with client.put(PATH, json=body, headers=headers) as answer:
        assert answer.status == status, await answer.text()
        said: dict[str, Any] = await answer.json(content_type=None)
        return said


async def read(client: aiohttp.ClientSession, path: str = PATH) -> dict[str, Any]:
    async with client.get(path) as answer:
        assert answer.status == 200, await answer.text()
        said: dict[str, Any] = await answer.json()
        return said


async def test_the_policy_is_that_of_the_configuration_until_one_is_published(
    client: aiohttp.ClientSession,
) -> None:
    said = await read(client)

    assert said["live"]["policy"] == "prfaas"
    assert said["live"]["source"] == "configuration"
    assert said["live"]["parameters"]["threshold_tokens"] == 64
    assert (said["published_version"], said["history"], said["shadows"]) == (0, [], [])


async def test_every_installed_policy_is_listed_with_its_parameters(
    client: aiohttp.ClientSession,
) -> None:
    installed = {one["policy"]: one for one in (await read(client))["installed"]}

    assert {"prfaas", "local_only", "round_robin"} <= installed.keys()
    assert "threshold_tokens" in installed["prfaas"]["parameters"]["properties"]


async def test_a_change_is_published_and_shown_with_who_made_it_and_why(
    client: aiohttp.ClientSession, world: AdminWorld
) -> None:
    made = await put(client, {**LOCAL, "shadows": [{"policy": "prfaas"}]})
    await follow(world)
    said = await read(client)

    assert made["published_version"] == said["published_version"] == 1
    assert said["live"] == {
        "policy": "local_only",
        "parameters": {},
        "version": 1,
        "source": "store",
    }
    assert [one["policy"] for one in said["shadows"]] == ["prfaas"]
    assert (said["history"][0]["by"], said["history"][0]["reason"]) == (
        "ann",
        "the link is being repaired",
    )
    assert said["history"][0]["at"] > 1e9


async def test_a_change_of_a_version_that_is_gone_is_a_conflict(
    client: aiohttp.ClientSession,
) -> None:
    await put(client, LOCAL)
    problem = await put(client, {**LOCAL, "expected_version": 0}, 409)

    assert problem["code"] == "conflicting_change"
    assert problem["detail"] == "version 1 is published, not 0: read it again"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"policy": "nope"}, "policy"),
        ({"policy": "prfaas", "parameters": {"threshold_tokens": -1}}, "policy"),
        ({"policy": "prfaas", "shadows": [{"policy": "nope"}]}, "shadows[0]"),
        ({}, "policy"),
        ([], None),
    ],
)
async def test_a_change_that_cannot_be_made_is_refused_and_nothing_is_published(
    client: aiohttp.ClientSession, body: object, param: str | None
) -> None:
    problem = await put(client, body, 400)

    assert problem.get("param") == param
    assert (await read(client))["published_version"] == 0


async def test_a_page_of_another_site_changes_nothing(client: aiohttp.ClientSession) -> None:
    problem = await put(client, LOCAL, 403, origin="http://evil.example")
    async with client.put(PATH, data=b"{}", headers={"content-type": "text/plain"}) as form:
        assert form.status == 403

    assert problem["code"] == "foreign_page"
    assert (await read(client))["published_version"] == 0


async def test_a_huge_body_is_refused(client: aiohttp.ClientSession) -> None:
    problem = await put(client, {**LOCAL, "reason": "x" * 100_000}, 413)

    assert problem["code"] == "request_too_large"


async def test_garbage_that_is_published_is_replaced_by_the_next_change(
    client: aiohttp.ClientSession, world: AdminWorld
) -> None:
    await world.services.store.publish("policy", b"[]")

    made = await put(client, LOCAL)

    assert made["published_version"] == 2
    assert len((await read(client))["history"]) == 1


async def test_the_plan_is_shown_as_policies_see_it(
    client: aiohttp.ClientSession, world: AdminWorld
) -> None:
    assert await read(client, "/admin/v1/plan") == {"plan": None}

    plan = Plan(
        version=7,
        author="west/router-1",
        threshold_tokens={"east>west": 19_400.0},
        is_complete=False,
        gap=0.07,
    )
    world.tracker.follow_plan(plan)

    said = await read(client, "/admin/v1/plan")
    assert (said["plan"]["is_complete"], said["plan"]["gap"]) == (False, 0.07)
    assert said["plan"]["version"] == 7
    assert said["plan"]["threshold_tokens"] == {"east>west": 19_400.0}
