"""The fault proxy breaks what it is told to break, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from chaos.processes import Helper

LINK = "there"


@contextlib.asynccontextmanager
async def an_echo() -> AsyncIterator[int]:
    """A server that says again what it hears; its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


class Talk:
    """A connection through the proxy, and the proxy."""

    def __init__(
        self, proxy: Helper, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.proxy = proxy
        self.reader = reader
        self.writer = writer

    async def fault(self, direction: str = "both", **faults: Any) -> None:
        await self.proxy.ask(
            {"op": "fault", "link": LINK, "direction": direction, "faults": faults}
        )

    async def heal(self) -> None:
        await self.proxy.ask({"op": "heal", "link": LINK})

    async def counts(self) -> dict[str, int]:
        counts: dict[str, int] = (await self.proxy.ask({"op": "stats"}))["links"][LINK]
        return counts

    async def echo(self, data: bytes, within_s: float = 5.0) -> bytes:
        self.writer.write(data)
        return await asyncio.wait_for(self.reader.readexactly(len(data)), within_s)


@contextlib.asynccontextmanager
async def a_talk() -> AsyncIterator[Talk]:
    proxy = Helper("chaos.proxy", "7")
    async with an_echo() as target:
        await proxy.start()
        answer = await proxy.ask({"op": "listen", "link": LINK, "target": ["127.0.0.1", target]})
        reader, writer = await asyncio.open_connection("127.0.0.1", answer["port"])
        try:
            yield Talk(proxy, reader, writer)
        finally:
            writer.close()
            await proxy.stop()


async def test_a_good_link_passes_everything_as_it_is() -> None:
    async with a_talk() as talk:
        data = bytes(range(256)) * 4096

        assert await talk.echo(data) == data
        assert (await talk.counts())["bytes_up"] == len(data)


async def test_latency_delays_each_direction() -> None:
    async with a_talk() as talk:
        await talk.fault(latency_s=0.1)
        began_s = time.monotonic()

        await talk.echo(b"x")

        assert 0.2 <= time.monotonic() - began_s < 1.0


async def test_jitter_does_not_reorder() -> None:
    async with a_talk() as talk:
        await talk.fault(jitter_s=0.02)
        words = b"".join(b"%06d" % number for number in range(200))
        for start in range(0, len(words), 6):
            talk.writer.write(words[start : start + 6])
            await asyncio.sleep(0)

        assert await asyncio.wait_for(talk.reader.readexactly(len(words)), 5.0) == words


async def test_a_rate_holds_over_time() -> None:
    async with a_talk() as talk:
        await talk.fault("down", bytes_per_s=100_000)
        began_s = time.monotonic()

        await talk.echo(bytes(50_000))

        assert 0.4 <= time.monotonic() - began_s < 2.0


@pytest.mark.parametrize("direction", ["up", "down", "both"])
async def test_a_stalled_link_keeps_bytes_until_it_is_healed(direction: str) -> None:
    async with a_talk() as talk:
        await talk.fault(direction, is_stalled=True)
        with pytest.raises(TimeoutError):
            await talk.echo(b"hello", within_s=0.1)

        await talk.heal()

        assert await asyncio.wait_for(talk.reader.readexactly(5), 5.0) == b"hello"


async def test_a_black_hole_swallows_and_the_connection_is_reset_when_it_is_healed() -> None:
    async with a_talk() as talk:
        await talk.fault(is_black_hole=True)
        with pytest.raises(TimeoutError):
            await talk.echo(b"hello", within_s=0.1)

        await talk.heal()

        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(talk.reader.read(1), 5.0)
        assert (await talk.counts())["swallowed_bytes"] == 5


async def test_a_cut_resets_what_is_open() -> None:
    async with a_talk() as talk:
        await talk.echo(b"hello")

        await talk.proxy.ask({"op": "cut", "link": "th*"})

        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(talk.reader.read(1), 5.0)


async def test_corruption_changes_bytes_and_never_their_number() -> None:
    async with a_talk() as talk:
        await talk.fault("up", corrupt_ratio=1.0)
        data = bytes(1000)

        answer = await talk.echo(data)

        assert sum(byte != 0 for byte in answer) == (await talk.counts())["corrupted"] >= 1


async def test_a_repeated_read_comes_twice() -> None:
    async with a_talk() as talk:
        await talk.fault("up", duplicate_ratio=1.0)
        talk.writer.write(b"hello")

        assert await asyncio.wait_for(talk.reader.readexactly(10), 5.0) == b"hellohello"


async def test_a_limit_ends_the_connection_after_its_bytes() -> None:
    async with a_talk() as talk:
        await talk.fault("up", limit_bytes=100)
        await talk.echo(bytes(100))
        talk.writer.write(b"one more")

        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(talk.reader.read(1), 5.0)


async def test_slices_are_put_together_again_by_the_reader() -> None:
    async with a_talk() as talk:
        await talk.fault(slice_bytes=3, slice_pause_s=0.001)

        assert await talk.echo(bytes(range(100))) == bytes(range(100))


async def test_the_end_of_a_stream_can_come_late() -> None:
    async with a_talk() as talk:
        await talk.echo(b"hello")
        await talk.fault("up", slow_close_s=0.2)
        began_s = time.monotonic()

        talk.writer.write_eof()
        await asyncio.wait_for(talk.reader.read(), 5.0)

        assert time.monotonic() - began_s >= 0.2


async def test_a_command_that_is_none_is_answered_with_an_error() -> None:
    async with a_talk() as talk:
        with pytest.raises(RuntimeError, match="no link is called"):
            await talk.proxy.ask({"op": "heal", "link": "nowhere"})
