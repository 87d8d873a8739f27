"""Asking the admin API of a router, for the commands that do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final, NoReturn, TypeVar

import aiohttp
import click
from pydantic import TypeAdapter, ValidationError

from controlplane.cli.explain_output import plain

DEFAULT_ADMIN_URL: Final = "http://127.0.0.1:8001"

EXIT_REFUSED: Final = 1
EXIT_UNREACHABLE: Final = 3

#: What to do when something else listens there, or nothing.
WHERE: Final = "give the URL of a router's admin listener with --admin or PRFAAS_ADMIN_URL"

_CONNECT_S: Final = 3.0
_TOTAL_S: Final = 15.0

_T = TypeVar("_T")


class Unreachable(Exception):
    """The admin API did not answer, or not as one."""


def _admin_url(_: click.Context, __: click.Parameter, value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise click.BadParameter("it must begin with http:// or https://")
    return value.rstrip("/")


admin_option = click.option(
    "--admin",
    envvar="PRFAAS_ADMIN_URL",
    default=DEFAULT_ADMIN_URL,
    show_default=True,
    show_envvar=True,
    callback=_admin_url,
    metavar="URL",
    help="Admin API of a router.",
)
json_option = click.option("--json", "is_json", is_flag=True, help="Print what the API answers.")


async def ask(
    admin: str, path: str, *, method: str = "GET", body: Mapping[str, Any] | None = None
) -> tuple[int, Any]:
    """
    Status and JSON of an answer.

    Raises:
        Unreachable: There was none.
    """
    timeout = aiohttp.ClientTimeout(total=_TOTAL_S, connect=_CONNECT_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.request(
                method, f"{admin}/admin/v1/{path}", json=body,
                headers={"accept": "application/json"}, allow_redirects=False,
            ) as answer,
        ):  # fmt: skip
            return answer.status, json.loads(await answer.read())
    except (aiohttp.ClientError, TimeoutError) as error:
        reason = str(error) or "no answer in time"
        raise Unreachable(
            f"no answer from the admin API at {admin} ({reason}): start a fleet with `prfaas up`, "
            f"or {WHERE}"
        ) from error
    except ValueError as error:
        raise Unreachable(f"{admin} answered, but not with JSON: {WHERE}") from error


def read(
    command: str,
    admin: str,
    path: str,
    adapter: TypeAdapter[_T],
    *,
    method: str = "GET",
    body: Mapping[str, Any] | None = None,
) -> tuple[_T, Any]:
    """
    What the API answers, checked and as it came; a message and exit where it does not.

    Args:
        command: Named in messages.
        admin: Base URL.
        path: Behind `/admin/v1/`.
        adapter: Of the part that is used.
        method: Of the request.
        body: Of a change.
    """
    try:
        status, found = asyncio.run(ask(admin, path, method=method, body=body))
    except Unreachable as error:
        stop(command, EXIT_UNREACHABLE, str(error))
    if HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR and has_code(found):
        stop(command, EXIT_REFUSED, detail_of(found))
    if status != HTTPStatus.OK:
        stop(command, EXIT_UNREACHABLE, f"{admin} answered {status}: {detail_of(found)}")
    return checked(command, admin, found, adapter), found


def checked(command: str, admin: str, found: object, adapter: TypeAdapter[_T]) -> _T:
    """An answer as values, or a message and exit."""
    try:
        return adapter.validate_python(found)
    except ValidationError:
        stop(command, EXIT_UNREACHABLE, f"{admin} answered, but not as prfaas does: {WHERE}")


def has_code(body: object) -> bool:
    """It is one of our own problems, and not of something else that listens there."""
    return isinstance(body, dict) and "code" in body


def detail_of(body: object) -> str:
    """What a problem says."""
    detail = body.get("detail") if isinstance(body, dict) else None
    return plain(detail) if isinstance(detail, str) else "no reason was given"


def stop(command: str, status: int, message: str) -> NoReturn:
    """Say what is wrong and what to do, and exit."""
    click.echo(f"prfaas {command}: {plain(message)}", err=True)
    raise SystemExit(status)
