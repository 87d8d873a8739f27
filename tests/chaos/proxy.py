"""
A TCP proxy that breaks what goes through it, as it is told.

Run as `python -m chaos.proxy SEED`. It reads commands from standard input, one JSON object a line,
answers each with one line, and ends when its input closes. A *link* is a listener with a target;
commands name links by shell patterns, so that `*-east-*` is a whole datacenter.

    {"op": "listen", "link": NAME, "target": [HOST, PORT]}     -> {"port": PORT}
    {"op": "fault", "link": PATTERN, "direction": "up" | "down" | "both", "faults": {...}}
    {"op": "heal", "link": PATTERN}
    {"op": "cut", "link": PATTERN}        resets what is open; new connections go through
    {"op": "lead", "link": PATTERN, "target": [HOST, PORT]}    elsewhere; resets what is open
    {"op": "stats"}                       -> {"links": {NAME: {...}}}

`up` is from the one who dialled to the target. A fault replaces the faults of its direction.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from random import Random
from typing import Any, Final, Literal, TypeAlias

import uvloop

Direction: TypeAlias = Literal["up", "down"]

_READ_BYTES: Final = 64 << 10
#: Read in small bites when a rate is set, so that it is smooth.
_SLOW_READ_BYTES: Final = 4 << 10
#: Pieces on their way in one direction of one connection; more are not read.
_PIECES_MAX: Final = 256
_DIAL_S: Final = 5.0
_LATE_S: Final = 0.02
#: Closes with a reset instead of a polite end.
_RESET: Final = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What is wrong with one direction of a link; the defaults are a good link."""

    latency_s: float = 0.0
    #: Added to the latency, uniform from 0 to this.
    jitter_s: float = 0.0
    #: Bytes per second of all connections together; 0 for no limit.
    bytes_per_s: float = 0.0
    #: All links that one command names share that rate, as workers share the way between datacenters.
    is_shared: bool = False
    #: Nothing passes; all is kept and comes when the fault is over, as TCP does.
    is_stalled: bool = False
    #: Nothing passes, and what was sent is gone: connections that lost bytes are reset by `heal`.
    is_black_hole: bool = False
    #: New connections are reset, and so is what is open.
    is_refused: bool = False
    #: Pieces of this size at most, each with a pause before it.
    slice_bytes: int = 0
    slice_pause_s: float = 0.0
    #: Chance that a read has one of its bytes changed.
    corrupt_ratio: float = 0.0
    #: Chance that a read is sent twice.
    duplicate_ratio: float = 0.0
    #: A connection is reset after so many bytes; 0 for never.
    limit_bytes: int = 0
    #: The end of a stream is passed on so much later.
    slow_close_s: float = 0.0


@dataclass(slots=True)
class Counts:
    """What went through a link since it was made."""

    connections: int = 0
    reads_up: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    corrupted: int = 0
    duplicated: int = 0
    swallowed_bytes: int = 0
    resets: int = 0


@dataclass(slots=True)
class Link:
    """A listener, where it leads, and what is wrong with it."""

    name: str
    target: tuple[str, int]
    random: Random
    faults: dict[Direction, Faults] = field(
        default_factory=lambda: {"up": Faults(), "down": Faults()}
    )
    counts: Counts = field(default_factory=Counts)
    connections: set[Connection] = field(default_factory=set)
    #: Replaced and set at each change of faults.
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    #: When the last byte of each direction has passed, by the loop's clock.
    free_s: dict[Direction, float] = field(default_factory=lambda: {"up": 0.0, "down": 0.0})

    def set_faults(self, directions: Iterable[Direction], faults: Faults) -> None:
        """Replace the faults of some directions, and wake what waits for a change."""
        self.free_s = dict(self.free_s)
        for direction in directions:
            self.faults[direction] = faults
        if faults.is_refused:
            self.reset(self.connections)
        if not any(each.is_black_hole for each in self.faults.values()):
            self.reset(one for one in self.connections if one.has_lost)
        before, self.changed = self.changed, asyncio.Event()
        before.set()

    def reset(self, connections: Iterable[Connection]) -> None:
        """Reset connections."""
        for connection in tuple(connections):
            connection.reset()


