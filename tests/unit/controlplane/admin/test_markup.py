from __future__ import annotations

import pytest

from controlplane.admin.markup import Html, join, tag


@pytest.mark.parametrize("hostile", ["<script>", "a & b", '"quoted"', "it's"])
def test_text_is_escaped_as_content_and_as_attribute(hostile: str) -> None:
    markup = tag("p", hostile, title=hostile)

    for raw in "<>\"'":
        assert raw not in markup.removeprefix('<p title="').removesuffix("</p>").replace('">', "")


def test_markup_is_not_escaped_twice() -> None:
    assert tag("p", tag("b", "1 < 2")) == "<p><b>1 &lt; 2</b></p>"


def test_iterables_are_taken_apart() -> None:
    assert join(("a", ["b", Html("<br>")], ())) == "ab<br>"


def test_underscores_become_hyphens_and_a_trailing_one_is_dropped() -> None:
    assert tag("i", class_="x", data_key="y") == '<i class="x" data-key="y"></i>'


def test_attributes_that_are_none_or_false_are_left_out() -> None:
    assert tag("i", hidden=False, title=None, defer=True) == "<i defer></i>"


def test_void_elements_have_no_end() -> None:
    assert tag("meta", charset="utf-8") == '<meta charset="utf-8">'
