"""A connection that is reset while nobody uses it is no outage: on both event loops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import uvloop
from store_builders import TTL_S, a_beat, a_reservation, full
from store_proxy import a_proxy_to

from controlplane.config import StoreConfig
from controlplane.store.embedded import EmbeddedServer
from controlplane.store.redis_store import RedisStore

#: Deadlines that a busy machine keeps.
PATIENT = StoreConfig(call_timeout_s=5.0, slow_call_timeout_s=10.0)


@pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_connections_reset_while_idle_are_replaced_unnoticed(
    own_server: EmbeddedServer, make_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """As a proxy or a load balancer before the server does that is restarted or fails over."""

    async def main() -> None:
        async with a_proxy_to(own_server.url.removeprefix("unix://")) as proxy:
            store = RedisStore(proxy.url, fleet="f", config=PATIENT)
            for worker_id in ("p1", "d1"):
                await store.heartbeat(a_beat(worker_id, inventory=full()), ttl_s=TTL_S)
            before = len(proxy.connects)

            proxy.reset()
            await asyncio.sleep(0.05)
            reply = await store.reserve(a_reservation())

            assert reply.refused_by is None
            assert len(proxy.connects) == before + 1
            assert not store.breaker.is_open
            await store.close()

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(main())
