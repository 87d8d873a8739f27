"""Errors of the admin API as problem details (RFC 9457); as a small page for a browser."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from math import ceil
from typing import Any, Final, TypeAlias

from aiohttp import hdrs, web
from pydantic_core import to_json

from controlplane.admin.layout import page_response
from controlplane.admin.markup import tag
from controlplane.admin.text import words
from controlplane.errors import MethodNotAllowed, PrfaasError, RequestTooLarge, UnknownRoute

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]

PROBLEM_CONTENT_TYPE: Final = "application/problem+json"

#: Characters of what a client sent that come back to it.
_QUOTED_MAX: Final = 64


def quoted(text: str) -> str:
    """What a client sent, short and in ASCII, fit for a message."""
    shown = ascii(text[:_QUOTED_MAX])
    return shown if len(text) <= _QUOTED_MAX else f"{shown[:-1]}...{shown[-1]}"


def problem(error: PrfaasError, path: str) -> dict[str, Any]:
    """The members of a problem document."""
    members: dict[str, Any] = {
        "type": f"urn:prfaas:error:{error.code}",
        "title": words(error.code).capitalize(),
        "status": error.http_status,
        "detail": error.message,
        "instance": path,
        "code": error.code,
    }
    if error.param is not None:
        members["param"] = error.param
    return members


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give each failure its shape."""
    try:
        return await handler(request)
    except PrfaasError as error:
        return _answer(request, error)
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        refusal = MethodNotAllowed(f"{quoted(request.method)} is not taken here, only {allowed}")
        response = _answer(request, refusal)
        response.headers[hdrs.ALLOW] = allowed
        return response
    except web.HTTPRequestEntityTooLarge as error:
        return _answer(request, RequestTooLarge(f"the body is too large: {error.text}"))
    except web.HTTPNotFound:
        return _answer(
            request,
            UnknownRoute(f"no route {quoted(request.path)}; docs/admin-api.md lists them"),
        )


def _answer(request: web.Request, error: PrfaasError) -> web.Response:
    if "text/html" in request.headers.get(hdrs.ACCEPT, ""):
        response = _page(error)
    else:
        response = web.Response(
            status=error.http_status,
            body=to_json(
                problem(error, request.rel_url.raw_path.encode("ascii", "replace").decode())
            ),
            content_type=PROBLEM_CONTENT_TYPE,
        )
    response.headers[hdrs.VARY] = hdrs.ACCEPT
    if error.retry_after_s is not None:
        response.headers[hdrs.RETRY_AFTER] = str(max(1, ceil(error.retry_after_s)))
    if not request.content.is_eof():
        # A body nobody reads: the connection cannot serve another request.
        response.force_close()
    return response


def _page(error: PrfaasError) -> web.Response:
    title = words(error.code).capitalize()
    return page_response(
        title,
        tag("main", tag("h1", title), tag("p", error.message, class_="lead"), id="main"),
        status=error.http_status,
    )
