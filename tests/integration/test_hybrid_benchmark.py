"""The figures of hybrid networks: what is printed is what was measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs torch: make test-torch")


@pytest.mark.timeout(200)
def test_attention_grows_with_the_prompt_and_state_does_not(tmp_path: Path) -> None:
    report = tmp_path / "hybrid.json"

    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.hybrid", "--family", "qwen3_next"),
            *("--size", "small", "--json", str(report)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    lengths = json.loads(report.read_text(encoding="utf-8"))["lengths"]
    assert [one["tokens"] for one in lengths] == [256, 512, 1024, 2048]
    assert len({one["attention_bytes"] / one["tokens"] for one in lengths}) == 1
    assert len({one["state_bytes"] for one in lengths}) == 1
    assert all(one["prefill_s"] > 0 for one in lengths)
    for one in lengths:
        assert f"{one['tokens']:,}" in done.stdout
