"""Strict engine servers on a thread of their own: what a router sends them is judged, and can be made to fail."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from contextlib import AsyncExitStack, contextmanager
from typing import Any, TypeVar

from fakes.vllm import FakeVllm, NixlWorld

from controlplane.serving import listen
from controlplane.tokenizing import Tokenizer

MODEL = "tiny"
_WITHIN_S = 30.0

_T = TypeVar("_T")


class Servers:
    """Prefill and decode servers of one model; their faults may be set at any time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, tokenizer: Tokenizer) -> None:
        self._loop = loop
        self._stacks: dict[str, AsyncExitStack] = {}
        self.tokenizer = tokenizer
        self.world = NixlWorld()
        self.prefill: list[FakeVllm] = []
        self.decode: list[FakeVllm] = []

    @property
    def all(self) -> list[FakeVllm]:
        """Of both roles."""
        return [*self.prefill, *self.decode]

    def add(self, prefill: int, decode: int) -> None:
        """Start so many more of each."""
        for found, count in ((self.prefill, prefill), (self.decode, decode)):
            fakes = [
                FakeVllm(self.world, model=MODEL, tokenizer=self.tokenizer) for _ in range(count)
            ]
            self._wait(self._listen(fakes))
            found.extend(fakes)

    def take(self, prefill_s: float) -> None:
        """So long for each prefill, as if they computed something."""
        for fake in self.all:
            fake.prefill_s = prefill_s

    def kill(self, fake: FakeVllm) -> None:
        """Close its port and all its connections."""
        self._wait(self._stacks.pop(fake.url).aclose())

    def restore(self) -> None:
        """Take all faults and all times away, and forget what was asked."""
        for fake in self.all:
            fake.status = 200
            fake.prefill_s = fake.first_token_s = fake.step_s_per_stream = 0.0
            for seen in (fake.bodies, fake.aborted, *fake.request_ids.values()):
                seen.clear()

    def violations(self) -> list[str]:
        """What was wrong with what was asked, of all servers."""
        return [said for fake in self.all for said in fake.violations]

    def close(self) -> None:
        """End all of them."""
        for url in [*self._stacks]:
            self._wait(self._stacks.pop(url).aclose())

    async def _listen(self, fakes: list[FakeVllm]) -> None:
        for fake in fakes:
            stack = AsyncExitStack()
            fake.url = await listen(stack, fake.application(), "127.0.0.1", 0)
            self._stacks[fake.url] = stack

    def _wait(self, job: Coroutine[Any, Any, _T]) -> _T:
        future: Future[_T] = asyncio.run_coroutine_threadsafe(job, self._loop)
        return future.result(_WITHIN_S)


@contextmanager
def some_servers(tokenizer: Tokenizer, *, prefill: int, decode: int) -> Iterator[Servers]:
    """So many servers, on an event loop in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="servers", daemon=True)
    thread.start()
    servers = Servers(loop, tokenizer)
    try:
        servers.add(prefill, decode)
        yield servers
    finally:
        servers.close()
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_WITHIN_S)
        loop.close()
