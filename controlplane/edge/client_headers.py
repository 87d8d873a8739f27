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
TTFT_DEADLINE_HEADER: Final = "x-prfaas-ttft-deadline-ms"

#: Seconds with up to three decimals: no sign, no exponent, no infinity.
_SECONDS: Final = re.compile(r"[0-9]{1,6}(\.[0-9]{1,3})?")
_MILLISECONDS: Final = re.compile(r"[0-9]{1,9}")
#: Printable ASCII without the space, whose place at the ends a proxy may change.
_KEY: Final = re.compile(r"[!-~]{1,255}")

_TENANT_DIGITS: Final = 32


class Headers(Protocol):
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
    token = bearer_token(authorization)
    if token is not None:
        return _digest("token", token, salt)
    return _digest("user", user, salt) if user else ANONYMOUS


def bearer_token(authorization: str | None) -> str | None:
    """The token of an `Authorization` header, if it has one. Pure."""
    scheme, _, token = (authorization or "").partition(" ")
    return (token.strip() or None) if scheme.lower() == "bearer" else None


def _digest(kind: str, name: str, salt: str) -> str:
    # Headers may hold bytes that are no UTF-8; aiohttp keeps them as surrogates.
    text = f"{len(salt)}:{salt}{kind}:{name}".encode("utf-8", "surrogateescape")
    return sha256(text).hexdigest()[:_TENANT_DIGITS]


def timeout_of(headers: Headers, *, longest_s: float) -> float:
    """
    Seconds that the request may take: what the client asks for, or the most there is. Pure.

    Raises:
        MalformedRequest: Not a number of seconds above 0 and up to `longest_s`.
    """
    given = single(headers, TIMEOUT_HEADER)
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


def ttft_deadline_of(headers: Headers, *, longest_s: float) -> float | None:
    """
    Seconds within which the client wants its first token, or None without a wish. Pure.

    Raises:
        MalformedRequest: Not a whole number of milliseconds from 1 up to `longest_s`.
    """
    given = single(headers, TTFT_DEADLINE_HEADER)
    if given is None:
        return None
    longest_ms = int(longest_s * 1000)
    milliseconds = int(given) if _MILLISECONDS.fullmatch(given) else 0
    if not 0 < milliseconds <= longest_ms:
        raise MalformedRequest(
            f"{TTFT_DEADLINE_HEADER}: expected milliseconds, a whole number from 1 to {longest_ms}",
            param=TTFT_DEADLINE_HEADER,
        )
    return milliseconds / 1000


def idempotency_key_of(headers: Headers, *, tenant: str) -> str | None:
    """
    The name under which a request is known when it is sent again, or None without one. Pure.

    Returns:
        SHA-256 of tenant and key, hexadecimal: two tenants may choose the same key, and its text
        stays here.

    Raises:
        MalformedRequest: Not 1 to 255 visible ASCII characters.
    """
    given = single(headers, KEY_HEADER)
    if given is None:
        return None
    if not _KEY.fullmatch(given):
        raise MalformedRequest(
            f"{KEY_HEADER}: expected 1 to 255 visible ASCII characters without spaces",
            param=KEY_HEADER,
        )
    return sha256(f"{len(tenant)}:{tenant}:{given}".encode("ascii")).hexdigest()


def single(headers: Headers, name: str) -> str | None:
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
