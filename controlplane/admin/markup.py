"""HTML by construction: what is not markup already is escaped, so no page can forget it."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Final, TypeAlias


class Html(str):
    """Text that is markup; every other string is escaped when it becomes part of some."""

    __slots__ = ()


#: What a tag may hold; a string of type `Html` goes in as it is.
Content: TypeAlias = "str | Iterable[Content]"

_VOID: Final = frozenset({"link", "meta"})


def tag(name: str, /, *content: Content, **attributes: str | float | bool | None) -> Html:
    """
    One element.

    Args:
        name: Of the tag.
        content: Strings are escaped, `Html` is not; iterables are taken apart.
        attributes: A trailing underscore is dropped and others become hyphens (`class_`,
            `data_key`); None and False leave the attribute out, True writes it without a value.
    """
    opening = "".join([f"<{name}", *map(_attribute, attributes, attributes.values()), ">"])
    if name in _VOID:
        return Html(opening)
    return Html(f"{opening}{join(content)}</{name}>")


def join(content: Content) -> Html:
    """Content as markup."""
    if isinstance(content, Html):
        return content
    if isinstance(content, str):
        return Html(escape(content, quote=True))
    return Html("".join(map(join, content)))


def _attribute(name: str, value: str | float | bool | None) -> str:  # noqa: FBT001 - as in HTML
    if value is None or value is False:
        return ""
    name = name.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(str(value), quote=True)}"'
