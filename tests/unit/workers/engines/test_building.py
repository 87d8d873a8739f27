from __future__ import annotations

import sys

import pytest
from engine_builders import a_model

from controlplane.errors import ConfigError
from workers.engines.building import build_engine


async def test_the_reference_engine_needs_nothing_else() -> None:
    engine = build_engine(a_model())

    assert engine.spec.model == "prfaas-reference"
    await engine.close()


def test_libraries_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "workers.engines.transformers.engine", raising=False)
    monkeypatch.delitem(sys.modules, "workers.engines.transformers.local_model", raising=False)

    with pytest.raises(
        ConfigError, match=r'needs the package \'torch\': pip install "prfaas\[torch\]"'
    ):
        build_engine(a_model(engine="transformers"))
