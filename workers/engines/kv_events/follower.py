"""The ZeroMQ side: one subscription for each rank of a server, and its past where that is offered."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import zmq
import zmq.asyncio

from controlplane.observe.logs import get_logger
from workers.engines.kv_events.inventory import ServerInventory
from workers.engines.kv_events.order import EventOrder, Step

_log = get_logger()

#: Batches that wait in the socket; the server drops what does not fit, which is a gap.
_WAITING_MAX: Final = 10_000
#: A prompt of a million tokens is a batch of 5 MB.
_BATCH_BYTES_MAX: Final = 64 << 20
_RECONNECT_MS: Final = 100
_RECONNECT_MAX_MS: Final = 5_000
#: A replay that brings nothing for so long has ended.
_REPLAY_S: Final = 5.0
_CLOSE_S: Final = 1.0
_NUMBER_BYTES: Final = 8
#: The number that ends a replay.
_END: Final = b"\xff" * _NUMBER_BYTES
_FRAMES_MIN: Final = 2


@dataclass(frozen=True, slots=True)
class EventSource:
    """Where one rank publishes."""

    host: str
    port: int
    #: 0 where its past cannot be asked for.
    replay_port: int = 0


class EventFollower:
    """Feeds an inventory from its sources until it is closed. Connections that break come back by themselves."""

    def __init__(
        self,
        sources: Sequence[EventSource],
        inventory: ServerInventory,
        *,
        replay_s: float = _REPLAY_S,
    ) -> None:
        """
        Args:
            sources: One for each rank, in order.
            inventory: With as many.
            replay_s: A replay that brings nothing for so long has ended.
        """
        self._replay_s = replay_s
        self._sources = tuple(sources)
        self._inventory = inventory
        self._orders = tuple(EventOrder(can_replay=bool(one.replay_port)) for one in sources)
        self._context = zmq.asyncio.Context()
        self._tasks: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return f"<EventFollower of {len(self._sources)} sources>"

    @property
    def losses_total(self) -> int:
        """Batches were lost for good, so often."""
        return sum(order.losses_total for order in self._orders)

    def start(self) -> None:
        """Subscribe."""
        loop = asyncio.get_running_loop()
        for rank in range(len(self._sources)):
            self._tasks.append(loop.create_task(self._follow(rank), name=f"kv events {rank}"))

    def restarted(self) -> None:
        """The server has begun anew: what its sources said before is void."""
        for order in self._orders:
            order.restart()

    async def close(self) -> None:
        """Unsubscribe. Idempotent."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CLOSE_S)
        self._tasks.clear()
        self._context.destroy(linger=0)

    async def _follow(self, rank: int) -> None:
        source, order = self._sources[rank], self._orders[rank]
        poller = zmq.asyncio.Poller()
        with self._socket(zmq.SUB, source.host, source.port) as live:
            live.subscribe(b"")
            poller.register(live, zmq.POLLIN)
            while True:
                if order.replay_from is not None:
                    await self._replay(rank, live, poller)
                await poller.poll()
                await self._read_live(rank, live)

    async def _replay(self, rank: int, live: Any, poller: zmq.asyncio.Poller) -> None:  # noqa: ANN401 - a socket
        """Ask for the past, and let what comes live wait."""
        source, order = self._sources[rank], self._orders[rank]
        start, loop = order.replay_from or 0, asyncio.get_running_loop()
        with self._socket(zmq.DEALER, source.host, source.replay_port) as past:
            poller.register(past, zmq.POLLIN)
            try:
                await past.send_multipart([b"", start.to_bytes(_NUMBER_BYTES, "big")])
                # Only the past itself is progress: live batches must not keep a dead replay open.
                deadline_s = loop.time() + self._replay_s
                while (left_s := deadline_s - loop.time()) > 0:
                    ready = dict(await poller.poll(max(1, round(left_s * 1000))))
                    if live in ready:
                        await self._read_live(rank, live)
                    if past not in ready:
                        continue
                    frames = await past.recv_multipart()
                    if _END in frames:
                        break
                    if (numbered := _numbered(frames)) is not None:
                        self._take(rank, order.replayed(*numbered))
                    deadline_s = loop.time() + self._replay_s
                    # Ten thousand of them must not hold up everybody else.
                    await asyncio.sleep(0)
            finally:
                poller.unregister(past)
        self._take(rank, order.replay_ended())

    async def _read_live(self, rank: int, live: Any) -> None:  # noqa: ANN401 - a socket
        numbered = _numbered(await live.recv_multipart())
        if numbered is not None:
            self._take(rank, self._orders[rank].live(*numbered))
        await asyncio.sleep(0)

    def _take(self, rank: int, steps: list[Step]) -> None:
        for step in steps:
            try:
                self._inventory.hear(rank, step)
            except ValueError as error:
                _log.warning("kv_events.unreadable", detail=str(error)[:200])

    def _socket(self, kind: int, host: str, port: int) -> Any:  # noqa: ANN401 - of a library's own making
        socket = self._context.socket(kind)
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.RCVHWM, _WAITING_MAX)
        socket.set(zmq.MAXMSGSIZE, _BATCH_BYTES_MAX)
        socket.set(zmq.RECONNECT_IVL, _RECONNECT_MS)
        socket.set(zmq.RECONNECT_IVL_MAX, _RECONNECT_MAX_MS)
        socket.set(zmq.TCP_KEEPALIVE, 1)
        if ":" in host:
            socket.set(zmq.IPV6, 1)
            host = f"[{host}]"
        socket.connect(f"tcp://{host}:{port}")
        return socket


def _numbered(frames: list[bytes]) -> tuple[int, bytes] | None:
    """Number and payload, behind a topic, an envelope or nothing; None for what is not of a server."""
    if len(frames) < _FRAMES_MIN or len(frames[-2]) != _NUMBER_BYTES:
        return None
    return int.from_bytes(frames[-2], "big"), frames[-1]
