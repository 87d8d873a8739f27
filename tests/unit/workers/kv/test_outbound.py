from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from kv_builders import VirtualTime, settle

from workers.kv.outbound import Outbound


@dataclass
class Wire:
    """A socket that notes when which bytes were written; it can be blocked or break."""

    time: VirtualTime
    written: list[tuple[float, bytes]] = field(default_factory=list)
    is_open: asyncio.Event = field(default_factory=asyncio.Event)
    error: OSError | None = None

    async def write(self, *buffers: Any) -> None:
        await self.is_open.wait()
        if self.error is not None:
            raise self.error
        self.written.append((self.time() - 1000, b"".join(buffers)))


@pytest.fixture
def time() -> VirtualTime:
    return VirtualTime()


@pytest.fixture
def wire(time: VirtualTime) -> Wire:
    wire = Wire(time)
    wire.is_open.set()
    return wire


@pytest.fixture
async def outbound(wire: Wire, time: VirtualTime) -> AsyncIterator[Outbound]:
    outbound = Outbound(wire, clock=time, sleep=time.sleep)
    running = asyncio.ensure_future(outbound.run())
    yield outbound
    running.cancel()
    await asyncio.wait([running])


async def send_all(outbound: Outbound, frames: list[bytes]) -> None:
    for frame in frames:
        await outbound.send(frame[:1], frame[1:])
    await outbound.flush()


async def test_without_delay_a_frame_is_written_at_once(outbound: Outbound, wire: Wire) -> None:
    await outbound.send(b"head", b"body")

    assert wire.written == [(0, b"headbody")]


async def test_a_delay_is_added_once_and_not_for_each_frame(
    outbound: Outbound, wire: Wire, time: VirtualTime
) -> None:
    outbound.set_delay(0.02, window_bytes=1 << 20)

    await time.run_until(asyncio.ensure_future(send_all(outbound, [b"a", b"b", b"c"])))

    assert [at_s for at_s, _ in wire.written] == pytest.approx([0.02] * 3)


async def test_a_delay_keeps_distances_and_throughput(
    outbound: Outbound, wire: Wire, time: VirtualTime
) -> None:
    outbound.set_delay(1.0, window_bytes=1 << 20)

    async def every_tenth() -> None:
        for number in range(30):
            await outbound.send(bytes([number]))
            await time.sleep(0.1)
        await outbound.flush()

    await time.run_until(asyncio.ensure_future(every_tenth()))

    assert [at_s for at_s, _ in wire.written] == pytest.approx(
        [1 + number / 10 for number in range(30)]
    )


async def test_a_delay_keeps_the_order(outbound: Outbound, wire: Wire, time: VirtualTime) -> None:
    frames = [bytes([number]) for number in range(50)]
    outbound.set_delay(0.02, window_bytes=1 << 20)

    await time.run_until(asyncio.ensure_future(send_all(outbound, frames)))

    assert [frame for _, frame in wire.written] == frames


async def test_a_frame_without_delay_does_not_overtake_one_that_travels(
    outbound: Outbound, wire: Wire, time: VirtualTime
) -> None:
    outbound.set_delay(0.02, window_bytes=1 << 20)
    await outbound.send(b"first")
    outbound.set_delay(0, window_bytes=0)

    await time.run_until(asyncio.ensure_future(send_all(outbound, [b"second"])))

    assert [frame for _, frame in wire.written] == [b"first", b"second"]


async def test_a_full_line_holds_the_sender_up(
    outbound: Outbound, wire: Wire, time: VirtualTime
) -> None:
    outbound.set_delay(0.02, window_bytes=10)
    sending = asyncio.ensure_future(send_all(outbound, [b"12345678", b"12345678"]))

    await settle()
    travelling = outbound._line_bytes
    await time.run_until(sending)

    assert travelling == 8
    assert len(wire.written) == 2


async def test_a_frame_larger_than_the_line_still_travels(
    outbound: Outbound, wire: Wire, time: VirtualTime
) -> None:
    outbound.set_delay(0.02, window_bytes=1)

    await time.run_until(asyncio.ensure_future(send_all(outbound, [b"large"] * 3)))

    assert len(wire.written) == 3


async def test_flush_waits_until_the_kernel_has_everything(
    outbound: Outbound, wire: Wire, time: VirtualTime
) -> None:
    outbound.set_delay(0.02, window_bytes=1 << 20)
    wire.is_open.clear()
    sending = asyncio.ensure_future(send_all(outbound, [b"a"]))
    await settle()
    time._sleepers[0][2].set_result(None)
    await settle()

    was_done = sending.done()
    wire.is_open.set()
    await sending

    assert not was_done


async def test_a_broken_socket_ends_the_line(wire: Wire, time: VirtualTime) -> None:
    outbound = Outbound(wire, clock=time, sleep=time.sleep)
    outbound.set_delay(0.02, window_bytes=1 << 20)
    wire.error = ConnectionResetError()
    await outbound.send(b"a")
    running = asyncio.ensure_future(outbound.run())

    await time.run_until(running)

    assert isinstance(running.exception(), ConnectionResetError)


async def test_the_time_of_the_last_frame_is_known(outbound: Outbound, time: VirtualTime) -> None:
    time.advance(5)

    await outbound.send(b"a")

    assert outbound.last_sent_s == time()
