"""
Markup that is bound to fields of a document: written here once, kept up to date by status.js.

An element with `data-field` shows a field of its item in the form `data-form` names; an element
with `data-list` repeats `<template id=data-template>` for each item of a list, told apart by the
field `data-key`. Here the same markup is filled once, so the page is whole before, and without,
any script.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from controlplane.admin.markup import Content, Html, tag
from controlplane.admin.text import NOTHING, clock, count, percent, rate, seconds, size, words

#: A document or an item of one of its lists.
Item: TypeAlias = Mapping[str, Any]


def _pairs(value: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {json.dumps(part)}" for name, part in value.items()) or "none"


def _list(value: Sequence[str]) -> str:
    return ", ".join(value) or "none"


def _speed(value: float) -> str:
    return f"{count(1 / value)} tok/s" if value > 0 else NOTHING


def _step(value: float) -> str:
    return seconds(value) if value > 0 else NOTHING


#: Every way to show a value as text. status.js has the same list; a test compares the two.
FORMS: Final[Mapping[str, Callable[[Any], str]]] = {
    "text": str,
    "words": words,
    "count": count,
    "size": size,
    "rate": rate,
    "seconds": seconds,
    "percent": percent,
    "clock": clock,
    "pairs": _pairs,
    "list": _list,
    "speed": _speed,
    "step": _step,
}


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a bound table."""

    label: str
    #: Builds what the cells hold, from an item.
    cell: Callable[[Item], Content]
    is_number: bool = False
    #: Takes a line of its own on a narrow screen.
    is_wide: bool = False

    @property
    def kind(self) -> str | None:
        """Class of its cells."""
        return "number" if self.is_number else "line" if self.is_wide else None


def field(item: Item, path: str) -> Any:  # noqa: ANN401 - documents are JSON
    """A field of a document by its dotted path; None where the path leads nowhere."""
    at: Any = item
    for name in path.split("."):
        at = at.get(name) if isinstance(at, Mapping) else None
    return at


def show(item: Item, path: str, form: str = "text", *, name: str = "span") -> Html:
    """An element that shows a field."""
    value = field(item, path)
    text = NOTHING if value is None else FORMS[form](value)
    return tag(name, text, data_field=path, data_form=form)


def badge(item: Item, path: str) -> Html:
    """A field that is one of a few words, coloured by which."""
    value = field(item, path)
    text = NOTHING if value is None else str(value)
    return tag("span", text, class_="badge", data_field=path, data_form="badge", data_state=text)


def bar(item: Item, path: str) -> Html:
    """A field between 0 and 1 as a bar; the number stands beside it, so readers may skip it."""
    ratio = field(item, path) or 0.0
    return svg_bar((0.0, ratio), data_field=path, data_form="bar")


def svg_bar(*spans: tuple[float, float], kind: str = "", **attributes: str) -> Html:
    """
    Spans of a bar that is 1 long.

    SVG, because widths are attributes there: the content security policy allows no inline style.
    """
    rects = [
        tag(
            "rect",
            x=f"{100 * min(1.0, max(0.0, begin)):.2f}",
            y=0,
            height=8,
            width=f"{100 * min(1.0, max(0.0, end - begin)):.2f}",
            class_="fill",
            **attributes,
        )
        for begin, end in spans
    ]
    return tag(
        "svg",
        tag("rect", x=0, y=0, width=100, height=8, class_="track"),
        rects,
        class_=f"bar {kind}".rstrip(),
        viewBox="0 0 100 8",
        preserveAspectRatio="none",
        aria_hidden="true",
    )


def decision_link(item: Item) -> Html:
    """The request id, short, as a link to the page of its decision."""
    request_id = str(field(item, "request_id") or "")
    return tag(
        "a",
        short_id(request_id),
        href=f"/decisions/{item.get('decision_id', '')}",
        title=request_id,
        data_field="request_id",
        data_form="decision",
    )


def short_id(request_id: str) -> str:
    """The first digits of an id: enough to tell it from others in a list."""
    return request_id[:12]


def row(columns: Sequence[Column], item: Item, *, key: str) -> Html:
    """A table row; labels stand in each cell for narrow screens."""
    cells = [
        tag(
            "td",
            tag("div", column.cell(item)),
            data_label=column.label,
            class_=column.kind,
        )
        for column in columns
    ]
    return tag("tr", cells, data_id=field(item, key))


def table(columns: Sequence[Column], body: Content, *, caption: str) -> Html:
    """A table with its head; the caption is for readers who do not see where it stands."""
    head = [
        tag("th", column.label, scope="col", class_="number" if column.is_number else None)
        for column in columns
    ]
    return tag(
        "table",
        tag("caption", caption, class_="unseen"),
        tag("thead", tag("tr", head)),
        body,
    )


def repeated(
    name: str, item: Item, path: str, *, key: str, template: str, build: Callable[[Item], Html]
) -> Html:
    """An element whose children are the items of a list."""
    return tag(
        name,
        [build(child) for child in field(item, path) or ()],
        data_list=path,
        data_key=key,
        data_template=template,
    )
