from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest
from admin_world import DIGITS, AdminWorld, a_record, an_admin, an_attempt
from builders import a_beat, a_view, a_worker

from controlplane.admin import decisions
from controlplane.admin.problems import PROBLEM_CONTENT_TYPE
from controlplane.router.records import DecisionRecord, decode_record, replay
from controlplane.store.api import StoreSnapshot
from controlplane.wire import Inventory, LinkReport, Load, WorkerBeat

pytestmark = pytest.mark.usefixtures("world")

Client = aiohttp.ClientSession


async def ask(client: Client, path: str) -> dict[str, Any]:
    async with client.get(path) as answer:
        assert answer.status == 200, await answer.text()
        assert answer.content_type == "application/json"
        body: dict[str, Any] = await answer.json()
        return body


async def refused(client: Client, path: str, status: int, method: str = "GET") -> dict[str, Any]:
    """The problem document of an answer, its form checked."""
    async with client.request(method, path) as answer:
        assert answer.status == status, await answer.text()
        assert answer.content_type == PROBLEM_CONTENT_TYPE
        problem: dict[str, Any] = await answer.json(content_type=PROBLEM_CONTENT_TYPE)
        assert problem["status"] == status
        assert problem["type"] == f"urn:prfaas:error:{problem['code']}"
        assert problem["title"]
        assert problem["detail"]
        return problem


def hear(world: AdminWorld, *beats: WorkerBeat) -> None:
    """The view of the router becomes these workers."""
    world.tracker.apply_snapshot(
        StoreSnapshot(beats=beats, loads={}, link_reserved_bytes={}, cursor="0-0")
    )


def some_records(count: int) -> list[DecisionRecord]:
    return [a_record(digits=f"{number:024x}") for number in range(count)]


# --- State ------------------------------------------------------------------------------------


async def test_state_is_there_before_any_worker(client: Client) -> None:
    state = await ask(client, "/admin/v1/state")

    assert [site["name"] for site in state["datacenters"]] == ["east", "west"]
    assert state["store"] == {"status": "away"}
    assert state["router"]["requests_max"] == 1024


async def test_state_shows_what_workers_said(world: AdminWorld, client: Client) -> None:
    blocks = Inventory(is_full=True, stored={"aa" * 16: "as", "bb" * 16: "a"})
    hear(world, a_beat("west/p1", load=Load(kv_bytes=777, queue_tokens=42), inventory=blocks))

    state = await ask(client, "/admin/v1/state")

    (worker,) = state["datacenters"][1]["workers"]
    assert (worker["held_blocks"], worker["kv_bytes"], worker["pending_tokens"]) == (2, 777, 42)
    assert worker["incarnation"] == "i1"
    assert state["store"] == {"status": "ok"}


async def test_state_shows_bytes_and_utilisation_of_links(
    world: AdminWorld, client: Client
) -> None:
    def beat(sequence: int, bytes_total: int) -> WorkerBeat:
        report = LinkReport(from_datacenter="east", to_datacenter="west", bytes_total=bytes_total)
        return a_beat("west/d1", sequence=sequence, links=(report,))

    hear(world, beat(1, 1_000_000))
    await ask(client, "/admin/v1/state")
    world.clock.now_s += 2
    hear(world, beat(2, 1_500_000))

    (link,) = (await ask(client, "/admin/v1/state"))["links"]

    assert (link["bytes_total"], link["egress_bps"]) == (1_500_000, 2e6)
    assert link["utilisation_ratio"] == 0.25


async def test_state_names_the_policy_with_all_its_parameters(
    world: AdminWorld, client: Client
) -> None:
    world.services.policy_parameters = {}

    policy = (await ask(client, "/admin/v1/state"))["policy"]

    assert (policy["name"], policy["version"], policy["shadows"]) == ("prfaas", 0, [])
    assert policy["parameters"]["threshold_tokens"] == 512


async def test_state_counts_requests_in_flight(world: AdminWorld, client: Client) -> None:
    world.services.metrics.requests_in_flight.inc(3)

    state = await ask(client, "/admin/v1/state")

    assert state["router"]["requests_in_flight"] == 3


async def test_state_says_that_the_store_is_away(world: AdminWorld, client: Client) -> None:
    hear(world, a_beat())
    world.tracker.store_lost()
    world.clock.now_s += 7

    state = await ask(client, "/admin/v1/state")

    assert state["store"] == {"status": "away"}
    assert state["view"]["age_s"] == 7


# --- The list of decisions --------------------------------------------------------------------


