from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from router_builders import MemoryRouter, a_router


@pytest.fixture
async def router() -> AsyncIterator[MemoryRouter]:
    """A router with five workers; each test ends with the proof that nothing is left behind."""
    async with a_router() as router:
        yield router