class Connection:
    """One connection through a link: two pumps."""

    def __init__(self, link: Link, up: Pipe, down: Pipe) -> None:
        self._link = link
        self._pipes = (up, down)
        #: Bytes of it were swallowed; it cannot go on.
        self.has_lost = False

    def reset(self) -> None:
        """End both sides with a reset."""
        self._link.counts.resets += 1
        for pipe in self._pipes:
            _abort(pipe.writer)

    async def run(self) -> None:
        """Pump until both directions have ended."""
        up, down = self._pipes
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump("up", up))
                group.create_task(self._pump("down", down))
        except* (OSError, RuntimeError):
            pass  # one side has reset, or was reset by a command; the other is reset below
        finally:
            for pipe in self._pipes:
                _abort(pipe.writer)

    async def _pump(self, direction: Direction, pipe: Pipe) -> None:
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_PIECES_MAX)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._take(direction, pipe, pieces))
            group.create_task(self._deliver(direction, pipe, pieces))

    async def _take(
        self, direction: Direction, pipe: Pipe, pieces: asyncio.Queue[tuple[float, bytes]]
    ) -> None:
        """Read, spoil, and put into the queue with the time of delivery; empty for the end."""
        loop, link, passed = asyncio.get_running_loop(), self._link, 0
        last_s = 0.0
        while True:
            is_slow = link.faults[direction].bytes_per_s > 0
            data = await pipe.reader.read(_SLOW_READ_BYTES if is_slow else _READ_BYTES)
            while link.faults[direction].is_stalled:
                await link.changed.wait()
            faults = link.faults[direction]
            if data and faults.is_black_hole:
                link.counts.swallowed_bytes += len(data)
                self.has_lost = True
                continue
            self._count(direction, len(data))
            data = self._spoil(faults, data)
            passed += len(data)
            if faults.limit_bytes and passed > faults.limit_bytes:
                self.reset()
            delay_s = faults.latency_s + link.random.uniform(0, faults.jitter_s)
            if not data:
                delay_s += faults.slow_close_s
            if faults.bytes_per_s:
                now_s, free_s = loop.time(), link.free_s[direction]
                # Late by less than that it is this process that was late, and not the link idle.
                begins_s = free_s if now_s - free_s < _LATE_S else now_s
                link.free_s[direction] = begins_s + len(data) / faults.bytes_per_s
                await asyncio.sleep(max(0.0, link.free_s[direction] - now_s))
            # Never before what was read earlier: jitter does not reorder a stream.
            last_s = max(last_s, loop.time() + delay_s)
            await pieces.put((last_s, data))
            if not data:
                return

    async def _deliver(
        self, direction: Direction, pipe: Pipe, pieces: asyncio.Queue[tuple[float, bytes]]
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due_s, data = await pieces.get()
            if due_s > loop.time():
                await asyncio.sleep(due_s - loop.time())
            if not data:
                if pipe.writer.can_write_eof():
                    pipe.writer.write_eof()
                return
            faults = self._link.faults[direction]
            size = faults.slice_bytes or len(data)
            for start in range(0, len(data), size):
                if faults.slice_bytes:
                    await asyncio.sleep(faults.slice_pause_s)
                pipe.writer.write(data[start : start + size])
                await pipe.writer.drain()

    def _count(self, direction: Direction, size: int) -> None:
        counts = self._link.counts
        if direction == "up":
            counts.reads_up += bool(size)
            counts.bytes_up += size
        else:
            counts.bytes_down += size

    def _spoil(self, faults: Faults, data: bytes) -> bytes:
        random, counts = self._link.random, self._link.counts
        if data and faults.corrupt_ratio and random.random() < faults.corrupt_ratio:
            spoilt = bytearray(data)
            spoilt[random.randrange(len(data))] ^= 1 << random.randrange(8)
            data = bytes(spoilt)
            counts.corrupted += 1
        if data and faults.duplicate_ratio and random.random() < faults.duplicate_ratio:
            data *= 2
            counts.duplicated += 1
        return data


@dataclass(frozen=True, slots=True, eq=False)
class Pipe:
    """One direction: from a reader to a writer."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class Proxy:
    """All links of one process."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._links: dict[str, Link] = {}
        self._servers: list[asyncio.Server] = []

    @property
    def links(self) -> tuple[Link, ...]:
        """All links, in the order they were made."""
        return tuple(self._links.values())

    async def do(self, command: dict[str, Any]) -> dict[str, Any]:
        """Perform one command; its answer."""
        match command["op"]:
            case "listen":
                return {"port": await self._listen(command["link"], command["target"])}
            case "stats":
                return {"links": {name: asdict(link.counts) for name, link in self._links.items()}}
            case _:
                one_for_all: dict[Direction, float] = {"up": 0.0, "down": 0.0}
                for link in self._named(command["link"]):
                    _change(link, command)
                    if command.get("faults", {}).get("is_shared"):
                        link.free_s = one_for_all
        return {}

    def close(self) -> None:
        """Listen no more."""
        for server in self._servers:
            server.close()

    def _named(self, pattern: str) -> list[Link]:
        found = [link for name, link in self._links.items() if fnmatch(name, pattern)]
        if not found:
            raise ValueError(f"no link is called {pattern!r}; there are {sorted(self._links)}")
        return found

    async def _listen(self, name: str, target: list[Any]) -> int:
        link = Link(name, (target[0], target[1]), Random(f"{self._seed}:{name}"))

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await _serve(link, reader, writer)

        server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1024)
        self._servers.append(server)
        self._links[name] = link
        port: int = server.sockets[0].getsockname()[1]
        return port


def _change(link: Link, command: dict[str, Any]) -> None:
    """Do to one link what a command says."""
    both: tuple[Direction, ...] = ("up", "down")
    match command["op"]:
        case "fault":
            wanted = both if command["direction"] == "both" else (command["direction"],)
            link.set_faults(wanted, Faults(**command["faults"]))
        case "heal":
            link.set_faults(both, Faults())
        case "cut":
            link.reset(link.connections)
        case "lead":
            link.target = (command["target"][0], command["target"][1])
            link.reset(link.connections)
        case other:
            raise ValueError(f"no such command: {other}")


async def _serve(link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    link.counts.connections += 1
    if any(faults.is_refused for faults in link.faults.values()):
        _abort(writer)
        return
    try:
        far_reader, far_writer = await asyncio.wait_for(
            asyncio.open_connection(*link.target), _DIAL_S
        )
    except (OSError, TimeoutError):
        _abort(writer)
        return
    connection = Connection(link, Pipe(reader, far_writer), Pipe(far_reader, writer))
    link.connections.add(connection)
    try:
        await connection.run()
    finally:
        link.connections.discard(connection)


def _abort(writer: asyncio.StreamWriter) -> None:
    """Reset a connection."""
    raw = writer.get_extra_info("socket")
    if raw is not None:
        # uvloop knows no descriptor of a connection that is closed already.
        with suppress(OSError, ValueError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()


async def _main(seed: int) -> None:
    proxy = Proxy(seed)
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(commands), sys.stdin
    )
    while line := await commands.readline():
        try:
            answer = await proxy.do(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            answer = {"error": repr(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    uvloop.run(_main(int(sys.argv[1])))
