"""Servers that speak the protocol and keep nothing: they say what a test tells them to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import hiredis


@dataclass
class Answerer:
    """A server that answers every command but those of a connection's first words alike."""

    port: int = 0
    #: RESP of the answer; None for none at all.
    answer: bytes | None = b"+PONG\r\n"
    #: Other answers for some commands.
    special: dict[bytes, bytes] = field(default_factory=dict)
    #: Every command but `CLIENT`, in order.
    asked: list[bytes] = field(default_factory=list)
    _open: dict[asyncio.StreamWriter, asyncio.Event] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        words = hiredis.Reader()
        over = self._open[writer] = asyncio.Event()
        while chunk := await reader.read(65536):
            words.feed(chunk)
            while command := words.gets():
                if command[0] == b"CLIENT":
                    writer.write(b"+OK\r\n")
                    continue
                self.asked.append(command[0])
                answer = self.special.get(command[0], self.answer)
                if answer is not None:
                    writer.write(answer)
        writer.close()
        over.set()

    async def hang_up(self) -> None:
        for writer, over in self._open.items():
            writer.close()
            await over.wait()


@asynccontextmanager
async def answering(*answerers: Answerer) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for each in answerers:
            server = await asyncio.start_server(each.serve, "127.0.0.1", 0)
            stack.push_async_callback(each.hang_up)
            stack.callback(server.close)
            each.port = server.sockets[0].getsockname()[1]
        yield
