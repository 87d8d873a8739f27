"""Both implementations, given the same history, tell the same story."""

from __future__ import annotations

from random import Random

import pytest
from store_histories import a_history, picture

from controlplane.config import StoreConfig
from controlplane.store.memory_store import MemoryStore
from controlplane.store.redis_store import RedisStore


@pytest.mark.parametrize("seed", range(12))
async def test_the_twin_answers_as_redis_does(
    redis_store: RedisStore, config: StoreConfig, seed: int
) -> None:
    memory = MemoryStore(config=config)

    for step, (name, arguments, options) in enumerate(a_history(Random(seed), 90)):
        expected = await getattr(memory, name)(*arguments, **options)
        found = await getattr(redis_store, name)(*arguments, **options)
        assert found == expected, f"step {step}: {name}{arguments}"

    assert await picture(redis_store) == await picture(memory)
    assert redis_store.decode_errors_total == 0
