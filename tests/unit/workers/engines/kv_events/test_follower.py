"""A real ZeroMQ publisher that loses batches, restarts, and answers for its past."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import zmq
import zmq.asyncio
from worker_builders import until

from controlplane.domain.prefix import block_hashes
from controlplane.domain.tokens import TokenIds
from workers.engines.kv_events.follower import EventFollower, EventSource
from workers.engines.kv_events.index import BlockIndex
from workers.engines.kv_events.inventory import ServerInventory


class Publisher:
    """As vLLM's: a ring of batches, PUB for new ones, ROUTER for old ones."""

    def __init__(self) -> None:
        self._context = zmq.asyncio.Context()
        self._live, self._past = self._context.socket(zmq.PUB), self._context.socket(zmq.ROUTER)
        for socket in (self._live, self._past):
            socket.set(zmq.LINGER, 0)
        self.port = self._live.bind_to_random_port("tcp://127.0.0.1")
        self.replay_port = self._past.bind_to_random_port("tcp://127.0.0.1")
        self._ring: dict[int, bytes] = {}
        self.replays = 0
        self._task = asyncio.get_running_loop().create_task(self._answer())

    async def store(self, number: int, token: int, *, is_lost: bool = False) -> None:
        event = {
            "type": "BlockStored", "block_hashes": [token], "parent_block_hash": None,
            "token_ids": [token], "block_size": 1, "medium": "GPU", "extra_keys": [["s"]],
        }  # fmt: skip
        self._ring[number] = msgspec.msgpack.encode([1.0, [event], 0])
        if not is_lost:
            await self.send(b"kv", number.to_bytes(8, "big"), self._ring[number])

    async def send(self, *frames: bytes) -> None:
        await self._live.send_multipart(frames)

    def restart(self) -> None:
        self._ring.clear()

    async def _answer(self) -> None:
        while True:
            who, _, start = await self._past.recv_multipart()
            self.replays += 1
            for number, payload in self._ring.items():
                if number >= int.from_bytes(start, "big"):
                    await self._past.send_multipart(
                        [who, b"", b"kv", number.to_bytes(8, "big"), payload]
                    )
            await self._past.send_multipart([who, b"", b"", b"\xff" * 8, b""])

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        self._context.destroy(linger=0)


class World:
    def __init__(self) -> None:
        self.publisher = Publisher()
        self.index = BlockIndex(block_tokens=1, width_bytes=2)
        source = EventSource("127.0.0.1", self.publisher.port, self.publisher.replay_port)
        self.follower = EventFollower([source], ServerInventory([self.index], None))

    async def holds(self, *tokens: int) -> None:
        """Wait until exactly these blocks are known."""
        expected = {
            block_hashes(TokenIds.from_ints([token], 2), block_tokens=1, scope="s")[0]
            for token in tokens
        }
        await until(lambda: set(self.index.entries) == expected)


@asynccontextmanager
async def a_world(*before: int) -> AsyncIterator[World]:
    """A follower that has read the past of its publisher."""
    world = World()
    for number, token in enumerate(before):
        await world.publisher.store(number, token, is_lost=True)
    world.follower.start()
    try:
        await until(lambda: world.publisher.replays == 1)
        await world.holds(*before)
        yield world
    finally:
        await world.follower.close()
        await world.publisher.close()


async def test_a_late_follower_reads_the_past_and_goes_on_live() -> None:
    async with a_world(1, 2) as world:
        await world.publisher.store(2, 3)

        await world.holds(1, 2, 3)


async def test_a_gap_is_filled_from_the_past() -> None:
    async with a_world(1) as world:
        await world.publisher.store(1, 2)
        await world.publisher.store(2, 3, is_lost=True)
        await world.publisher.store(3, 4)

        await world.holds(1, 2, 3, 4)
        assert world.publisher.replays == 2
        assert world.follower.losses_total == 0


async def test_a_restart_forgets_the_old_life() -> None:
    async with a_world(1) as world:
        await world.publisher.store(1, 2)
        await world.holds(1, 2)

        world.publisher.restart()
        await world.publisher.store(0, 9)

        await world.holds(9)


async def test_garbage_ends_nothing() -> None:
    async with a_world(1) as world:
        await world.publisher.send(b"alone")
        await world.publisher.send(b"kv", b"short", b"x")
        await world.publisher.send(b"kv", (1).to_bytes(8, "big"), b"\xc1")
        await world.publisher.store(2, 3)

        await world.holds(1, 3)


async def test_live_batches_are_taken_although_nobody_answers_for_the_past() -> None:
    publisher = Publisher()
    index = BlockIndex(block_tokens=1, width_bytes=2)
    # The port of the live batches, which answers no question.
    source = EventSource("127.0.0.1", publisher.port, publisher.port)
    follower = EventFollower([source], ServerInventory([index], None), replay_s=0.2)
    follower.start()
    number = 0
    try:
        while not index.entries:
            await publisher.store(number, number % 60_000)
            number += 1
            # Far more often than a replay may be silent.
            await asyncio.sleep(0.002)
    finally:
        await follower.close()
        await publisher.close()
