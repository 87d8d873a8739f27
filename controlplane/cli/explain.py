"""`prfaas explain REQUEST_ID`: why a request went where it went, in the terminal."""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import Any, Final, NoReturn
from urllib.parse import quote

import aiohttp
import click
from pydantic import TypeAdapter, ValidationError

from controlplane.admin.decisions import decision_id_of
from controlplane.cli.explain_output import Explained, output_console, plain, print_explained

DEFAULT_ADMIN_URL: Final = "http://127.0.0.1:8001"

_NOT_FOUND: Final = 1
_UNREACHABLE: Final = 3

#: What to do when something else listens there, or nothing.
_WHERE: Final = "give the URL of a router's admin listener with --admin or PRFAAS_ADMIN_URL"

_CONNECT_S: Final = 3.0
_TOTAL_S: Final = 15.0

_ADAPTER: Final = TypeAdapter(Explained)


class Unreachable(Exception):
    """The admin API did not answer, or not as one."""


def _request_id(_: click.Context, __: click.Parameter, value: str) -> str:
    if decision_id_of(value) is None:
        raise click.BadParameter(
            "an id is req- or dec- and hexadecimal digits; answers carry it in their header "
            "x-request-id, and chatcmpl-... and cmpl-... of an answer's body work too"
        )
    return value


def _admin_url(_: click.Context, __: click.Parameter, value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise click.BadParameter("it must begin with http:// or https://")
    return value.rstrip("/")


@click.command()
@click.argument("request_id", callback=_request_id)
@click.option(
    "--admin",
    envvar="PRFAAS_ADMIN_URL",
    default=DEFAULT_ADMIN_URL,
    show_default=True,
    show_envvar=True,
    callback=_admin_url,
    metavar="URL",
    help="Admin API of a router.",
)
@click.option("--json", "is_json", is_flag=True, help="Print the whole record as JSON.")
def explain(request_id: str, admin: str, *, is_json: bool) -> None:
    """
    Say why a request went where it went.

    REQUEST_ID is the x-request-id of its answer (req-...), or its decision id (dec-...). Exit
    status: 0 found, 1 no such decision, 2 wrong usage, 3 no answer from the admin API.
    """
    try:
        status, body = asyncio.run(_fetch(admin, request_id))
    except Unreachable as error:
        _stop(_UNREACHABLE, str(error))
    if status == HTTPStatus.NOT_FOUND and isinstance(body, dict) and "code" in body:
        _stop(_NOT_FOUND, f"not found: {_detail(body)}")
    if status != HTTPStatus.OK:
        _stop(_UNREACHABLE, f"{admin} answered {status}: {_detail(body)}")
    try:
        explained = _ADAPTER.validate_python(body)
    except ValidationError:
        _stop(_UNREACHABLE, f"{admin} answered, but not as prfaas does: {_WHERE}")
    if is_json:
        click.echo(json.dumps(body, indent=2))
    else:
        print_explained(explained, output_console())


async def _fetch(admin: str, request_id: str) -> tuple[int, Any]:
    """
    Status and JSON of an answer.

    Raises:
        Unreachable: There was none.
    """
    url = f"{admin}/admin/v1/decisions/{quote(request_id, safe='')}"
    timeout = aiohttp.ClientTimeout(total=_TOTAL_S, connect=_CONNECT_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(
                url, headers={"accept": "application/json"}, allow_redirects=False
            ) as answer,
        ):
            return answer.status, json.loads(await answer.read())
    except (aiohttp.ClientError, TimeoutError) as error:
        reason = str(error) or "no answer in time"
        raise Unreachable(
            f"no answer from the admin API at {admin} ({reason}): start a fleet with `prfaas up`, "
            f"or {_WHERE}"
        ) from error
    except ValueError as error:
        raise Unreachable(f"{admin} answered, but not with JSON: {_WHERE}") from error


def _detail(body: object) -> str:
    detail = body.get("detail") if isinstance(body, dict) else None
    return plain(detail) if isinstance(detail, str) else "no reason was given"


def _stop(status: int, message: str) -> NoReturn:
    click.echo(f"prfaas explain: {plain(message)}", err=True)
    raise SystemExit(status)
