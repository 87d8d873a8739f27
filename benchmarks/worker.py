"""
Workers that do nothing, at once: so that what is measured is the router.

One process stands for all workers of the fleet, each on a port of its own, in a hand-written
HTTP server that costs about as little as one in Python can. It also answers the plain OpenAI
route, which `direct` and the bare proxy use.
"""

from __future__ import annotations

import asyncio
import json
import sys
from functools import partial
from typing import Final, cast

import uvloop

from benchmarks.answers import Answers, Pieces, answers_of
from benchmarks.cells import SIZES
from benchmarks.fleet import WORKERS, beat_of, bench_fleet, shared_inventory
from controlplane.errors import StoreError
from controlplane.store.redis_store import RedisStore
from controlplane.wire import Inventory, WorkerBeat

#: Where the word that asks for a stream stands, if it is there: far before any prompt.
_HEADER_BYTES: Final = 2048
_LENGTH: Final = b"content-length:"


class _Server(asyncio.Protocol):
    """One connection; one request at a time."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        # uvloop's transports are no subclasses of the interface that they have.
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Say no more."""
        del exc
        self._transport = None

    def data_received(self, data: bytes) -> None:
        """Answer when the request is complete."""
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._buffer[:end])
        place = head.lower().find(_LENGTH)
        length = int(head[place + len(_LENGTH) :].split(b"\r\n", 1)[0]) if place >= 0 else 0
        if len(self._buffer) < end + 4 + length:
            return
        opening = bytes(self._buffer[end + 4 : end + 4 + _HEADER_BYTES])
        self._buffer.clear()
        self._send(self._answer(head, opening), 0)

    def _answer(self, head: bytes, body: bytes) -> Pieces:
        method, path, _ = head.split(b" ", 2)
        if method == b"DELETE":
            return self._answers.aborted
        if path == b"/worker/v1/prefill":
            return self._answers.prefill
        if path == b"/worker/v1/decode":
            is_stream = b'"is_stream":true' in body
            return self._answers.decode_stream if is_stream else self._answers.decode
        is_stream = b'"stream":true' in body
        return self._answers.openai_stream if is_stream else self._answers.openai

    def _send(self, pieces: Pieces, index: int) -> None:
        if self._transport is None:
            return
        self._transport.write(pieces[index])
        if index + 1 < len(pieces):
            self._loop.call_soon(self._send, pieces, index + 1)


async def _report(store: RedisStore, beats: list[WorkerBeat], interval_s: float) -> None:
    """Beat for all workers until the loop ends."""
    while True:
        for index, beat in enumerate(beats):
            try:
                await store.heartbeat(beat, ttl_s=5.0)
            except StoreError:
                continue
            update = {"sequence": beat.sequence + 1, "inventory": Inventory()}
            beats[index] = beat.model_copy(update=update)
        await asyncio.sleep(interval_s)


async def _serve(size_name: str, redis_url: str) -> None:
    """Listen, register, say where, and serve until standard input closes."""
    loop = asyncio.get_running_loop()
    size = next(size for size in SIZES if size.name == size_name)
    fleet = bench_fleet(size)
    shared = shared_inventory(size, fleet)
    beats: list[WorkerBeat] = []
    # Held, because a server that nobody holds is closed.
    servers: list[asyncio.Server] = []
    for spec in WORKERS:
        answers = answers_of(spec, size, fleet)
        server = await loop.create_server(partial(_Server, answers), "127.0.0.1", 0)
        servers.append(server)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        inventory = shared if spec.role == "prefill" else Inventory(is_full=True)
        beats.append(beat_of(spec, url=url, size=size, fleet=fleet, inventory=inventory))
    store = RedisStore(redis_url, fleet=fleet.name, config=fleet.store)
    ended = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), ended.set)
    async with asyncio.TaskGroup() as group:
        beating = group.create_task(_report(store, beats, fleet.heartbeat.interval_s))
        print(json.dumps({"url": beats[0].url}), flush=True)
        await ended.wait()
        beating.cancel()
    for server in servers:
        server.close()
    await store.close()


if __name__ == "__main__":
    uvloop.run(_serve(*sys.argv[1:]))
