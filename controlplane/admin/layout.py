"""The frame around every page, and the headers that keep a browser from doing more than read."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from controlplane.admin.markup import Content, Html, join, tag

#: Nothing from elsewhere, no inline script or style, no forms, no frames, and no sink that would
#: turn a string into markup.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'"
)

#: Sent with everything this listener answers.
SECURITY_HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


async def add_security_headers(request: web.Request, response: web.StreamResponse) -> None:
    """A hook for `on_response_prepare`."""
    del request
    for name, value in SECURITY_HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers.setdefault("Cache-Control", "no-store")


def document(title: str, body: Content, *, head: Content = ()) -> Html:
    """A whole HTML document."""
    return join(
        (
            Html("<!doctype html>\n"),
            tag(
                "html",
                tag(
                    "head",
                    tag("meta", charset="utf-8"),
                    tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
                    tag("meta", name="color-scheme", content="light dark"),
                    tag("title", f"{title} - prfaas"),
                    tag("link", rel="icon", href="/static/icon.svg", type="image/svg+xml"),
                    tag("link", rel="stylesheet", href="/static/admin.css"),
                    head,
                ),
                tag("body", tag("a", "Skip to content", href="#main", class_="skip"), body),
                lang="en",
            ),
        )
    )


def brand() -> Html:
    """The name in the corner, which leads back to the status page."""
    return tag(
        "a", tag("span", class_="mark", aria_hidden="true"), "prfaas", href="/", class_="brand"
    )


def page_response(title: str, main: Content, *, status: int = 200) -> web.Response:
    """A page with the plain header."""
    bar = tag("header", tag("div", brand(), class_="top"))
    return html_response(document(title, join((bar, main))), status=status)


def html_response(markup: Html, *, status: int = 200) -> web.Response:
    """A document as an answer."""
    return web.Response(status=status, text=markup, content_type="text/html", charset="utf-8")
