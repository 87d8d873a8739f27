"""The data listener as clients meet it: the production runner, with a router in memory behind it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
from router_builders import SCOPE, MemoryRouter, a_router

from controlplane.config import LimitsConfig
from controlplane.edge.listener import Listener, listen_to_clients
from controlplane.edge.requests import ModelFacts
from controlplane.edge.residency import Residency
from controlplane.edge.server import EdgeServer, Readiness
from controlplane.tokenizing import ByteTokenizer

#: A prompt that is long enough to be offloaded.
LONG = "x" * 101


class Edge:
    """A listener and the router behind it."""

    def __init__(
        self, router: MemoryRouter, listener: Listener, session: aiohttp.ClientSession
    ) -> None:
        self.router = router
        self.listener = listener
        self.url = listener.url
        self.session = session
        self.is_ready = True

    def post(self, *, headers: dict[str, str] | None = None, **fields: Any) -> Any:
        """A completion request that is taken: it owes a record."""
        self.router.taken += 1
        return self.ask(headers=headers, **fields)

    def ask(self, *, headers: dict[str, str] | None = None, **fields: Any) -> Any:
        """A completion request that is refused before it is begun."""
        body = {"model": "m", "prompt": LONG, "max_tokens": 8, **fields}
        return self.session.post(f"{self.url}/v1/completions", json=body, headers=headers)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection, for what no HTTP client would do."""
        host, _, port = self.url.removeprefix("http://").partition(":")
        return await asyncio.open_connection(host, int(port), limit=1024)

    def closed_on(self, cause: str) -> float:
        """Connections that were closed on clients for this cause."""
        return (
            self.router.metrics.registry.get_sample_value(
                "prfaas_connections_closed_total", {"cause": cause}
            )
            or 0.0
        )


def raw_request(**fields: Any) -> bytes:
    """A completion request as its bytes."""
    body = json.dumps({"model": "m", "prompt": LONG, "max_tokens": 8, **fields}).encode()
    return (
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    )


@asynccontextmanager
async def an_edge(*, context_tokens_max: int = 4096, **limits: Any) -> AsyncIterator[Edge]:
    """A listener on a port of its own; at the end nothing may be held for anybody."""
    async with AsyncExitStack() as stack:
        router = await stack.enter_async_context(a_router(limits=LimitsConfig(**limits)))
        executor = stack.enter_context(ThreadPoolExecutor(1))
        facts = ModelFacts(
            name="m",
            tokenizer=ByteTokenizer(),
            block_tokens=16,
            context_tokens_max=context_tokens_max,
            scope=SCOPE,
        )
        server = EdgeServer(
            router.dispatcher,
            limits=router.limits,
            models=lambda: {"m": facts},
            readiness=lambda: Readiness(is_ready=edge.is_ready, details={"store": "ok"}),
            executor=executor,
            residency=Residency(("east", "west")),
        )
        listener = await listen_to_clients(
            stack,
            server.application(),
            "127.0.0.1",
            0,
            limits=router.limits,
            metrics=router.metrics,
        )
        session = await stack.enter_async_context(aiohttp.ClientSession())
        edge = Edge(router, listener, session)
        yield edge


async def until(is_true: Callable[[], bool], *, within_s: float = 5.0) -> None:
    """Turn the loop until something is true."""
    async with asyncio.timeout(within_s):
        while not is_true():  # noqa: ASYNC110 - another process's sockets are part of it
            await asyncio.sleep(0)


async def until_idle(router: MemoryRouter) -> None:
    """Wait until no request is in flight."""
    await until(lambda: router.dispatcher.in_flight == 0)
