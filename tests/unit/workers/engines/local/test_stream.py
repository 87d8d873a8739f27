from __future__ import annotations

import asyncio
import gc

import pytest

from workers.engines.local.stream import Feed, Stream


class Source:
    """Counts how often its reader left."""

    def __init__(self) -> None:
        self.feed: Feed[int] = Feed()
        self.closed = 0

    def open(self) -> Stream[int]:
        return Stream(self.feed, self.close, asyncio.get_running_loop())

    def close(self) -> None:
        self.closed += 1


async def test_items_are_read_in_order_up_to_the_end() -> None:
    source = Source()
    source.feed.put(1)
    source.feed.put(2)
    source.feed.end()

    assert [item async for item in source.open()] == [1, 2]
    assert source.closed == 1


async def test_a_waiting_reader_gets_the_next_item() -> None:
    source = Source()
    stream = source.open()
    reading = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)

    source.feed.put(5)

    assert await reading == 5
    await stream.aclose()


async def test_an_error_comes_after_the_items_before_it() -> None:
    source = Source()
    stream = source.open()
    source.feed.put(1)
    source.feed.end(ValueError("broken"))

    assert await anext(stream) == 1
    with pytest.raises(ValueError, match="broken"):
        await anext(stream)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_nothing_comes_after_the_end() -> None:
    source = Source()
    source.feed.end()
    source.feed.put(1)
    source.feed.end(ValueError("too late"))

    assert [item async for item in source.open()] == []


async def test_closing_a_stream_nobody_has_read_tells_the_source() -> None:
    source = Source()
    stream = source.open()

    await stream.aclose()
    await stream.aclose()

    assert source.closed == 1
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_a_reader_cancelled_while_it_waits_tells_the_source() -> None:
    source = Source()
    reading = asyncio.ensure_future(anext(source.open()))
    await asyncio.sleep(0)

    reading.cancel()
    await asyncio.wait([reading])

    assert source.closed == 1


async def test_a_stream_that_is_dropped_tells_the_source() -> None:
    source = Source()
    stream = source.open()

    del stream
    gc.collect()
    await asyncio.sleep(0)

    assert source.closed == 1


def test_a_stream_may_outlive_its_loop() -> None:
    source = Source()

    async def leave() -> Stream[int]:
        await asyncio.sleep(0)
        return source.open()

    stream = asyncio.run(leave())
    del stream
    gc.collect()

    assert source.closed == 0
