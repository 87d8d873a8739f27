"""A way to a server that can be slow, silent or cut while a test runs."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Literal, TypeAlias

#: "frozen" takes connections and bytes and passes nothing on; "cut" ends every connection at once.
Fault: TypeAlias = Literal["none", "frozen", "cut"]


@dataclass
class StoreProxy:
    """Between stores and a server's socket."""

    target: str
    port: int = 0
    fault: Fault = "none"
    #: Each answer comes so much later, drawn evenly, seconds.
    delay_s: tuple[float, float] = (0.0, 0.0)
    rng: Random = field(default_factory=lambda: Random(1))
    #: When connections came, and when requests did.
    connects: list[float] = field(default_factory=list)
    requests: list[float] = field(default_factory=list)
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def become(self, fault: Fault) -> None:
        """From now on; "cut" ends the open connections, too."""
        self.fault = fault
        self._changed.set()
        self._changed = asyncio.Event()
        if fault == "cut":
            for writer in self._writers:
                writer.transport.abort()

    def reset(self) -> None:
        """End the open connections with a reset instead of a polite end; new ones go through."""
        for writer in self._writers:
            raw = writer.get_extra_info("socket")
            if raw.family == socket.AF_INET:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connects.append(time.monotonic())
        if self.fault == "cut":
            writer.transport.abort()
            return
        upstream, back = await asyncio.open_unix_connection(self.target)
        self._writers |= {writer, back}
        if self.fault == "cut":
            back.transport.abort()
            writer.transport.abort()
        loop = asyncio.get_running_loop()
        for task in (
            loop.create_task(self._pass(reader, back, is_request=True)),
            loop.create_task(self._pass(upstream, writer, is_request=False)),
        ):
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_request: bool
    ) -> None:
        try:
            while data := await reader.read(1 << 16):
                if is_request:
                    self.requests.append(time.monotonic())
                else:
                    await asyncio.sleep(self.rng.uniform(*self.delay_s))
                while self.fault == "frozen":
                    await self._changed.wait()
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.transport.abort()
            self._writers.discard(writer)

    async def close(self) -> None:
        while self._tasks:
            self.become("cut")
            await asyncio.wait(self._tasks, timeout=0.1)


@asynccontextmanager
async def a_proxy_to(path: str) -> AsyncIterator[StoreProxy]:
    """A proxy to a server's socket, for as long as the block runs."""
    proxy = StoreProxy(path)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, backlog=1024)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()


@dataclass
class LoopLag:
    """How late the loop is: what a test may not hold against the code under test."""

    worst_s: float = 0.0

    async def watch(self) -> None:
        while True:
            due_s = time.monotonic() + 0.002
            await asyncio.sleep(0.002)
            self.worst_s = max(self.worst_s, time.monotonic() - due_s)
