"""What a server's refusals say about where the data is. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from redis.exceptions import AskError, MovedError, ResponseError

from controlplane.store.urls import Address, to_address


@dataclass(frozen=True, slots=True)
class Moved:
    """The keys live at another server from now on."""

    to: Address


@dataclass(frozen=True, slots=True)
class Asked:
    """Some keys are at another server already: ask there this once, but go on asking here."""

    at: Address


#: Where to ask; "not_master": whoever finds masters must look again; "down": it serves nobody.
Redirect: TypeAlias = Moved | Asked | Literal["not_master", "down"]

_DOWN: Final = {"CLUSTERDOWN", "MASTERDOWN", "LOADING"}


def code_of(error: ResponseError) -> str:
    """First word of a server's refusal."""
    return error.status_code or str(error).partition(" ")[0]


def redirect_of(errors: Sequence[ResponseError], *, asked: Address) -> Redirect | None:
    """
    Where to ask instead.

    Args:
        errors: What was refused in one round trip.
        asked: The server that refused; a redirect without a host means the same host.

    Returns:
        The redirect that weighs most; None if all refusals are about the commands themselves.
    """
    found: Redirect | None = None
    for error in errors:
        # Before Redis 7 an error inside a script is wrapped in one of the script's own.
        if code_of(error) == "READONLY" or "-READONLY" in str(error):
            return "not_master"
        if code_of(error) in _DOWN:
            return "down"
        if isinstance(error, AskError):
            to = to_address(error.host or asked.host, str(error.port))
            if to is None:
                return "down"
            if isinstance(error, MovedError):
                return Moved(to)
            found = Asked(to)
    return found
