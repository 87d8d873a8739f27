"""
A link in user space: packets between two TUN devices at a rate, with delay, through a queue of bounded length.

The kernels of many machines have no netem, and a proxy of TCP would hide the round trip from the sockets whose
behaviour is measured; here both ends are real sockets over real packets.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import struct
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

DEVICE: Final = "wan0"
_CLONE_NEWNET: Final = 0x40000000
_TUNSETIFF: Final = 0x400454CA
_IFF_TUN_NO_PI: Final = 0x0001 | 0x1000
_PACKET_BYTES_MAX: Final = 1 << 16
#: A router's buffer: at least this, or what one round trip holds.
_QUEUE_BYTES_MIN: Final = 1 << 20


@dataclass
class Way:
    """One direction."""

    source: int
    sink: int
    bytes_per_s: float
    delay_s: float
    queue_bytes_max: float
    free_s: float = 0.0
    waiting: deque[tuple[float, bytes]] = field(default_factory=deque)

    def take(self, packet: bytes, now_s: float) -> None:
        """Queue a packet, or drop it where the queue is full."""
        start_s = max(self.free_s, now_s)
        if (start_s - now_s) * self.bytes_per_s > self.queue_bytes_max:
            return
        self.free_s = start_s + len(packet) / self.bytes_per_s
        self.waiting.append((self.free_s + self.delay_s, packet))

    def deliver(self, now_s: float) -> None:
        """What is due."""
        while self.waiting and self.waiting[0][0] <= now_s:
            # Its device may be gone already.
            with contextlib.suppress(OSError):
                os.write(self.sink, self.waiting[0][1])
            self.waiting.popleft()

    def due_s(self, now_s: float) -> float:
        """Seconds until the next is due; a long time for none."""
        return max(0.0, self.waiting[0][0] - now_s) if self.waiting else 1.0


def open_device(namespace: str) -> int:
    """A TUN device in a network namespace; the file goes on working from here."""
    library = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/self/ns/net").open() as here, Path(f"/run/netns/{namespace}").open() as there:
        if library.setns(there.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
        try:
            device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", DEVICE.encode(), _IFF_TUN_NO_PI))
        finally:
            library.setns(here.fileno(), _CLONE_NEWNET)
    return device


def relay(one: str, other: str, bits_per_s: float, rtt_s: float) -> None:
    """Carry packets until this process ends; says `ready` once the devices are there."""
    a, b = open_device(one), open_device(other)
    queue_bytes = max(_QUEUE_BYTES_MIN, bits_per_s / 8 * rtt_s)
    ways = [
        Way(source, sink, bits_per_s / 8, rtt_s / 2, queue_bytes)
        for source, sink in ((a, b), (b, a))
    ]
    print("ready", flush=True)
    while True:
        now_s = time.monotonic()
        for way in ways:
            way.deliver(now_s)
        readable, _, _ = select.select(
            [a, b], [], [], min(way.due_s(time.monotonic()) for way in ways)
        )
        for way in ways:
            if way.source in readable:
                with contextlib.suppress(BlockingIOError):
                    for _ in range(64):
                        way.take(os.read(way.source, _PACKET_BYTES_MAX), time.monotonic())


if __name__ == "__main__":
    relay(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
