from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from random import Random

import pytest
from kv_builders import Run, socket_pair

from workers.kv.stream import Stream


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    yield from socket_pair()


Pair = tuple[socket.socket, socket.socket]


def test_large_buffers_arrive_whole_and_in_order(run: Run, pair: Pair) -> None:
    data = Random(0).randbytes(20 << 20)
    got = bytearray(len(data) + 4)

    async def main() -> None:
        one, other = (Stream(sock, stall_timeout_s=10) for sock in pair)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(one.write(b"head", memoryview(data)))
            tasks.create_task(other.read_into(memoryview(got)))

    run(main())
    assert got == b"head" + data


def test_a_read_that_gets_nothing_times_out(run: Run, pair: Pair) -> None:
    async def main() -> None:
        stream = Stream(pair[0], stall_timeout_s=0.02)
        with pytest.raises(TimeoutError):
            await stream.read_into(memoryview(bytearray(1)))

    run(main())


def test_a_write_that_nobody_reads_times_out(run: Run, pair: Pair) -> None:
    async def main() -> None:
        stream = Stream(pair[0], stall_timeout_s=0.05)
        with pytest.raises(TimeoutError):
            await stream.write(bytes(64 << 20))

    run(main())


def test_a_peer_that_closes_ends_a_read(run: Run, pair: Pair) -> None:
    async def main() -> None:
        stream = Stream(pair[0], stall_timeout_s=10)
        pair[1].sendall(b"ab")
        pair[1].close()
        with pytest.raises(EOFError):
            await stream.read_into(memoryview(bytearray(3)))

    run(main())


def test_a_write_to_a_peer_that_left_fails(run: Run, pair: Pair) -> None:
    async def main() -> None:
        stream = Stream(pair[0], stall_timeout_s=10)
        pair[1].close()
        with pytest.raises(ConnectionError):
            await stream.write(bytes(64 << 20))

    run(main())


def test_a_cancelled_read_leaves_the_socket_usable(run: Run, pair: Pair) -> None:
    got = bytearray(2)

    async def main() -> None:
        stream = Stream(pair[0], stall_timeout_s=10)
        waiting = asyncio.ensure_future(stream.read_into(memoryview(got)))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        pair[1].sendall(b"ok")
        await stream.read_into(memoryview(got))

    run(main())
    assert got == b"ok"


def test_hanging_up_ends_a_pending_read_at_both_ends(run: Run, pair: Pair) -> None:
    async def main() -> None:
        one, other = (Stream(sock, stall_timeout_s=10) for sock in pair)
        reads = [
            asyncio.ensure_future(stream.read_into(memoryview(bytearray(1))))
            for stream in (one, other)
        ]
        await asyncio.sleep(0)
        one.hang_up()
        await asyncio.wait(reads)
        assert all(isinstance(read.exception(), EOFError) for read in reads)

    run(main())


def test_a_transfer_between_fast_peers_lets_other_work_go_on(run: Run, pair: Pair) -> None:
    """Neither side ever blocks here, so only the stream's own turns let the counter count."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def main() -> None:
        one, other = (Stream(sock, stall_timeout_s=10) for sock in pair)
        counting = asyncio.ensure_future(count())
        small, got = bytes(32 << 10), bytearray(32 << 10)
        for _ in range(256):
            await one.write(small)
            await other.read_into(memoryview(got))
        counting.cancel()

    run(main())
    assert turns >= 8


async def test_small_frames_are_not_held_back(pair: Pair) -> None:
    Stream(pair[0], stall_timeout_s=1)

    assert pair[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_a_congestion_control_that_is_not_there_changes_nothing(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(socket, "TCP_CONGESTION", raising=False)
    stream = Stream(pair[0], stall_timeout_s=1)

    stream.prefer_bbr()
    await stream.write(b"x")

    assert pair[1].recv(1) == b"x"


async def test_closing_twice_is_closing_once(pair: Pair) -> None:
    stream = Stream(pair[0], stall_timeout_s=1)

    stream.close()
    stream.close()

    assert pair[0].fileno() == -1
