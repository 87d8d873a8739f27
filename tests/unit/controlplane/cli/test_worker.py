"""`prfaas worker`: what is wrong with its options is said before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from fleets import a_fleet, to_toml

from controlplane.cli.worker import worker
from controlplane.config import ModelConfig

AS_PREFILL = ["--datacenter", "east", "--role", "prefill", "--name", "prefill-0"]


@pytest.mark.parametrize(
    ("engine", "options", "said"),
    [
        ("reference", ["--engine", "vllm"], "the fleet's model.engine is 'reference'"),
        ("reference", ["--engine-url", "http://127.0.0.1:1"], "takes no --engine-url"),
        ("vllm", [], "needs --engine-url"),
        ("vllm", ["--engine-url", "127.0.0.1:8100"], "is no http:// or https:// URL"),
    ],
)
def test_an_engine_that_does_not_fit_the_fleet_is_refused(
    tmp_path: Path, engine: str, options: list[str], said: str
) -> None:
    tokenizer = str(tmp_path) if engine == "vllm" else None
    model = ModelConfig.model_validate({"engine": engine, "tokenizer": tokenizer})
    path = tmp_path / "fleet.toml"
    path.write_text(to_toml(a_fleet(model=model)), encoding="utf-8")
    environment = {"REDIS_URL": "redis://127.0.0.1:1/0"}

    ended = CliRunner(env=environment).invoke(worker, ["--fleet", str(path), *AS_PREFILL, *options])

    assert ended.exit_code == 2
    assert said in ended.output
