"""What the terminal shows of a fleet, from a real admin listener."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from importlib.metadata import version

import click
import pytest
from admin_world import AdminWorld, an_admin
from click.testing import CliRunner, Result

from controlplane.cli import main
from controlplane.cli.fleet_commands import links, status, top, workers
from controlplane.cli.policy_commands import policy


@pytest.fixture
async def world() -> AsyncIterator[AdminWorld]:
    async with an_admin() as running:
        yield running


async def run(command: click.Command, *arguments: str) -> Result:
    """The command in a thread, as it has an event loop of its own."""
    return await asyncio.to_thread(CliRunner().invoke, command, arguments, prog_name="prfaas")


def flat(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return " ".join(result.stdout.split())


async def test_the_status_says_what_decides_and_what_runs(world: AdminWorld) -> None:
    said = flat(await run(status, "--admin", world.url))

    for expected in ("requests run", "mode", "policy prfaas (version 0)", "plan", "west (home)"):
        assert expected in said


async def test_json_is_what_the_api_answers(world: AdminWorld) -> None:
    result = await run(status, "--admin", world.url, "--json")

    assert json.loads(result.stdout)["router"]["home_datacenter"] == "west"


async def test_links_have_their_budget(world: AdminWorld) -> None:
    assert "east>west" in flat(await run(links, "--admin", world.url))


async def test_workers_of_a_datacenter_that_is_not_there_are_refused(world: AdminWorld) -> None:
    result = await run(workers, "--admin", world.url, "--datacenter", "moon")

    assert result.exit_code == 1
    assert "there is no datacenter 'moon', but ['east', 'west']" in result.stderr


async def test_top_shows_everything_and_stops(world: AdminWorld) -> None:
    said = flat(await run(top, "--admin", world.url, "--seconds", "0.01"))

    for expected in ("requests run", "datacenter", "east>west", "worker"):
        assert expected in said


async def test_the_policy_is_shown_with_its_parameters(world: AdminWorld) -> None:
    said = flat(await run(policy, "--admin", world.url))

    assert said.startswith("prfaas, version 0 of the configuration")
    assert "threshold_tokens = " in said
    assert "installed: balanced_split" in said


async def test_the_policy_is_changed_and_its_history_says_by_whom(world: AdminWorld) -> None:
    changed = await run(
        policy, "--admin", world.url, "set", "static_threshold:threshold_tokens=900",
        "--shadow", "local_only", "--by", "ann", "--reason", "a try",
    )  # fmt: skip

    assert flat(changed) == "static_threshold decides, version 1"
    said = flat(await run(policy, "--admin", world.url))
    for expected in ("ann", "static_threshold", "a try"):
        assert expected in said


async def test_a_policy_that_is_not_installed_is_refused(world: AdminWorld) -> None:
    result = await run(policy, "--admin", world.url, "set", "best")

    assert result.exit_code == 1
    assert "best" in result.stderr


async def test_a_change_against_another_version_is_refused(world: AdminWorld) -> None:
    result = await run(policy, "--admin", world.url, "set", "local_only", "--expect", "7")

    assert result.exit_code == 1
    assert "version 0 is published, not 7" in result.stderr


async def test_a_parameter_without_a_value_is_wrong_usage(world: AdminWorld) -> None:
    result = await run(policy, "--admin", world.url, "set", "prfaas:threshold_tokens")

    assert result.exit_code == 2
    assert "'threshold_tokens' is not key=value" in result.stderr


@pytest.mark.parametrize("command", [status, workers, links, top, policy])
async def test_without_a_router_it_says_what_to_do(command: click.Command) -> None:
    result = await run(command, "--admin", "http://127.0.0.1:1")

    assert result.exit_code == 3
    assert "start a fleet with `prfaas up`" in result.stderr


def test_the_version_is_that_of_the_package() -> None:
    result = CliRunner().invoke(main, ["version"])

    assert result.stdout.strip() == version("prfaas")


def test_the_commands_are_those_of_the_program() -> None:
    assert {"status", "workers", "links", "top", "policy", "config"} <= set(main.commands)
