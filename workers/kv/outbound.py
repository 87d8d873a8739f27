"""What leaves a connection: whole frames in order, and the emulated length of a link."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from workers.kv.stream import Stream
from workers.kv.timing import Clock, Sleep


@dataclass(frozen=True, slots=True)
class _Travelling:
    #: On the connection's clock.
    due_s: float
    buffers: tuple[bytes | memoryview, ...]
    size_bytes: int


class Outbound:
    """
    The sending half of a connection, for several tasks.

    With a delay, frames travel through a line: each is put on the socket `delay_s` after it was
    sent, however many are on their way, so distance costs its time once and no throughput. The
    line holds references to the segment's bytes, not copies; `flush` says when it let them go.
    """

    def __init__(self, stream: Stream, *, clock: Clock, sleep: Sleep = asyncio.sleep) -> None:
        #: When a frame was last sent, on the connection's clock.
        self.last_sent_s = clock()
        self._stream = stream
        self._clock = clock
        self._sleep = sleep
        self._delay_s = 0.0
        self._window_bytes = 0
        self._line: deque[_Travelling] = deque()
        self._line_bytes = 0
        self._changed = asyncio.Condition()
        self._socket_lock = asyncio.Lock()

    def set_delay(self, delay_s: float, *, window_bytes: int) -> None:
        """
        Delay all later frames.

        Args:
            delay_s: One way, seconds >= 0.
            window_bytes: Bytes the line may hold; at least rate times delay and one burst, or the
                line limits the throughput.
        """
        self._delay_s, self._window_bytes = delay_s, window_bytes

    async def send(self, *buffers: bytes | memoryview) -> None:
        """
        Send one frame after all earlier ones.

        Raises:
            TimeoutError: The peer does not read.
            OSError: The connection broke.
        """
        self.last_sent_s = self._clock()
        if self._delay_s == 0 and not self._line:
            async with self._socket_lock:
                await self._stream.write(*buffers)
            return
        size_bytes = sum(len(buffer) for buffer in buffers)
        async with self._changed:
            # An empty line takes any frame, so that one larger than the window does not hang.
            await self._changed.wait_for(
                lambda: not self._line or self._line_bytes + size_bytes <= self._window_bytes
            )
            due_s = self._clock() + self._delay_s
            self._line.append(_Travelling(due_s, buffers, size_bytes))
            self._line_bytes += size_bytes
            self._changed.notify_all()

    async def run(self) -> None:
        """Carry the line to the socket until cancelled; raises what the socket raises."""
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._line)
            travelling = self._line[0]
            if (early_s := travelling.due_s - self._clock()) > 0:
                await self._sleep(early_s)
            async with self._socket_lock:
                await self._stream.write(*travelling.buffers)
            async with self._changed:
                self._line.popleft()
                self._line_bytes -= travelling.size_bytes
                self._changed.notify_all()

    async def flush(self) -> None:
        """Wait until the line is empty: all frames are with the kernel."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._line)
