"""A stream of results from the scheduler to one reader, which may leave at any time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")


class Stream(AsyncIterator[ItemT], Generic[ItemT]):
    """
    The reader's end. What it leaves behind unread is freed with it.

    An asynchronous generator would not do: closing one that was never started runs none of its
    code, and the work behind it would go on. This one tells its source in every case: closed,
    cancelled while waiting, or dropped by a caller that forgot to close it.
    """

    def __init__(
        self, feed: Feed[ItemT], on_close: Callable[[], None], loop: asyncio.AbstractEventLoop
    ) -> None:
        """`on_close` must not refer to the stream, or it would never be dropped."""
        self._feed = feed
        self._on_close = on_close
        self._loop = loop
        self._is_closed = False

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else f"{self._feed.pending} pending"
        return f"<Stream {state}>"

    def __aiter__(self) -> Stream[ItemT]:
        return self

    async def __anext__(self) -> ItemT:
        if self._is_closed:
            raise StopAsyncIteration
        try:
            await self._feed.wait()
        except asyncio.CancelledError:
            self._close()
            raise
        if self._feed.pending:
            return self._feed.pop()
        self._close()
        if self._feed.error is not None:
            raise self._feed.error
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Stop the work behind the stream. Idempotent."""
        self._close()

    def _close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._on_close()

    def __del__(self) -> None:
        # The collector may run in any thread: only the loop's own may touch the source.
        if not self._is_closed and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._on_close)


class Feed(Generic[ItemT]):
    """The writer's end. Bounded by its source: a segment has so many pieces, an answer tokens."""

    def __init__(self) -> None:
        self._items: deque[ItemT] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._is_ended = False
        #: Raised to the reader after the last item.
        self.error: Exception | None = None

    @property
    def pending(self) -> int:
        """Items not read yet."""
        return len(self._items)

    def put(self, item: ItemT) -> None:
        """Append an item; after the end it is dropped."""
        if not self._is_ended:
            self._items.append(item)
            self._wake()

    def end(self, error: Exception | None = None) -> None:
        """No more items. The first call counts."""
        if not self._is_ended:
            self._is_ended = True
            self.error = error
            self._wake()

    def pop(self) -> ItemT:
        """The oldest item."""
        return self._items.popleft()

    async def wait(self) -> None:
        """Return once there is an item or the end. One reader at a time."""
        while not self._items and not self._is_ended:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
