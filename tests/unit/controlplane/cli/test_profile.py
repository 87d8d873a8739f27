"""The command, against a server that is a fake one; what it measures is tested with the measurements."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fakes.vllm import a_vllm

from controlplane.cli.profile import profile
from controlplane.profilefile import load_profile, shipped_profiles

QUICK = ("--lengths", "300,600", "--batch-max", "2", "--runs-max", "6", "--tolerance", "1")


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(profile, [*arguments], prog_name="prfaas profile")


async def run(*arguments: str, **settings: Any) -> Result:
    """In a thread: the command has an event loop of its own."""
    async with a_vllm(**settings) as fake:
        return await asyncio.to_thread(invoke, fake.url, *QUICK, *arguments)


@pytest.fixture
def out(tmp_path: Path) -> str:
    return str(tmp_path / "found.toml")


async def test_it_writes_a_profile_that_can_be_read_again(out: str, tmp_path: Path) -> None:
    result = await run("--out", out, "--name", "mine")

    assert result.exit_code == 0, result.output
    found = load_profile("found.toml", beside=tmp_path)
    assert (found.name, found.source) == ("mine", "measured")
    assert found.prefill is not None
    assert [tokens for tokens, _ in found.prefill.table] == [300, 600]
    assert f"written to {out}" in result.stdout


async def test_it_says_that_sizes_are_not_known(out: str) -> None:
    result = await run("--out", out)

    assert "How large KV is, is not known: say --config or --decode-url" in result.stdout


async def test_sizes_come_from_the_models_configuration(out: str, tmp_path: Path) -> None:
    config = {"num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2}
    text = json.dumps(config | {"head_dim": 64, "dtype": "bfloat16"})
    (tmp_path / "config.json").write_text(text, encoding="utf-8")

    result = await run("--out", out, "--config", str(tmp_path), "--json")

    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["model"]["kv_bytes_per_token"] == 4 * 2 * 2 * 64 * 2


async def test_it_compares_with_a_former_one(out: str) -> None:
    result = await run("--out", out, "--compare", "1t-hybrid-h200")

    assert result.exit_code == 0, result.output
    assert "prefill 600" in result.stdout
    assert "%" in result.stdout


async def test_it_draws(out: str, tmp_path: Path) -> None:
    plot = tmp_path / "found.svg"

    result = await run("--out", out, "--plot", str(plot))

    assert result.exit_code == 0, result.output
    assert "<svg" in plot.read_text(encoding="utf-8")


async def test_a_server_that_fails_leaves_no_file(out: str) -> None:
    result = await run("--out", out, status=500)

    assert result.exit_code == 1
    assert "answered 500" in result.stderr
    assert not Path(out).exists()  # noqa: ASYNC240 - nothing else runs


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("127.0.0.1:8000",), "is no http:// or https:// URL"),
        (("http://127.0.0.1:1", "--lengths", "1,x"), "whole numbers > 0"),
        (("http://127.0.0.1:1", "--plot", "x.pdf"), ".png or .svg"),
        (("http://127.0.0.1:1", "--compare", "nothing"), "nor a profile that ships"),
        (("http://127.0.0.1:1", "--config", "/nowhere"), "--config /nowhere"),
    ],
)
def test_wrong_usage_is_refused_with_what_was_expected(
    arguments: tuple[str, ...], said: str
) -> None:
    result = invoke(*arguments)

    assert result.exit_code == 2
    assert said in result.stderr


def test_a_server_that_is_not_there_is_a_failure() -> None:
    result = invoke("http://127.0.0.1:1")

    assert result.exit_code == 1
    assert "no connection to the engine server" in result.stderr


def test_it_lists_what_ships() -> None:
    result = invoke("--list")

    assert result.exit_code == 0
    assert all(name in result.stdout for name in shipped_profiles())
