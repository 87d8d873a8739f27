"""`prfaas explain REQUEST_ID`: why a request went where it went, in the terminal."""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import Final
from urllib.parse import quote

import click
from pydantic import TypeAdapter

from controlplane.admin.decisions import decision_id_of
from controlplane.cli.admin_client import (
    EXIT_UNREACHABLE,
    Unreachable,
    admin_option,
    ask,
    checked,
    detail_of,
    has_code,
    stop,
)
from controlplane.cli.explain_output import Explained, output_console, print_explained

_NOT_FOUND: Final = 1

_ADAPTER: Final = TypeAdapter(Explained)


def _request_id(_: click.Context, __: click.Parameter, value: str) -> str:
    if decision_id_of(value) is None:
        raise click.BadParameter(
            "an id is req- or dec- and hexadecimal digits; answers carry it in their header "
            "x-request-id, and chatcmpl-... and cmpl-... of an answer's body work too"
        )
    return value


@click.command()
@click.argument("request_id", callback=_request_id)
@admin_option
@click.option("--json", "is_json", is_flag=True, help="Print the whole record as JSON.")
def explain(request_id: str, admin: str, *, is_json: bool) -> None:
    """
    Say why a request went where it went.

    REQUEST_ID is the x-request-id of its answer (req-...), or its decision id (dec-...). Exit
    status: 0 found, 1 no such decision, 2 wrong usage, 3 no answer from the admin API.
    """
    try:
        status, body = asyncio.run(ask(admin, f"decisions/{quote(request_id, safe='')}"))
    except Unreachable as error:
        stop("explain", EXIT_UNREACHABLE, str(error))
    if status == HTTPStatus.NOT_FOUND and has_code(body):
        stop("explain", _NOT_FOUND, f"not found: {detail_of(body)}")
    if status != HTTPStatus.OK:
        stop("explain", EXIT_UNREACHABLE, f"{admin} answered {status}: {detail_of(body)}")
    explained = checked("explain", admin, body, _ADAPTER)
    if is_json:
        click.echo(json.dumps(body, indent=2))
    else:
        print_explained(explained, output_console())
