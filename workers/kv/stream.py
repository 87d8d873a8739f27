"""A TCP socket with exact reads and whole writes, a deadline on each wait, and fairness."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from typing import Final

#: A stream that never has to wait gives the loop a turn after so many bytes, about 0.3 ms.
_TURN_BYTES: Final = 1 << 20
#: Step of a blocked write. A deadline on each step means a minimum rate (64 KiB in
#: `stall_timeout_s`), while one deadline on a whole part would cut off slow but live peers.
_STEP_BYTES: Final = 64 << 10


class Stream:
    """
    One connected, non-blocking socket. One reader and one writer at a time.

    Bytes move by direct system calls while the kernel has room, and through the event loop only
    when they would block: that is three times cheaper than asyncio's streams and needs no buffer.

    Every method that waits raises `TimeoutError` when nothing moved for its time, `OSError` when
    the connection broke, and leaves the socket open; the owner of the stream closes it.
    """

    def __init__(self, sock: socket.socket, *, stall_timeout_s: float) -> None:
        sock.setblocking(False)
        # Without this a small frame waits for the acknowledgement of the one before, a whole RTT.
        # A connection that broke meanwhile may refuse it, and says so at its first read.
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self._stall_timeout_s = stall_timeout_s
        self._loop = asyncio.get_running_loop()
        self._bytes_since_turn = 0

    def prefer_bbr(self) -> None:
        """
        Ask for a congestion control that survives loss on long links (5x at 0.1 % and 40 ms).

        A kernel without it keeps its default.
        """
        if hasattr(socket, "TCP_CONGESTION"):
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"bbr")

    async def read_into(self, view: memoryview, *, is_patient: bool = False) -> None:
        """
        Fill `view` completely.

        Args:
            view: Writable bytes.
            is_patient: Wait without a deadline for each byte; the caller has one of its own.

        Raises:
            EOFError: The peer closed before all bytes were there.
            TimeoutError: No byte came for `stall_timeout_s`.
            OSError: The connection broke.
        """
        timeout_s = None if is_patient else self._stall_timeout_s
        while view.nbytes:
            try:
                count = self._sock.recv_into(view)
            except (BlockingIOError, InterruptedError):
                async with asyncio.timeout(timeout_s):
                    count = await self._loop.sock_recv_into(self._sock, view)
            if count == 0:
                raise EOFError("the peer closed the connection")
            view = view[count:]
            await self._give_turn(count)

    async def write(self, *buffers: bytes | memoryview) -> None:
        """
        Hand all bytes to the kernel, in one call if it takes them.

        Raises:
            TimeoutError: The peer took less than 64 KiB in `stall_timeout_s`.
            OSError: The connection broke.
        """
        sent = self._try_send(buffers)
        await self._give_turn(sent)
        for buffer in buffers:
            rest = memoryview(buffer)[sent:]
            sent = max(0, sent - len(buffer))
            while rest:
                step = rest[:_STEP_BYTES]
                async with asyncio.timeout(self._stall_timeout_s):
                    await self._loop.sock_sendall(self._sock, step)
                rest = rest[len(step) :]
                count = self._try_send((rest,)) if rest else 0
                rest = rest[count:]
                await self._give_turn(count)

    def write_at_once(self, data: bytes) -> None:
        """Hand bytes to the kernel if it takes them now; what it refuses is lost with the stream."""
        with contextlib.suppress(OSError):
            self._sock.send(data)

    def hang_up(self) -> None:
        """End both directions; pending reads and writes of either side end with an error."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket. Idempotent; nobody may be waiting in a read or write."""
        self._sock.close()

    def _try_send(self, buffers: Sequence[bytes | memoryview]) -> int:
        try:
            return self._sock.sendmsg(buffers)
        except (BlockingIOError, InterruptedError):
            return 0

    async def _give_turn(self, count: int) -> None:
        # Between two fast peers nothing ever blocks, and one transfer would keep the loop for
        # gigabytes: leases, keep-alives and all other transfers would wait.
        self._bytes_since_turn += count
        if self._bytes_since_turn >= _TURN_BYTES:
            self._bytes_since_turn = 0
            await asyncio.sleep(0)
