"""The owner's port: accepts readers within bounds, sweeps leases, closes what is left."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterable
from functools import partial
from typing import Final

from controlplane.config import KvConfig
from controlplane.wire import KvLocation
from workers.kv.connection import Connection, ServerCounters, ServerParts
from workers.kv.frames import pack_failure
from workers.kv.pacing import LinkPacer
from workers.kv.segment import Segment
from workers.kv.segments import SegmentStore
from workers.kv.stream import Stream
from workers.kv.timing import Clock

#: Waiting for `accept`; a burst of readers, not a load.
_BACKLOG: Final = 128
#: A process without free file descriptors tries to accept again after so many seconds.
_ACCEPT_PAUSE_S: Final = 0.5
#: Leases are swept this often, or ten times in the shortest, seconds.
_SWEEP_S_MAX: Final = 1.0
#: Connections get this long to end after they were cancelled.
_CLOSE_S: Final = 2.0


class KvServer:
    """
    Serves the segments of one worker over TCP (`docs/kv-wire.md`).

    Peers are not trusted: each has its own tasks, deadlines and buffers, and none can delay or end
    another. A bug in one connection ends that connection and goes to the loop's exception handler.
    """

    def __init__(
        self,
        segments: SegmentStore,
        *,
        worker_id: str,
        datacenter: str,
        pacers: Iterable[LinkPacer] = (),
        config: KvConfig,
        connections_max: int = 512,
        clock: Clock = time.monotonic,
    ) -> None:
        """
        Args:
            segments: What is served.
            worker_id: Goes into locations.
            datacenter: Where this worker stands; bytes that stay there are not paced.
            pacers: The links that begin here; a reader anywhere else is refused.
            config: Deadlines and lease.
            connections_max: Readers at the same time; one more is refused.
            clock: Monotonic seconds.
        """
        self.counters = ServerCounters()
        self._segments = segments
        self._worker_id = worker_id
        self._config = config
        self._connections_max = connections_max
        self._parts = ServerParts(
            segments=segments,
            pacers={pacer.link.to_datacenter: pacer for pacer in pacers},
            datacenter=datacenter,
            config=config,
            clock=clock,
            counters=self.counters,
        )
        self._listener: socket.socket | None = None
        self._accept_again: asyncio.TimerHandle | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<KvServer {len(self._connections)} connections, {self._segments!r}>"

    @property
    def connections(self) -> int:
        """Readers connected now."""
        return len(self._connections)

    @property
    def port(self) -> int:
        """The port it listens on, after `start`."""
        if self._listener is None:
            raise RuntimeError("the KV server is not started")
        return int(self._listener.getsockname()[1])

    def start(self, host: str, port: int = 0) -> None:
        """
        Listen, on the running event loop. A name instead of an address is resolved in place.

        Args:
            host: IPv4 or IPv6 address, or a name.
            port: 0 takes any free one.

        Raises:
            OSError: The address is not ours or taken.
        """
        loop = asyncio.get_running_loop()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        self._listener.setblocking(False)
        loop.add_reader(self._listener, self._accept)
        self._sweeper = loop.create_task(self._sweep())

    async def close(self) -> None:
        """Stop listening and cut all readers. Idempotent; waits at most `_CLOSE_S`."""
        loop = asyncio.get_running_loop()
        if self._accept_again is not None:
            self._accept_again.cancel()
        if self._listener is not None:
            loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        ending = [*self._connections, *([self._sweeper] if self._sweeper else [])]
        for task in ending:
            task.cancel()
        if ending:
            await asyncio.wait(ending, timeout=_CLOSE_S)

    def location(self, segment: Segment, host: str, port: int | None = None) -> KvLocation:
        """
        Where and how to fetch a segment of this server.

        Args:
            segment: Of this server's store.
            host: The address readers reach this worker at.
            port: The port they reach it at; None for the one it listens on.
        """
        return KvLocation(
            worker_id=self._worker_id,
            datacenter=self._parts.datacenter,
            incarnation=self._segments.incarnation,
            segment_id=segment.segment_id,
            generation=segment.generation,
            host=host,
            port=self.port if port is None else port,
            lease_s=self._config.lease_s,
            manifest=segment.manifest,
        )

    def _accept(self) -> None:
        """Called by the loop when a reader waits; takes all that wait."""
        loop = asyncio.get_running_loop()
        for _ in range(_BACKLOG):
            if self._listener is None:
                return
            try:
                sock, _peer = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:
                # No descriptors or memory. The listener stays readable, so without a pause the
                # loop would spin and the transfers that could free some would starve.
                loop.remove_reader(self._listener)
                self._accept_again = loop.call_later(_ACCEPT_PAUSE_S, self._resume)
                return
            self._admit(loop, sock)

    def _resume(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _admit(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        if len(self._connections) >= self._connections_max:
            self.counters.refused_total += 1
            sock.setblocking(False)
            with contextlib.suppress(OSError):
                sock.send(pack_failure("worker_refused", "too many readers, try again later"))
            sock.close()
            return
        self.counters.connections_total += 1
        stream = Stream(sock, stall_timeout_s=self._config.stall_timeout_s)
        task = loop.create_task(Connection(stream, self._parts).run())
        self._connections.add(task)
        task.add_done_callback(partial(self._forget, stream))

    def _forget(self, stream: Stream, task: asyncio.Task[None]) -> None:
        # Here and not in the task, which never runs when it is cancelled before its first step.
        stream.close()
        self._connections.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            task.get_loop().call_exception_handler(
                {"message": "a KV connection ended by a bug", "exception": error, "task": task}
            )

    async def _sweep(self) -> None:
        shortest_s = min(self._config.lease_s, self._config.unread_lease_s)
        interval_s = min(_SWEEP_S_MAX, shortest_s / 10)
        while True:
            await asyncio.sleep(interval_s)
            self._segments.sweep()
