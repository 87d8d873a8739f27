"""`prfaas replay`: what it prints and writes, and that wrong input writes nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from controlplane.cli import main

FLEET = Path(__file__).parents[4] / "benchmarks" / "results" / "case_study.toml"
TRACE = "synthetic:rate=2,requests=60,output=16"


def run(*arguments: str | Path, trace: str = TRACE, fleet: Path = FLEET) -> Result:
    return CliRunner().invoke(main, ["replay", trace, "--fleet", str(fleet), *map(str, arguments)])


def test_it_compares_policies_in_a_table() -> None:
    result = run("--policy", "local_only", "--policy", "prfaas:threshold_tokens=20000")
    assert result.exit_code == 0, result.output
    for said in ("local_only", "60 of 60", "TTFT p50 / p90 / p99", "prefix hits", "east>west"):
        assert said in result.output


def test_json_has_every_figure_of_every_policy(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    assert run("--policy", "local_only", "--slo-ttft", "9", "--json", path).exit_code == 0
    (policy,) = json.loads(path.read_text())["policies"]
    wanted = (
        "throughput_per_s goodput_per_s ttft_s tpot_s prefix_hit_ratio offloaded links roles digest"
    )
    assert set(wanted.split()) <= set(policy)
    assert set(policy["ttft_s"]) == {"mean", "p50", "p90", "p99"}
    figures = {"bytes_total", "utilisation", "egress_cost"}
    assert policy["links"]["east>west"].keys() == figures


class References(HTMLParser):
    """Everything a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.charts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.charts += tag == "svg"
        names = {"src", "href", "xlink:href"}
        self.found += [str(value) for name, value in attrs if name in names]
        assert tag not in {"script", "link", "img", "iframe"}


def test_the_report_has_charts_and_loads_nothing(tmp_path: Path) -> None:
    path = tmp_path / "out.html"
    assert run("--policy", "local_only", "--policy", "prfaas", "--html", path).exit_code == 0
    page = References()
    page.feed(path.read_text())
    assert page.charts >= 6
    assert page.found == []
    assert "http" not in path.read_text()


def figures(tmp_path: Path, hash_seed: str) -> dict[str, Any]:
    path = tmp_path / f"{hash_seed}.json"
    command = [
        sys.executable, "-m", "controlplane.cli", "replay", TRACE, "--fleet", str(FLEET),
        "--policy", "power_of_two", "--seed", "3", "--json", str(path),
    ]  # fmt: skip
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_one_seed_has_one_result_in_every_process(tmp_path: Path) -> None:
    assert figures(tmp_path, "1") == figures(tmp_path, "2")


STEPS = '[[steps]]\nat_s = 1\nlink = "{link}"\ncapacity_gbit_per_s = {capacity}\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (STEPS.format(link="east>north", capacity=1), "link 'east>north' is not in the fleet"),
        (STEPS.format(link="east>west", capacity=-1), "capacity_gbit_per_s"),
        (STEPS.format(link="east>west", capacity='"fast"'), "capacity_gbit_per_s"),
        ("[[steps]]\nat_s = 1\n", "link"),
        ("[[losses]]\nat_s = 1\nworkers = ['east/p9']\n", "worker 'east/p9' is not in the fleet"),
        ("[[steps]\n", "not valid TOML"),
    ],
)
def test_a_wrong_file_of_changes_is_refused(tmp_path: Path, text: str, said: str) -> None:
    steps, out = tmp_path / "steps.toml", tmp_path / "out.json"
    steps.write_text(text)
    result = run("--policy", "local_only", "--link-steps", steps, "--json", out)
    assert result.exit_code == 2
    assert said in result.output
    assert not out.exists()


def test_changes_of_links_and_workers_are_replayed(tmp_path: Path) -> None:
    steps = tmp_path / "steps.toml"
    steps.write_text(
        STEPS.format(link="east>west", capacity=0.5)
        + '[[losses]]\nat_s = 5\nworkers = ["west/p1"]\nback_after_s = 5\n'
    )
    result = run("--policy", "prfaas", "--link-steps", steps)
    assert result.exit_code == 0, result.output
    assert "60 of 60" in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--policy", "best"), "unknown policy 'best'; installed are"),
        (("--policy", "prfaas:threshold=1"), "threshold"),
        (("--policy", "local_only", "--roles", "west=9/9"), "roles 9/9 are for 18"),
        (("--policy", "local_only", "--roles", "west"), "is not DATACENTER=PREFILL/DECODE"),
        (("--policy", "local_only", "--roles", "west=8/0"), "no worker has the role 'decode'"),
        (("--policy", "local_only", "--home", "north"), "datacenter 'north' is not one of"),
        (("--policy", "local_only", "--speed", "0"), "--speed"),
    ],
)
def test_wrong_options_are_refused(arguments: tuple[str, ...], said: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert said in result.output.replace("\n", " ")


def test_a_wrong_fleet_is_refused_with_its_file_and_field(tmp_path: Path) -> None:
    fleet = tmp_path / "fleet.toml"
    fleet.write_text(
        re.sub(r"capacity_gbit_per_s = 100.0", "capacity_gbit_per_s = -1", FLEET.read_text())
    )
    result = run("--policy", "local_only", fleet=fleet)
    assert result.exit_code == 2
    assert f"{fleet}" in result.output
    assert "capacity_gbit_per_s" in result.output


def test_a_trace_that_breaks_off_writes_nothing(tmp_path: Path) -> None:
    trace, out = tmp_path / "t.jsonl", tmp_path / "out.json"
    row = {"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [1, 2]}
    trace.write_text(f"{json.dumps(row)}\n{json.dumps(row | {'timestamp': 9000})}\nbroken\n")
    result = run("--policy", "local_only", "--json", out, trace=str(trace))
    assert result.exit_code == 2
    assert f"{trace}, line 3" in result.output
    assert not out.exists()
    assert list(tmp_path.iterdir()) == [trace]