async def test_decisions_are_listed_newest_first(world: AdminWorld, client: Client) -> None:
    await world.keep(*some_records(3))

    body = await ask(client, "/admin/v1/decisions")

    ids = [row["decision_id"] for row in body["decisions"]]
    assert ids == [f"dec-{number:024x}" for number in (2, 1, 0)]
    assert (body["source"], body["next"], body["unreadable"]) == ("store", None, 0)


async def test_a_row_has_what_a_list_shows(world: AdminWorld, client: Client) -> None:
    await world.keep(a_record(client_request_id="mine"))

    (row,) = (await ask(client, "/admin/v1/decisions"))["decisions"]

    assert row == {
        "decision_id": f"dec-{DIGITS}",
        "request_id": f"req-{DIGITS}",
        "client_request_id": "mine",
        "router": "west/router-1",
        "at": 1_760_000_000.25,
        "kind": "chat",
        "model": "m",
        "is_stream": True,
        "outcome": "done",
        "code": "ok",
        "attempts": 1,
        "policy": "prfaas",
        "reason": "uncached_over_threshold",
        "input_tokens": 101,
        "uncached_tokens": 100,
        "prefill_worker": "east/p1",
        "prefill_datacenter": "east",
        "decode_worker": "west/d1",
        "decode_datacenter": "west",
        "is_offloaded": True,
        "predicted_ttft_s": pytest.approx(0.18),
        "ttft_s": 0.23,
        "e2e_s": 0.7,
        "transfer_bytes": 150_000,
        "egress_bytes": 150_000,
        "output_tokens": 12,
    }


async def test_a_local_request_has_no_egress(world: AdminWorld, client: Client) -> None:
    await world.keep(a_record(an_attempt(input_tokens=20)))

    (row,) = (await ask(client, "/admin/v1/decisions"))["decisions"]

    assert (row["transfer_bytes"], row["egress_bytes"]) == (150_000, 0)


async def test_a_request_without_a_decision_is_listed_too(
    world: AdminWorld, client: Client
) -> None:
    await world.keep(a_record(attempts=(), outcome="failed", code="internal_error", report=None))

    (row,) = (await ask(client, "/admin/v1/decisions"))["decisions"]

    assert (row["outcome"], row["prefill_worker"], row["reason"]) == ("failed", None, None)


@pytest.mark.parametrize("is_away", [False, True], ids=["store", "memory"])
async def test_pages_follow_each_other_without_gap_or_overlap(
    world: AdminWorld,
    client: Client,
    is_away: bool,  # noqa: FBT001 - a table
) -> None:
    await world.keep(*some_records(7))
    if is_away:
        await world.store.close()

    seen: list[str] = []
    path: str | None = "/admin/v1/decisions?limit=3"
    while path is not None:
        body = await ask(client, path)
        seen += [row["decision_id"] for row in body["decisions"]]
        path = body["next"] and f"/admin/v1/decisions?limit=3&before={body['next']}"

    assert seen == [f"dec-{number:024x}" for number in range(6, -1, -1)]


async def test_without_the_store_the_routers_memory_is_listed_and_said(
    world: AdminWorld, client: Client
) -> None:
    await world.keep(*some_records(2))
    await world.store.close()

    body = await ask(client, "/admin/v1/decisions")

    assert (body["source"], len(body["decisions"])) == ("router_memory", 2)
    assert "store_unavailable" in body["detail"]


@pytest.mark.parametrize("is_away", [False, True], ids=["store", "memory"])
async def test_nothing_is_older_than_a_decision_that_is_not_kept_any_more(
    world: AdminWorld,
    client: Client,
    is_away: bool,  # noqa: FBT001 - a table
) -> None:
    await world.keep(*some_records(2))
    if is_away:
        await world.store.close()

    body = await ask(client, f"/admin/v1/decisions?before=dec-{'f' * 24}")

    assert (body["decisions"], body["next"]) == ([], None)


async def test_a_record_that_cannot_be_read_is_counted_and_hides_no_other(
    world: AdminWorld, client: Client
) -> None:
    first, second = some_records(2)
    await world.keep(first)
    await world.store.finish([(None, "dec-future", b'{"version": 2}')])
    await world.keep(second)

    body = await ask(client, "/admin/v1/decisions")

    assert (len(body["decisions"]), body["unreadable"]) == (2, 1)


async def test_a_list_that_is_asked_for_again_has_the_same_rows(
    world: AdminWorld, client: Client
) -> None:
    await world.keep(*some_records(2))
    first = await ask(client, "/admin/v1/decisions")

    assert await ask(client, "/admin/v1/decisions") == first


