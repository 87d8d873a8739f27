"""KV over simulated connections: the real protocol at both ends, another thing below it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from functools import partial
from random import Random
from typing import Any

from sim.network import Network, Process, Socket

import workers.kv.owner as owner_module
from workers.kv.connection import Connection
from workers.kv.server import KvServer

#: Port of every owner: a location of an earlier life finds the next one there.
KV_PORT = 9


class SimStream:
    """What `workers/kv/stream.py` is to its users, on a `Socket`."""

    def __init__(self, sock: Socket, *, stall_timeout_s: float) -> None:
        self._socket = sock
        self._stall_timeout_s = stall_timeout_s
        self._bytes = b""

    def prefer_bbr(self) -> None:
        """There is no congestion here."""

    async def read_into(self, view: memoryview, *, is_patient: bool = False) -> None:
        """Fill `view` completely."""
        while view.nbytes:
            if not self._bytes:
                self._bytes = self._socket.receive_nowait() or await self._next(
                    None if is_patient else self._stall_timeout_s
                )
            count = min(view.nbytes, len(self._bytes))
            view[:count] = self._bytes[:count]
            self._bytes = self._bytes[count:]
            view = view[count:]

    async def _next(self, timeout_s: float | None) -> bytes:
        async with asyncio.timeout(timeout_s):
            data: bytes | None = await self._socket.receive()
        if data is None:
            raise EOFError("the peer closed the connection")
        return data

    async def write(self, *buffers: bytes | memoryview) -> None:
        """Hand all bytes to the network, which may spoil them."""
        for data in self._socket.network_spoils(b"".join(buffers)):
            self._socket.send(data)

    def write_at_once(self, data: bytes) -> None:
        """Hand bytes to the network if it takes them."""
        with contextlib.suppress(ConnectionError):
            self._socket.send(data)

    def hang_up(self) -> None:
        """End both directions."""
        self._socket.close()

    def close(self) -> None:
        """Close it."""
        self._socket.close()


def spoil(data: bytes, random: Random) -> list[bytes]:
    """What a bad link makes of one write: a flipped bit, a repetition, or less of it."""
    kind = random.randrange(4)
    if kind == 0:
        return [data, data]
    if kind == 1:
        return [data[: len(data) - 1 - random.randrange(min(8, len(data)))]]
    # The payload of a frame is at its end: there only the checksum can tell.
    at = len(data) - 1 - random.randrange(min(16, len(data)))
    return [data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]]


class SimKvServer(KvServer):
    """The real server, with connections of the simulated network."""

    @property
    def port(self) -> int:
        return KV_PORT

    def serve(self, process: Process) -> None:
        """Listen as a process."""

        async def take(sock: Socket, hello: Any) -> None:
            del hello
            stream: Any = SimStream(sock, stall_timeout_s=self._config.stall_timeout_s)
            self.counters.connections_total += 1
            task = asyncio.get_running_loop().create_task(Connection(stream, self._parts).run())
            self._connections.add(task)
            task.add_done_callback(partial(self._forget, stream))
            await asyncio.wait([task])

        process.services["kv"] = take
        process.spawn(self._sweep(), "sweep leases")


@contextlib.contextmanager
def kv_over(network: Network) -> Iterator[None]:
    """While it lasts, readers of KV dial in the simulated network."""

    async def connect(host: str, port: int) -> Socket:
        assert port == KV_PORT
        sock = network.connect(network.running(), host, "kv", None)
        try:
            await sock.opened
        except BaseException:
            sock.close()
            raise
        return sock

    before = owner_module.connect, owner_module.Stream
    owner_module.connect, owner_module.Stream = connect, SimStream  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        owner_module.connect, owner_module.Stream = before  # type: ignore[misc]
