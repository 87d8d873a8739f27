from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from throughput_builders import a_traffic, the_case_study

from controlplane.cli.plan import plan
from controlplane.cli.plan_output import how_sure
from controlplane.domain.throughput.solve import solve

EXAMPLES = Path(__file__).parents[4] / "examples/case-study"


def run(*arguments: str, fleet: Path | None = None, traffic: Path | None = None) -> Result:
    return CliRunner().invoke(
        plan,
        [
            "--fleet",
            str(fleet or EXAMPLES / "fleet.toml"),
            "--traffic",
            str(traffic or EXAMPLES / "traffic.toml"),
            *arguments,
        ],
        prog_name="prfaas plan",
    )


def answered(*arguments: str, **files: Path) -> Any:
    result = run("--json", *arguments, **files)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def edited(tmp_path: Path, name: str, *changes: tuple[str, str]) -> Path:
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_it_answers_the_case_study_for_people() -> None:
    result = run()

    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    for expected in (
        "case-study takes 3.2 requests/s; 2 requests/s arrive, 62% of that.",
        "Limited by prefill prfaas/H200, prefill local/H20.",
        "prfaas>local above 19.6K 12.2 Gbit/s 100 Gbit/s 12%",
        "local H20 3 5",
        "one more H200 in prfaas",
        "one more H20 in local",
        "twice prfaas>local",
    ):
        assert expected in said


def test_an_answer_whose_work_ended_early_says_how_far_the_best_may_be() -> None:
    found = solve(the_case_study(), a_traffic())
    assert how_sure(found) == ""

    early = replace(found, bound_per_s=found.throughput_per_s / 0.93, is_complete=False)
    assert how_sure(early) == "Stopped early: at most 7 % below the best there may be."
    loose = replace(early, is_complete=True)
    assert how_sure(loose) == "Solved to the end: at most 7 % below the best there may be."


def test_a_machine_reads_how_sure_the_answer_and_each_change_are() -> None:
    said = answered()

    assert said["is_complete"] is True
    assert said["gap"] == pytest.approx(1 - said["throughput_per_s"] / said["bound_per_s"])
    assert all(change["is_complete"] and change["gap"] < 0.01 for change in said["changes"])


def test_it_answers_in_the_form_of_the_paper() -> None:
    found = answered("--form", "mean-length")

    assert found["throughput_per_s"] == pytest.approx(3.24, rel=0.015)
    assert found["threshold_tokens"]["prfaas>local"] == pytest.approx(19_400, rel=0.02)
    assert found["roles"]["local"] == {
        "prefill_workers": 3,
        "decode_workers": 5,
        "lent_workers": 0.0,
    }


def test_it_says_what_more_of_anything_brings() -> None:
    changes = {change["what"]: change for change in answered()["changes"]}

    assert changes["one more H200 in prfaas"]["gain"] > changes["one more H20 in local"]["gain"] > 0
    assert changes["twice prfaas>local"]["gain"] == pytest.approx(0, abs=1e-4)


def test_a_link_that_binds_is_worth_doubling(tmp_path: Path) -> None:
    narrow = edited(
        tmp_path, "fleet.toml", ("capacity_gbit_per_s = 100", "capacity_gbit_per_s = 5")
    )

    found = answered(fleet=narrow)

    changes = {change["what"]: change for change in found["changes"]}
    assert found["bottleneck"] == "link"
    assert changes["twice prfaas>local"]["gain"] > 0.3
    assert changes["twice prfaas>local"]["threshold_tokens"]["prfaas>local"] < 30_000


def test_cost_counts_workers_and_what_leaves(tmp_path: Path) -> None:
    """16 H20-hours, and 12.2 Gbit/s at 0.01 per GB."""
    dear = edited(tmp_path, "fleet.toml", ("price_per_gb = 0\n", "price_per_gb = 0.01\n"))

    cost = answered(fleet=dear)["cost_at_saturation"]

    assert cost["workers_per_hour"] == 16
    assert cost["egress_per_hour"] == pytest.approx(12.19 / 8 * 0.01 * 3600, rel=0.01)
    tokens_per_hour = 3.2 * 3600 * (27_313 + 1024)
    assert cost["per_million_tokens"] == pytest.approx(
        (16 + cost["egress_per_hour"]) / tokens_per_hour * 1e6, rel=0.01
    )


