"""Two network namespaces with a link between them, and loopback without one."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Final

from benchmarks.wan.relay import DEVICE

TUN: Final = FilePath("/dev/net/tun")
#: Larger packets on faster links: the relay costs the same for each.
_MTU: Final = ((200e6, 9000), (1e9, 32_000), (float("inf"), 65_000))


@dataclass(frozen=True)
class Path:
    """Where the two ends of a transfer run."""

    owner: tuple[str, ...] = ()
    reader: tuple[str, ...] = ()
    owner_host: str = "127.0.0.1"


def has_namespaces() -> bool:
    """Whether links can be made here."""
    return os.geteuid() == 0 and TUN.exists()


@contextlib.contextmanager
def a_path(bits_per_s: float, rtt_s: float) -> Iterator[Path]:
    """A link of a rate and a round trip time between two namespaces; needs root."""
    names = tuple(f"prfaas-wan-{os.getpid()}-{side}" for side in "or")
    relay: subprocess.Popen[str] | None = None
    try:
        for name in names:
            _ip("netns", "add", name)
        relay = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.wan.relay", *names, str(bits_per_s), str(rtt_s)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert relay.stdout is not None
        if relay.stdout.readline() != "ready\n":
            raise OSError("the relay of the link did not start")
        mtu = next(size for rate, size in _MTU if bits_per_s <= rate)
        for number, name in enumerate(names, 1):
            _ip("-n", name, "addr", "add", f"10.97.0.{number}/24", "dev", DEVICE)
            _ip("-n", name, "link", "set", DEVICE, "mtu", str(mtu), "up")
        owner, reader = (("ip", "netns", "exec", name) for name in names)
        yield Path(owner=owner, reader=reader, owner_host="10.97.0.1")
    finally:
        if relay is not None:
            relay.kill()
            relay.wait()
            if relay.stdout is not None:
                relay.stdout.close()
        for name in names:
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "del", name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=10)
