"""
What REDIS_URL says: which servers, and how to speak to them.

- `redis://[user:password@]host:6379[,host2:6379...][/db]`: one server, or seed nodes of a cluster.
- `rediss://...`: the same over TLS.
- `unix://[user:password@]/path?db=0`: a socket of this machine.
- `redis+sentinel://[user:password@]host:26379[,host2:26379...]/<master name>[/db]`, and
  `rediss+sentinel://...`: sentinels, which know the master of that name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from redis.asyncio.connection import parse_url

from controlplane.errors import ConfigError

#: Servers a URL may name: three sites with five each; a longer list is a mistake.
HOSTS_MAX: Final = 16

#: Parts of a URL that do not change how we wait, retry or decode.
_OPTIONS: Final = ("db", "username", "password", "ssl_", "sentinel_username", "sentinel_password")
_SENTINEL_OPTIONS: Final = ("sentinel_username", "sentinel_password")
_SCHEMES: Final = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel")
_PORTS: Final = {False: 6379, True: 26379}
#: A name, an IPv4 address, or an IPv6 address in brackets; and a port.
_HOST = re.compile(
    r"(?:\[(?P<six>[0-9A-Fa-f:.%]+)\]|(?P<name>[^\[\]:@/\s]+))(?::(?P<port>[0-9]+))?"
)
_PORT_MAX: Final = 65535


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is."""

    #: Name or address, or the path of a socket.
    host: str
    #: 0 for a socket.
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreUrl:
    """A checked REDIS_URL."""

    #: Servers, or sentinels. At least one, none twice.
    addresses: tuple[Address, ...]
    #: What sentinels call the master; None without sentinels.
    master: str | None
    is_tls: bool
    #: `db`, credentials and `ssl_...` for servers. Secret.
    options: Mapping[str, Any] = field(repr=False)
    #: Credentials and `ssl_...` for sentinels. Secret.
    sentinel_options: Mapping[str, Any] = field(repr=False)


def parse_store_url(url: str) -> StoreUrl:
    """
    Check a REDIS_URL.

    Raises:
        ConfigError: Not one of the forms above; the message does not quote it, because it may
            hold a password.
    """
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES or not url.startswith(f"{parts.scheme}://"):
        raise ConfigError(
            "REDIS_URL must begin with redis://, rediss://, unix://, redis+sentinel:// or "
            "rediss+sentinel://, for example redis://127.0.0.1:6379/0"
        )
    query = parse_qsl(parts.query, keep_blank_values=True)
    for option, _ in query:
        if not option.startswith(_OPTIONS):
            raise ConfigError(
                f"REDIS_URL may not set {option!r}: waits and retries belong to the section "
                "[store] of the fleet file"
            )
    is_sentinel = parts.scheme.endswith("+sentinel")
    user, at, hosts = parts.netloc.rpartition("@")
    master, path = _master_and_path(parts.path) if is_sentinel else (None, parts.path)
    addresses = (
        (Address(path, 0),)
        if parts.scheme == "unix"
        else _addresses(hosts, is_sentinel=is_sentinel)
    )
    plain = urlencode([item for item in query if item[0] not in _SENTINEL_OPTIONS])
    scheme = parts.scheme.removesuffix("+sentinel")
    # What is left is a URL of one server, whose options the client's own rules convert.
    options = _options(urlunsplit((scheme, f"{user}{at}localhost", path, plain, "")))
    if scheme == "unix":
        addresses = (Address(options.pop("path", ""), 0),)
        if not addresses[0].host:
            raise ConfigError("REDIS_URL is not usable: unix:// needs the path of a socket")
    given = dict(query)
    sentinel_options = {key: value for key, value in options.items() if key.startswith("ssl_")}
    for option in _SENTINEL_OPTIONS:
        if option in given:
            sentinel_options[option.removeprefix("sentinel_")] = given[option]
    return StoreUrl(
        addresses=addresses,
        master=master,
        is_tls=scheme == "rediss",
        options=options,
        sentinel_options=sentinel_options,
    )


def to_address(host: str, port: str) -> Address | None:
    """A server that another one names; None if that is no address."""
    if not host or host == "?" or not port.isascii() or not port.isdigit():
        return None
    number = int(port)
    return Address(host, number) if 0 < number <= _PORT_MAX else None


def _master_and_path(path: str) -> tuple[str, str]:
    """What the sentinels call the master, and the rest of the path."""
    name, _, rest = path.removeprefix("/").partition("/")
    if not name:
        raise ConfigError(
            "REDIS_URL with sentinels names their master, for example "
            "redis+sentinel://10.0.0.1:26379,10.0.0.2:26379/mymaster/0"
        )
    return name, f"/{rest}"


def _addresses(hosts: str, *, is_sentinel: bool) -> tuple[Address, ...]:
    found: dict[Address, None] = {}
    for text in hosts.split(","):
        match = _HOST.fullmatch(text)
        port = int(match["port"] or _PORTS[is_sentinel]) if match else 0
        if match is None or not 0 < port <= _PORT_MAX:
            raise ConfigError(
                "REDIS_URL is not usable: it needs host:port, or several of them with commas, "
                "for example redis://10.0.0.1:6379,10.0.0.2:6379/0"
            )
        found[Address(match["six"] or match["name"], port)] = None
    if len(found) > HOSTS_MAX:
        raise ConfigError(f"REDIS_URL may name at most {HOSTS_MAX} servers, not {len(found)}")
    return tuple(found)


def _options(url: str) -> dict[str, Any]:
    try:
        options: dict[str, Any] = {**parse_url(url)}
    except ValueError as error:
        raise ConfigError(f"REDIS_URL is not usable: {error}") from error
    for known in ("host", "port", "connection_class"):
        options.pop(known, None)
    return options
