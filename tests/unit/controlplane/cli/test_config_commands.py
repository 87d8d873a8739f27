from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner, Result
from fleets import to_toml

from controlplane.cli.config_commands import config
from controlplane.config import DEFAULT_FLEET, FleetConfig


def run(*arguments: str) -> Result:
    return CliRunner().invoke(config, arguments, prog_name="prfaas config")


def a_file(tmp_path: Path, *, old: str = "", new: str = "") -> str:
    path = tmp_path / "fleet.toml"
    text = to_toml(DEFAULT_FLEET)
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return str(path)


def test_a_right_file_is_told_in_short(tmp_path: Path) -> None:
    result = run("check", a_file(tmp_path))

    assert result.exit_code == 0, result.output
    assert "is right: local with east (2 prefill, 0 decode)" in result.stdout
    assert "1 link, policy prfaas" in result.stdout


def test_a_wrong_field_is_named(tmp_path: Path) -> None:
    result = run("check", a_file(tmp_path, old="prefill_workers = 2", new="prefill_workers = -2"))

    assert result.exit_code == 2
    assert "prefill_workers" in result.stderr


def test_a_policy_that_is_not_installed_is_named(tmp_path: Path) -> None:
    result = run("check", a_file(tmp_path, old='policy = "prfaas"', new='policy = "best"'))

    assert result.exit_code == 2
    assert "router.policy" in result.stderr


def test_a_fleet_is_shown_with_its_defaults_and_without_its_secrets(tmp_path: Path) -> None:
    path = a_file(tmp_path, old='tenant_salt = "local"', new='tenant_salt = "a secret"')

    result = run("show", "--fleet", path)

    shown = json.loads(result.stdout)
    assert shown["kv"]["lease_s"] == 30
    assert shown["router"]["tenant_salt"] == "(hidden)"
    assert "a secret" not in result.output


def test_the_schema_is_that_of_fleet_files() -> None:
    result = run("schema")

    assert json.loads(result.stdout) == FleetConfig.model_json_schema()