async def test_rows_that_are_remembered_are_bounded(
    world: AdminWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decisions, "_ROWS_MAX", 2)
    await world.keep(*some_records(5))
    log = decisions.DecisionLog(world.recorder, world.store)

    page = await log.page(limit=5, before=None)

    assert len(page.decisions) == 5
    assert len(log._rows) == 2


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=501", "limit"),
        ("limit=-1", "limit"),
        ("limit=ten", "limit"),
        ("limit=1e2", "limit"),
        ("limit=%D9%A3", "limit"),
        ("limit=" + "9" * 300, "limit"),
        ("limit=", "limit"),
        ("limit=5&limit=6", "limit"),
        ("before=", "before"),
        ("before=17-0", "before"),
        ("before=dec-0123456789abcdef%0a", "before"),
        ("before=%3Cscript%3E", "before"),
        ("before=%FF%FE", "before"),
        ("befor=dec-1", "befor"),
        ("%ED%A0%80=1", "\ufffd\ufffd\ufffd"),
    ],
)
async def test_a_wrong_parameter_is_named(client: Client, query: str, param: str) -> None:
    async with aiohttp.ClientSession() as plain:
        url = f"{client._base_url}/admin/v1/decisions?{query}".replace("//admin", "/admin")
        async with plain.get(aiohttp.client.URL(url, encoded=True)) as answer:
            problem = await answer.json(content_type=PROBLEM_CONTENT_TYPE)

    assert (answer.status, problem["param"]) == (400, param)


@pytest.mark.parametrize("limit", [1, 500])
async def test_the_ends_of_the_range_are_allowed(client: Client, limit: int) -> None:
    await ask(client, f"/admin/v1/decisions?limit={limit}")


# --- One decision -----------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["dec", "req", "chatcmpl", "cmpl"])
async def test_any_id_of_a_request_finds_its_decision(
    world: AdminWorld, client: Client, prefix: str
) -> None:
    await world.keep(a_record())

    body = await ask(client, f"/admin/v1/decisions/{prefix}-{DIGITS}")

    assert body["decision_id"] == f"dec-{DIGITS}"


async def test_an_answer_is_the_record_and_replays_to_itself(
    world: AdminWorld, client: Client
) -> None:
    await world.keep(a_record())

    async with client.get(f"/admin/v1/decisions/dec-{DIGITS}") as answer:
        record = decode_record(await answer.read())

    assert record == a_record()
    assert replay(record.attempts[0]) == record.attempts[0].decision


async def test_an_answer_explains_itself(world: AdminWorld, client: Client) -> None:
    await world.keep(a_record())

    body = await ask(client, f"/admin/v1/decisions/dec-{DIGITS}")

    assert body["explanation"].startswith("Prefilled in east by east/p1")
    assert body["candidates"][0]["verdict"] == "chosen"
    assert body["phases"][0]["name"] == "parse"


async def test_memory_is_asked_before_the_store(world: AdminWorld, client: Client) -> None:
    await world.keep(a_record())
    await world.store.close()

    body = await ask(client, f"/admin/v1/decisions/req-{DIGITS}")

    assert body["source"] == "router_memory"


async def test_what_memory_has_forgotten_is_in_the_store() -> None:
    async with an_admin(recent_max=1) as world, aiohttp.ClientSession(world.url) as client:
        await world.keep(*some_records(2))

        body = await ask(client, f"/admin/v1/decisions/dec-{0:024x}")

    assert (body["source"], body["request_id"]) == ("store", f"req-{0:024x}")


async def test_an_unknown_decision_is_not_found(client: Client) -> None:
    problem = await refused(client, f"/admin/v1/decisions/req-{DIGITS}", 404)

    assert problem["code"] == "unknown_decision"


async def test_a_record_of_another_version_is_not_found_and_says_why(
    world: AdminWorld, client: Client
) -> None:
    await world.store.finish([(None, f"dec-{DIGITS}", b'{"version": 2}')])

    problem = await refused(client, f"/admin/v1/decisions/dec-{DIGITS}", 404)

    assert "another" not in problem["code"]
    assert "version" in problem["detail"]


async def test_a_decision_cannot_be_denied_while_the_store_is_away(
    world: AdminWorld, client: Client
) -> None:
    await world.store.close()

    problem = await refused(client, f"/admin/v1/decisions/dec-{DIGITS}", 503)

    assert problem["code"] == "store_unavailable"