def test_an_overload_is_said(tmp_path: Path) -> None:
    busy = edited(tmp_path, "traffic.toml", ("arrival_per_s = 2.0", "arrival_per_s = 4.0"))

    result = run(traffic=busy)

    assert result.exit_code == 0
    assert "25% more than that: too many" in " ".join(result.output.split())
    assert answered(traffic=busy)["cost_at_arrival"] is None


def test_cached_tokens_are_not_prefilled(tmp_path: Path) -> None:
    """Half of each prompt cached: more fits, but less than twice, for a prefix is attended to."""
    half = edited(tmp_path, "traffic.toml", ("cached_share = 0.0", "cached_share = 0.5"))

    gain = answered(traffic=half)["throughput_per_s"] / answered()["throughput_per_s"]
    assert 1.2 < gain < 2


def test_lengths_come_from_a_trace(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 500 * n, "input_length": 1000 * (1 + n % 40), "output_length": 300}
        | {"hash_ids": []}
        for n in range(200)
    ]
    for row in rows:
        row["hash_ids"] = [*range(-(-row["input_length"] // 512))]
    trace = tmp_path / "trace.jsonl"
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    traffic = tmp_path / "traffic.toml"
    traffic.write_text(
        '[lengths]\ndistribution = "empirical"\ntrace = "trace.jsonl"\n', encoding="utf-8"
    )

    found = answered(traffic=traffic)

    assert found["arrival_per_s"] == pytest.approx(2, rel=0.02)
    assert 4000 < found["threshold_tokens"]["prfaas>local"] < 40_000


def test_a_trace_that_is_broken_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "trace.jsonl").write_text(
        '{"timestamp": 0, "input_length": -5, "output_length": 3, "hash_ids": []}\n',
        encoding="utf-8",
    )
    traffic = tmp_path / "traffic.toml"
    traffic.write_text(
        '[lengths]\ndistribution = "empirical"\ntrace = "trace.jsonl"\n', encoding="utf-8"
    )

    result = run(traffic=traffic)

    assert result.exit_code == 2
    assert "trace.jsonl, line 1, input_length" in result.stderr


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        (
            "fleet.toml",
            "workers = 4",
            "workers = -4",
            "fleet.toml:27: datacenters.0.groups.0.workers: ",
        ),
        ("traffic.toml", "sigma = 1.00", "sigma = -1.00", "lengths.sigma"),
        ("traffic.toml", "[lengths]", "[shares]\nmars = 1\n[lengths]", "no such datacenter"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, name: str, old: str, new: str, said: str) -> None:
    path = edited(tmp_path, name, (old, new))

    result = run(**{name.removesuffix(".toml"): path})

    assert result.exit_code == 2
    assert said in result.stderr
    assert not result.stdout


def test_a_fleet_that_cannot_serve_is_explained(tmp_path: Path) -> None:
    """Nothing decodes."""
    path = edited(tmp_path, "fleet.toml", ('role = "either"', 'role = "prefill"'))

    result = run(fleet=path)

    assert result.exit_code == 1
    assert "no datacenter has a worker that can decode" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("suffix", "begins"), [(".png", b"\x89PNG"), (".svg", b"<?xml")], ids=["png", "svg"]
)
def test_it_draws_the_answer(tmp_path: Path, suffix: str, begins: bytes) -> None:
    path = tmp_path / f"plan{suffix}"

    result = run("--plot", str(path))

    assert result.exit_code == 0, result.output
    assert path.read_bytes().startswith(begins)
    assert path.stat().st_size > 10_000


def test_it_says_how_to_get_what_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)

    result = run("--plot", str(tmp_path / "plan.png"))

    assert result.exit_code == 1
    assert "pip install 'prfaas[plot]'" in result.stderr
    assert not (tmp_path / "plan.png").exists()


def test_it_draws_into_files_it_knows(tmp_path: Path) -> None:
    result = run("--plot", str(tmp_path / "plan.gif"))

    assert result.exit_code == 2
    assert ".png or .svg" in result.stderr


def test_a_plot_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    result = run("--plot", str(tmp_path / "nowhere/plan.png"))

    assert result.exit_code == 1
    assert "cannot write" in result.stderr
