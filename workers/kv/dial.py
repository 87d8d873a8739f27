"""Connecting to the owner of KV, by address or by name."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket


async def connect(host: str, port: int) -> socket.socket:
    """
    A connected socket to the first address of a host that takes it.

    Raises:
        OSError: None does, or the name has no address.
    """
    loop = asyncio.get_running_loop()
    failure = OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    for family, address in await _addresses(host, port):
        with contextlib.ExitStack() as opened:
            sock = opened.enter_context(socket.socket(family, socket.SOCK_STREAM))
            sock.setblocking(False)
            try:
                await loop.sock_connect(sock, address)
            except OSError as error:
                failure = error
                continue
            opened.pop_all()
            return sock
    raise failure


async def _addresses(host: str, port: int) -> list[tuple[int, tuple[str, int]]]:
    """Families and socket addresses of a host; only a name costs a thread and a resolver."""
    try:
        number = ipaddress.ip_address(host)
    except ValueError:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return [(family, (str(address[0]), port)) for family, _, _, _, address in found]
    return [(socket.AF_INET if number.version == 4 else socket.AF_INET6, (host, port))]  # noqa: PLR2004 - the version is called 4


def reason(error: OSError) -> str:
    """What an error says, without the address it may name."""
    # The text of asyncio's own connection errors holds the address; the number's text does not.
    return os.strerror(error.errno) if error.errno else type(error).__name__