@pytest.mark.parametrize(
    "hostile",
    [
        "x",
        "dec-",
        "dec-UPPER0123456789",
        "dec-0123456789abcdef'%20OR%201=1",
        "dec-" + "a" * 65,
        "dec-0123456789abcdef%00",
        "dec-0123456789abcdef%0A",
        "..%2F..%2Fetc%2Fpasswd",
        "%3Cscript%3Ealert(1)%3C%2Fscript%3E",
        "%FF%FE%ED%A0%80",
        "%F0%9F%92%A5",
        "a" * 4000,
    ],
)
async def test_a_hostile_path_is_not_found(world: AdminWorld, hostile: str) -> None:
    async with aiohttp.ClientSession() as client:
        for route in ("/admin/v1/decisions/", "/decisions/", "/static/", "/"):
            url = aiohttp.client.URL(world.url + route + hostile, encoded=True)
            async with client.get(url) as answer:
                problem = await answer.json(content_type=PROBLEM_CONTENT_TYPE)

            assert (answer.status, problem["status"]) == (404, 404)
            assert len(problem["detail"]) < 500


async def test_a_decision_takes_no_parameters(world: AdminWorld, client: Client) -> None:
    await world.keep(a_record())

    problem = await refused(client, f"/admin/v1/decisions/dec-{DIGITS}?full=1", 400)

    assert problem["param"] == "full"


# --- The rest ---------------------------------------------------------------------------------


async def test_an_unknown_route_is_a_problem_document(client: Client) -> None:
    problem = await refused(client, "/admin/v2/state", 404)

    assert (problem["code"], problem["instance"]) == ("unknown_route", "/admin/v2/state")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_only_get_exists(client: Client, method: str) -> None:
    problem = await refused(client, "/admin/v1/state", 405, method)

    assert problem["code"] == "method_not_allowed"


async def test_a_refused_method_says_which_ones_there_are(client: Client) -> None:
    async with client.post("/health") as answer:
        assert answer.headers["Allow"] == "GET, HEAD"


async def test_a_body_is_refused_unread_and_its_connection_closed(world: AdminWorld) -> None:
    host, port = world.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n")

    answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()

    writer.close()
    assert answer.startswith("http/1.1 405 ")
    assert "connection: close" in answer


async def test_health_says_that_the_process_answers(client: Client) -> None:
    assert await ask(client, "/health") == {"status": "ok"}


async def test_metrics_show_the_view_of_now(world: AdminWorld, client: Client) -> None:
    hear(world, a_beat("west/p1", load=Load(queue_tokens=42)), a_beat("west/d1"))
    world.clock.now_s += 3

    async with client.get("/metrics") as answer:
        lines = (await answer.text()).splitlines()

    assert answer.headers["Content-Type"].startswith("text/plain")
    assert 'prfaas_workers{dc="west",role="prefill"} 1.0' in lines
    assert 'prfaas_queue_depth_tokens{dc="west",role="prefill"} 42.0' in lines
    assert "prfaas_view_age_seconds 3.0" in lines


async def test_a_datacenter_that_lost_its_workers_is_zero_in_the_metrics(
    world: AdminWorld, client: Client
) -> None:
    hear(world, a_beat("east/p1"))
    async with client.get("/metrics") as answer:
        await answer.read()
    world.tracker.forget_incarnation("east/p1", "i1")

    async with client.get("/metrics") as answer:
        lines = (await answer.text()).splitlines()

    assert 'prfaas_workers{dc="east",role="prefill"} 0.0' in lines


async def test_metrics_show_links(world: AdminWorld, client: Client) -> None:
    report = LinkReport(from_datacenter="east", to_datacenter="west", goodput_bps=6e6)
    hear(world, a_beat("west/d1", links=(report,)))

    async with client.get("/metrics") as answer:
        lines = (await answer.text()).splitlines()

    assert 'prfaas_link_goodput_bits_per_second{from_dc="east",to_dc="west"} 6e+06' in lines


@pytest.mark.parametrize("path", ["/", "/admin/v1/state", "/metrics", "/nowhere"])
async def test_every_answer_forbids_what_a_page_does_not_need(client: Client, path: str) -> None:
    async with client.get(path) as answer:
        policy = answer.headers["Content-Security-Policy"]

    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "unsafe" not in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"


async def test_a_large_fleet_is_shown_whole(world: AdminWorld, client: Client) -> None:
    hear(world, *(a_beat(f"west/p{number}") for number in range(200)))

    state = await ask(client, "/admin/v1/state")

    assert len(state["datacenters"][1]["workers"]) == 200


async def test_a_decision_with_many_candidates_is_shown(world: AdminWorld, client: Client) -> None:
    view = a_view(*(a_worker(f"east/p{number}") for number in range(60)), a_worker("west/d1"))
    await world.keep(a_record(an_attempt(view)))

    body = await ask(client, f"/admin/v1/decisions/dec-{DIGITS}")

    assert len(body["candidates"]) == 32
