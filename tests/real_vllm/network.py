"""Two datacenters on one machine: network namespaces with a shaped link, where root allows."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

#: Of the link between the two.
MBIT_PER_S = 200


@dataclass(frozen=True)
class Site:
    """Where a server of one datacenter runs."""

    #: Prefix of its commands.
    inside: tuple[str, ...]
    #: Where its API listens, and is reached from here.
    host: str
    #: Where the other site reaches its KV, and over which device.
    kv_host: str
    kv_device: str


LOOPBACK = Site(inside=(), host="127.0.0.1", kv_host="127.0.0.1", kv_device="lo")


@contextlib.contextmanager
def two_sites() -> Iterator[tuple[Site, Site, str]]:
    """East, west, and what the link between them is."""
    names = tuple(f"prfaas-{os.getpid()}-{side}" for side in "ew")
    try:
        _make(names)
    except (OSError, subprocess.CalledProcessError) as error:
        _remove(names)
        yield LOOPBACK, LOOPBACK, f"loopback, because there are no namespaces here: {error}"
        return
    try:
        east, west = (
            Site(
                inside=("ip", "netns", "exec", name),
                host=f"10.98.{number}.2",
                kv_host=f"10.98.9.{number}",
                kv_device=f"kv{number}",
            )
            for number, name in enumerate(names, 1)
        )
        yield east, west, f"{MBIT_PER_S} Mbit/s between two namespaces"
    finally:
        _remove(names)


def _make(names: tuple[str, ...]) -> None:
    """A link between the two for KV, and one from each to here for everything else."""
    for name in names:
        _ip(f"netns add {name}")
        _ip(f"-n {name} link set lo up")
    _ip("link add kv1 type veth peer name kv2")
    for number, name in enumerate(names, 1):
        here = f"pf{os.getpid()}{number}"
        _ip(f"link set kv{number} netns {name}")
        _ip(f"-n {name} addr add 10.98.9.{number}/24 dev kv{number}")
        _ip(f"-n {name} link set kv{number} up")
        shape = f"root tbf rate {MBIT_PER_S}mbit burst 256k latency 50ms"
        _run(f"ip netns exec {name} tc qdisc replace dev kv{number} {shape}")
        _ip(f"link add {here} type veth peer name api{number}")
        _ip(f"link set api{number} netns {name}")
        _ip(f"addr add 10.98.{number}.1/24 dev {here}")
        _ip(f"link set {here} up")
        _ip(f"-n {name} addr add 10.98.{number}.2/24 dev api{number}")
        _ip(f"-n {name} link set api{number} up")


def _remove(names: tuple[str, ...]) -> None:
    """With a namespace go its devices, and their other ends."""
    for name in names:
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            _ip(f"netns del {name}")


def _ip(arguments: str) -> None:
    _run(f"ip {arguments}")


def _run(command: str) -> None:
    subprocess.run(command.split(), check=True, capture_output=True, timeout=10)
