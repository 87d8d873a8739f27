from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from engine_builders import MakeEngine, a_model

from workers.engines.reference.dims import Dims
from workers.engines.reference.engine import ReferenceEngine
from workers.engines.reference.model import Model
from workers.engines.reference.weights import make_weights


@pytest.fixture
async def make_engine() -> AsyncIterator[MakeEngine]:
    """Engines that are checked for leaks, before and after they are closed."""
    engines: list[ReferenceEngine] = []

    def make(**overrides: Any) -> ReferenceEngine:
        engines.append(ReferenceEngine(a_model(**overrides)))
        return engines[-1]

    yield make
    for engine in engines:
        engine.check_integrity()
        await engine.close()
        engine.check_integrity()
        assert not engine._cache.leases


@pytest.fixture
def engine(make_engine: MakeEngine) -> ReferenceEngine:
    return make_engine()


@pytest.fixture(scope="session")
def model() -> Model:
    """Weights alone, for tests that change nothing in them."""
    dims = Dims(layers=4)
    return Model(dims, make_weights(dims, 0), context_tokens_max=1024)
