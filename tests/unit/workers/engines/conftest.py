from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from engine_builders import MakeEngine, a_model, checked_engines

from workers.engines.reference.dims import Dims
from workers.engines.reference.engine import ReferenceEngine
from workers.engines.reference.model import Model
from workers.engines.reference.weights import make_weights


@pytest.fixture
async def make_engine() -> AsyncIterator[MakeEngine]:
    """Engines that are checked for leaks, before and after they are closed."""
    async with checked_engines() as engines:

        def make(**overrides: Any) -> ReferenceEngine:
            engine = ReferenceEngine(a_model(**overrides))
            engines.append(engine)
            return engine

        yield make


@pytest.fixture
def engine(make_engine: MakeEngine) -> ReferenceEngine:
    return make_engine()


@pytest.fixture(scope="session")
def model() -> Model:
    """Weights alone, for tests that change nothing in them."""
    dims = Dims(layers=4)
    return Model(dims, make_weights(dims, 0), context_tokens_max=1024)
