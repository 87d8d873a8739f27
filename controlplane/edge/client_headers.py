"""What a client says in headers: who it is, how long it waits, and which request this is again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Final, Protocol

from controlplane.errors import MalformedRequest

ANONYMOUS: Final = "anonymous"

TIMEOUT_HEADER: Final = "x-request-timeout"
KEY_HEADER: Final = "idempotency-key"

#: Seconds with up to three decimals: no sign, no exponent, no infinity.
_SECONDS: Final = re.compile(r"[0-9]{1,6}(\.[0-9]{1,3})?")
#: Printable ASCII without the space, whose place at the ends a proxy may change.
_KEY: Final = re.compile(r"[!-~]{1,255}")

_TENANT_DIGITS: Final = 32


class _Headers(Protocol):
    """Headers of a request, names in any case."""

    def getall(self, key: str, default: list[str]) -> list[str]:
        """All values of a header."""
        ...


def tenant_of(authorization: str | None, user: str | None, *, salt: str) -> str:
    """
    Whose request it is, for fair shares: by its bearer token, else by the `user` field. Pure.

    Args:
        authorization: The header, if there is one.
        user: The field of the body, if there is one.
        salt: The router's secret: without it nobody can try names or tokens against a digest.

    Returns:
        A digest of 32 hexadecimal digits, or "anonymous".
    """
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return _digest("token", token.strip(), salt)
    return _digest("user", user, salt) if user else ANONYMOUS


def _digest(kind: str, name: str, salt: str) -> str:
    # Headers may hold bytes that are no UTF-8; aiohttp keeps them as surrogates.
    text = f"{len(salt)}:{salt}{kind}:{name}".encode("utf-8", "surrogateescape")
    return sha256(text).hexdigest()[:_TENANT_DIGITS]


def timeout_of(headers: _Headers, *, longest_s: float) -> float:
    """
    Seconds that the request may take: what the client asks for, or the most there is. Pure.

    Raises:
        MalformedRequest: Not a number of seconds above 0 and up to `longest_s`.
    """
    given = _only(headers, TIMEOUT_HEADER)
    if given is None:
        return longest_s
    seconds = float(given) if _SECONDS.fullmatch(given) else 0.0
    if not 0 < seconds <= longest_s:
        raise MalformedRequest(
            f"{TIMEOUT_HEADER}: expected seconds above 0 and up to {longest_s:g}, "
            "with at most three decimals",
            param=TIMEOUT_HEADER,
        )
    return seconds


def idempotency_key_of(headers: _Headers, *, tenant: str) -> str | None:
    """
    The name under which a request is known when it is sent again, or None without one. Pure.

    Returns:
        SHA-256 of tenant and key, hexadecimal: two tenants may choose the same key, and its text
        stays here.

    Raises:
        MalformedRequest: Not 1 to 255 visible ASCII characters.
    """
    given = _only(headers, KEY_HEADER)
    if given is None:
        return None
    if not _KEY.fullmatch(given):
        raise MalformedRequest(
            f"{KEY_HEADER}: expected 1 to 255 visible ASCII characters without spaces",
            param=KEY_HEADER,
        )
    return sha256(f"{len(tenant)}:{tenant}:{given}".encode("ascii")).hexdigest()


def _only(headers: _Headers, name: str) -> str | None:
    """
    The value of a header that may stand once.

    Raises:
        MalformedRequest: It is there more than once.
    """
    values = headers.getall(name, [])
    if len(values) > 1:
        raise MalformedRequest(f"{name}: expected one, got {len(values)}", param=name)
    return values[0] if values else None


def client_id_of(headers: Mapping[str, str]) -> str | None:
    """The client's own request id: kept for its search, never used as a key. Pure."""
    given = headers.get("x-request-id")
    if not given:
        return None
    return "".join(char for char in given[:_CLIENT_ID_MAX] if char.isprintable())


_CLIENT_ID_MAX: Final = 128
