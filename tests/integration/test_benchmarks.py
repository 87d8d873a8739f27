"""The benchmark runs to its end, and every cell of it is answered."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(180)
def test_the_short_benchmark_has_no_errors(tmp_path: Path) -> None:
    """One quick round: direct, bare proxy and prfaas in each cell."""
    report = tmp_path / "report.json"

    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--rounds", "1", "--json", str(report)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        timeout=170,
        check=False,
    )

    assert done.returncode == 0, done.stderr.decode()
    rows = json.loads(report.read_text())["rows"]
    assert {row["system"] for row in rows} == {"direct", "bare", "prfaas"}
    assert len({row["cell"] for row in rows}) == 8
    assert [row for row in rows if row["errors"] or not row["requests"]] == []


@pytest.mark.timeout(120)
def test_the_benchmark_of_the_view_runs_and_keeps_its_limit(tmp_path: Path) -> None:
    """A fleet of 100 workers for a second; the limit is that of a fleet ten times as large."""
    report = tmp_path / "report.json"

    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.view", "--workers", "100", "--blocks", "64"),
            *("--seconds", "2", "--json", str(report)),
        ],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        timeout=110,
        check=False,
    )

    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    figures = json.loads(report.read_text())
    assert figures["events"] > 50
    assert 0 < figures["total"] < figures["limit"] == 0.05


@pytest.mark.timeout(120)
def test_the_benchmark_of_links_moves_every_byte() -> None:
    """One slow link for a second, where namespaces can be made; loopback everywhere."""
    quick = ("--rates", "50", "--rtts", "10", "--runs", "1", "--seconds", "1")

    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.wan", *quick],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        timeout=110,
        check=False,
        text=True,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "GB/s a core of the reader" in done.stdout
    assert "while bytes" in done.stdout or "links: skipped" in done.stdout
