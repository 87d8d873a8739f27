from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias

import pytest
from engine_builders import a_model, checked_engines

from workers.engines.local.engine import LocalEngine

#: An engine of a small model; overrides of its section, and of `[model.transformers]`.
MakeTransformers: TypeAlias = Callable[..., LocalEngine]


@pytest.fixture(params=["qwen3_next", "kimi_linear"])
def family(request: pytest.FixtureRequest) -> str:
    """Each family that is built in."""
    return str(request.param)


@pytest.fixture
async def make_engine(family: str) -> AsyncIterator[MakeTransformers]:
    """Engines that are checked for leaks, before and after they are closed."""
    with warnings.catch_warnings():
        # Of the libraries, as they are imported.
        warnings.simplefilter("ignore")
        from workers.engines.transformers.engine import TransformersEngine  # noqa: PLC0415
    async with checked_engines() as engines:

        def make(*, transformers: dict[str, Any] | None = None, **overrides: Any) -> LocalEngine:
            section = {"family": family} | (transformers or {})
            model = a_model(engine="transformers", name="tiny", transformers=section, **overrides)
            engines.append(TransformersEngine(model))
            return engines[-1]

        yield make
