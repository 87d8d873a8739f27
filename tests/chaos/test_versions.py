"""The version before this one can be had and started, where the repository's history is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.plant import Topology
from chaos.processes import Command
from chaos.versions import NoHistoryError, as_previous, previous_commit, unpack_previous
from controlplane.config import FleetConfig, LimitsConfig


def test_a_process_of_the_previous_version_would_run_its_code(tmp_path: Path) -> None:
    """Not what is installed, and not what lies in the folder it is started in."""
    try:
        previous_commit()
    except NoHistoryError as error:
        pytest.skip(f"versions are mixed nowhere in this run: {error}")

    root = unpack_previous(tmp_path / "previous")

    assert (root / "controlplane" / "cli").is_dir()
    assert (root / "tests" / "chaos_worker.py").is_file()


def test_it_is_told_what_differs_from_the_defaults_alone(tmp_path: Path) -> None:
    """What came later is unknown to it: a field has a default, a parameter is left out."""
    fleet = Topology(limits=LimitsConfig(request_timeout_s=55.0)).fleet()
    new = Command(
        name="router-0",
        argv=("python",),
        first_line=fleet.model_dump_json().encode() + b"\n",
        environment={"PYTHONPATH": "tests", "REDIS_URL": "redis://x"},
    )

    old = as_previous(new, tmp_path)

    told = FleetConfig.model_validate_json(old.first_line)
    assert told.router.policy_parameters == {"threshold_tokens": 96}
    assert told.model_copy(update={"router": fleet.router}) == fleet
    assert b'"limits":{"request_timeout_s":55.0}' in old.first_line
    assert old.environment["PYTHONPATH"].startswith(f"{tmp_path}:")
    assert old.environment["REDIS_URL"] == "redis://x"
