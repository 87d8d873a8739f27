from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest
from admin_world import AdminWorld, an_admin


@pytest.fixture
async def world() -> AsyncIterator[AdminWorld]:
    async with an_admin() as running:
        yield running


@pytest.fixture
async def client(world: AdminWorld) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(world.url) as session:
        yield session
