"""`prfaas policy`: which policy decides, and changing it for all routers."""

from __future__ import annotations

import getpass
import json
from dataclasses import dataclass
from typing import Any, Final

import click
from pydantic import TypeAdapter
from rich.box import SIMPLE_HEAD
from rich.table import Table

from controlplane.admin.text import date_and_clock
from controlplane.cli.admin_client import admin_option, json_option, read
from controlplane.cli.explain_output import output_console, plain


@dataclass(frozen=True, slots=True, kw_only=True)
class _Named:
    policy: str
    parameters: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Live(_Named):
    version: int
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Installed:
    policy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Policies:
    live: _Live
    shadows: tuple[_Named, ...]
    published_version: int
    history: tuple[dict[str, Any], ...]
    installed: tuple[_Installed, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Changed:
    published_version: int


_POLICIES: Final = TypeAdapter(_Policies)
_CHANGED: Final = TypeAdapter(_Changed)


def _named(_: click.Context, __: click.Parameter, value: tuple[str, ...]) -> list[dict[str, Any]]:
    """`NAME` or `NAME:key=value,key=value`, as `prfaas replay` has it."""
    found = []
    for text in value:
        name, _colon, rest = text.partition(":")
        found.append(
            {"policy": name, "parameters": dict(map(_pair, rest.split(",") if rest else ()))}
        )
    return found


def _pair(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise click.BadParameter(f"{text!r} is not key=value")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


@click.group(invoke_without_command=True)
@click.pass_context
@admin_option
@json_option
def policy(context: click.Context, admin: str, *, is_json: bool) -> None:
    """
    Show the live policy, its shadows and past changes; `policy set` changes it.

    Exit status: 0 answered, 1 refused, 2 wrong usage, 3 no answer from the admin API.
    """
    if context.invoked_subcommand is not None:
        context.obj = admin
        return
    found, body = read("policy", admin, "policy", _POLICIES)
    if is_json:
        click.echo(json.dumps(body, indent=2))
        return
    console = output_console()
    live = found.live
    console.print(
        f"{plain(live.policy)}, version {live.version} of the {live.source}", highlight=False
    )
    for key, value in live.parameters.items():
        console.print(f"  {plain(key)} = {plain(json.dumps(value))}", highlight=False)
    for shadow in found.shadows:
        console.print(f"shadow {plain(shadow.policy)} {plain(json.dumps(shadow.parameters))}")
    console.print(f"installed: {', '.join(plain(one.policy) for one in found.installed)}")
    if found.history:
        table = Table("version", "when", "who", "policy", "why", box=SIMPLE_HEAD)
        for number, change in enumerate(found.history):
            table.add_row(
                str(found.published_version - number),
                date_and_clock(float(change.get("at", 0.0))),
                *(plain(str(change.get(key, ""))) for key in ("by", "policy", "reason")),
            )
        console.print(table)


@policy.command("set")
@click.argument("chosen", nargs=1, metavar="NAME[:KEY=VALUE,...]")
@click.option("--shadow", "shadows", multiple=True, callback=_named, metavar="NAME[:KEY=VALUE,...]")
@click.option("--by", default=getpass.getuser, help="Who changes it. Default: your user name.")
@click.option("--reason", default="", help="Why, for the history.")
@click.option("--expect", type=int, help="Refuse if another version is published by now.")
@click.pass_obj
def set_policy(
    admin: str,
    chosen: str,
    shadows: list[dict[str, Any]],
    by: str,
    reason: str,
    expect: int | None,
) -> None:
    """
    Change the policy of all routers; they follow within a second.

    Exit status: 0 changed, 1 refused, 2 wrong usage, 3 no answer from the admin API.
    """
    context = click.get_current_context()
    (named,) = _named(context, context.command.params[0], (chosen,))
    body = {**named, "shadows": shadows, "by": by, "reason": reason}
    if expect is not None:
        body["expected_version"] = expect
    changed, _ = read("policy set", admin, "policy", _CHANGED, method="PUT", body=body)
    click.echo(f"{named['policy']} decides, version {changed.published_version}")
