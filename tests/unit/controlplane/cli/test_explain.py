from __future__ import annotations

import asyncio
import io
import json
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from admin_world import DIGITS, AdminWorld, a_failed_record, a_record, an_admin, an_attempt
from aiohttp import web
from builders import a_view, a_worker
from click.testing import CliRunner, Result
from rich.console import Console

from controlplane.admin.explain import candidate_rows, sentence
from controlplane.admin.phases import phases
from controlplane.cli.explain import explain
from controlplane.cli.explain_output import Explained, print_explained
from controlplane.serving import listen


@pytest.fixture
async def world() -> AsyncIterator[AdminWorld]:
    async with an_admin() as running:
        yield running


async def run(*arguments: str, **environment: str) -> Result:
    """The command in a thread, as it has an event loop of its own."""
    return await asyncio.to_thread(
        CliRunner().invoke, explain, arguments, env=environment, prog_name="prfaas explain"
    )


def closed_url() -> str:
    """Where nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


async def test_it_says_why_and_shows_all_candidates(world: AdminWorld) -> None:
    await world.keep(a_record())

    result = await run(f"req-{DIGITS}", "--admin", world.url)

    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert said.startswith("Prefilled in east by east/p1 and decoded in west by west/d1")
    for expected in ("passed over, 70 ms faster", "Decode candidates", "150 kB", "first token"):
        assert expected in said


async def test_the_address_can_come_from_the_environment(world: AdminWorld) -> None:
    await world.keep(a_record())

    result = await run(f"dec-{DIGITS}", PRFAAS_ADMIN_URL=f"{world.url}/")

    assert result.exit_code == 0, result.output


async def test_attempts_have_tables_of_their_own(world: AdminWorld) -> None:
    await world.keep(
        a_record(an_attempt(ended_by="PrefillRefused"), an_attempt(excluded=("east/p1",)))
    )

    result = await run(f"req-{DIGITS}", "--admin", world.url)

    assert "Prefill candidates, attempt 1" in result.output
    assert "Prefill candidates, attempt 2" in result.output


async def test_a_request_without_a_decision_is_explained(world: AdminWorld) -> None:
    await world.keep(a_failed_record(attempts=()))

    result = await run(f"req-{DIGITS}", "--admin", world.url)

    assert result.exit_code == 0
    assert "It ended before anything was decided." in result.output


@pytest.mark.parametrize("width", [40, 80, 119, 120, 200])
async def test_nothing_is_cut_off_on_a_narrow_terminal(width: int) -> None:
    view = a_view(a_worker("east/p1"), a_worker("west/d1"), a_worker("west/p1", is_draining=True))
    record = a_record(an_attempt(view))
    console = Console(file=io.StringIO(), width=width)

    print_explained(
        Explained(
            request_id=record.request_id,
            source="store",
            explanation=sentence(record),
            candidates=candidate_rows(record),
            phases=phases(record),
        ),
        console,
    )

    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    said = " ".join(" ".join(lines).split())
    for expected in ("east/p1", "0.18 s", "150 kB", "draining", "it takes no new work"):
        assert expected in said


async def test_json_is_the_whole_answer(world: AdminWorld) -> None:
    await world.keep(a_record())

    result = await run(f"req-{DIGITS}", "--admin", world.url, "--json")

    body = json.loads(result.output)
    assert body["decision_id"] == f"dec-{DIGITS}"
    assert body["attempts"][0]["view"]["home_datacenter"] == "west"


async def test_text_of_others_does_not_steer_the_terminal(world: AdminWorld) -> None:
    await world.keep(a_failed_record(detail="\x1b[2Jgone [bold]now[/bold]"))

    result = await run(f"req-{DIGITS}", "--admin", world.url)

    assert "\x1b" not in result.output
    assert "gone [bold]now[/bold]" in result.output


async def test_an_unknown_decision_is_exit_status_1(world: AdminWorld) -> None:
    result = await run(f"req-{DIGITS}", "--admin", world.url)

    assert result.exit_code == 1
    assert f"not found: no decision dec-{DIGITS} is kept" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param((), id="no id"),
        pytest.param(("abc",), id="not an id"),
        pytest.param((f"req-{DIGITS}", "--admin", "localhost:8001"), id="no scheme"),
        pytest.param((f"req-{DIGITS}", "--nonsense"), id="unknown option"),
    ],
)
async def test_wrong_usage_is_exit_status_2(arguments: tuple[str, ...]) -> None:
    result = await run(*arguments)

    assert result.exit_code == 2


async def test_no_router_is_exit_status_3_and_says_what_to_do() -> None:
    url = closed_url()

    result = await run(f"req-{DIGITS}", "--admin", url)

    assert result.exit_code == 3
    assert f"no answer from the admin API at {url}" in result.stderr
    assert "--admin or PRFAAS_ADMIN_URL" in result.stderr


async def test_a_store_that_is_away_is_exit_status_3(world: AdminWorld) -> None:
    await world.store.close()

    result = await run(f"req-{DIGITS}", "--admin", world.url)

    assert result.exit_code == 3
    assert "the store is away" in result.stderr


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(web.Response(text="<html>"), id="a web site"),
        pytest.param(web.json_response({"hello": 1}), id="another API"),
        pytest.param(web.json_response([]), id="a list"),
        pytest.param(web.json_response({}, status=404), id="another API's 404"),
        pytest.param(web.Response(status=302, headers={"location": "/x"}), id="a redirect"),
    ],
)
async def test_another_server_is_exit_status_3(answer: web.Response) -> None:
    async def reply(_: web.Request) -> web.Response:
        return answer

    app = web.Application()
    app.router.add_get("/{path:.*}", reply)
    async with AsyncExitStack() as stack:
        url = await listen(stack, app, "127.0.0.1", 0)

        result = await run(f"req-{DIGITS}", "--admin", url)

    assert result.exit_code == 3
    assert "answered" in result.stderr
