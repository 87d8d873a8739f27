from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from importlib import resources
from typing import Final

import aiohttp
import pytest
from admin_world import DIGITS, AdminWorld, a_failed_record, a_record, an_attempt
from builders import a_beat, a_view, a_worker

from controlplane.admin.binding import FORMS
from controlplane.store.api import StoreSnapshot

pytestmark = pytest.mark.usefixtures("world")

Client = aiohttp.ClientSession

HOSTILE: Final = "<script>alert('x')</script>\"&"

_VOID: Final = frozenset({"meta", "link"})


class Page(HTMLParser):
    """What a browser would see: elements with attributes, texts, and that all tags are closed."""

    def __init__(self, markup: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(markup)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


async def page(client: Client, path: str, status: int = 200) -> Page:
    async with client.get(path, headers={"accept": "text/html"}) as answer:
        assert answer.status == status, await answer.text()
        assert answer.content_type == "text/html"
        return Page(await answer.text())


def hear_a_worker(world: AdminWorld, worker_id: str = "west/p1", model: str = "m") -> None:
    beat = a_beat(worker_id).model_copy(update={"model": model, "incarnation": model})
    world.tracker.apply_snapshot(
        StoreSnapshot(beats=(beat,), loads={}, link_reserved_bytes={}, cursor="0-0")
    )


async def test_the_status_page_shows_workers_links_and_decisions(
    world: AdminWorld, client: Client
) -> None:
    hear_a_worker(world)
    await world.keep(a_record())

    shown = (await page(client, "/")).text

    for expected in (
        "west/p1",
        "east>west",
        "8.0 Mbit/s",
        "uncached over threshold",
        "req-0123456",
    ):
        assert expected in shown


async def test_the_status_page_is_there_before_anything_happened(client: Client) -> None:
    shown = (await page(client, "/")).text

    assert "No request has ended yet." in shown


async def test_the_status_page_links_each_request_to_its_decision(
    world: AdminWorld, client: Client
) -> None:
    await world.keep(a_record())

    links = [link["href"] for link in (await page(client, "/")).all("a")]

    assert f"/decisions/dec-{DIGITS}" in links


async def test_the_status_page_says_that_the_store_is_away(
    world: AdminWorld, client: Client
) -> None:
    await world.keep(a_record())
    await world.store.close()

    shown = (await page(client, "/")).text

    assert "The store is away (store_unavailable)" in shown
    assert "req-0123456" in shown


async def test_the_status_page_refreshes_itself_without_a_script(client: Client) -> None:
    metas = (await page(client, "/")).all("meta")

    assert {"http-equiv": "refresh", "content": "2"} in metas


@pytest.mark.parametrize("path", ["/", f"/decisions/dec-{DIGITS}", "/nowhere"])
async def test_pages_have_no_inline_script_or_style_and_load_nothing_from_elsewhere(
    world: AdminWorld, client: Client, path: str
) -> None:
    await world.keep(a_record())

    shown = await page(client, path, 404 if path == "/nowhere" else 200)

    for tag, attributes in shown.elements:
        assert not [name for name in attributes if name == "style" or name.startswith("on")]
        assert tag != "style"
        for name in ("src", "href"):
            assert (attributes.get(name) or "/").startswith(("/", "#"))
            assert not (attributes.get(name) or "/").startswith("//")
    assert all(script.get("src") for script in shown.all("script"))


@pytest.mark.parametrize("name", ["admin.css", "status.js", "icon.svg"])
async def test_what_pages_need_is_served_here(client: Client, name: str) -> None:
    async with client.get(f"/static/{name}") as answer:
        assert answer.status == 200
        assert await answer.read()


@pytest.mark.parametrize("name", ["admin.css", "status.js", "icon.svg"])
def test_static_files_name_no_other_host(name: str) -> None:
    text = (resources.files("controlplane.admin") / "static" / name).read_text()

    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text) == []


def test_the_script_puts_no_data_into_markup() -> None:
    script = (resources.files("controlplane.admin") / "static" / "status.js").read_text()

    for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert sink not in script


def test_the_script_knows_the_same_forms_as_the_pages() -> None:
    script = (resources.files("controlplane.admin") / "static" / "status.js").read_text()
    forms = script.split("const FORMS = {")[1].split("};")[0]

    assert set(re.findall(r"^ {4}(\w+)[:,]", forms, re.MULTILINE)) == set(FORMS)


async def test_every_list_of_the_page_has_its_template(client: Client) -> None:
    shown = await page(client, "/")

    templates = {template["id"] for template in shown.all("template")}
    assert templates == {
        attributes["data-template"]
        for _, attributes in shown.elements
        if "data-template" in attributes
    }


async def test_every_field_of_the_page_is_in_the_documents_it_is_filled_from(
    world: AdminWorld, client: Client
) -> None:
    hear_a_worker(world)
    await world.keep(a_record())
    shown = await page(client, "/")
    async with client.get("/admin/v1/state") as answer:
        state = await answer.json()
    async with client.get("/admin/v1/decisions") as answer:
        log = await answer.json()

    fields = {str(item["data-field"]) for _, item in shown.elements if "data-field" in item}
    known = json.dumps({**state, "log": log})
    assert [name for name in fields if f'"{name.split(".")[-1]}":' not in known] == []


# --- One decision -----------------------------------------------------------------------------


async def test_the_page_of_a_decision_explains_it(world: AdminWorld, client: Client) -> None:
    await world.keep(a_record())

    shown = (await page(client, f"/decisions/dec-{DIGITS}")).text

    assert "Prefilled in east by east/p1 and decoded in west by west/d1" in shown
    assert "passed over, 70 ms faster" in shown
    for phase in ("parse", "decide", "prefill", "transfer", "first token", "stream"):
        assert phase in shown


async def test_the_page_of_a_decision_can_be_asked_for_by_request_id(
    world: AdminWorld, client: Client
) -> None:
    await world.keep(a_record())

    links = (await page(client, f"/decisions/req-{DIGITS}")).all("a")

    assert f"/admin/v1/decisions/dec-{DIGITS}" in [link["href"] for link in links]


async def test_the_page_shows_all_attempts_the_last_one_first(
    world: AdminWorld, client: Client
) -> None:
    await world.keep(
        a_record(an_attempt(ended_by="PrefillRefused"), an_attempt(excluded=("east/p1",)))
    )

    shown = (await page(client, f"/decisions/dec-{DIGITS}")).text

    assert shown.index("Attempt 2") < shown.index("Attempt 1")
    assert "Ended by PrefillRefused." in shown


async def test_the_page_of_a_request_without_a_decision_is_there(
    world: AdminWorld, client: Client
) -> None:
    await world.keep(a_failed_record(attempts=(), code="internal_error"))

    shown = (await page(client, f"/decisions/dec-{DIGITS}")).text

    assert "It ended before anything was decided." in shown


async def test_a_role_without_candidates_says_so(world: AdminWorld, client: Client) -> None:
    await world.keep(a_failed_record(an_attempt(a_view(a_worker("west/d1")))))

    assert "None was known." in (await page(client, f"/decisions/dec-{DIGITS}")).text


async def test_bars_are_drawn_with_attributes_inside_their_track(
    world: AdminWorld, client: Client
) -> None:
    await world.keep(a_record())

    rects = (await page(client, f"/decisions/dec-{DIGITS}")).all("rect")

    assert rects
    assert all(float(rect["x"] or 0) + float(rect["width"] or 0) <= 100.01 for rect in rects)


async def test_an_unknown_decision_is_told_on_a_page(client: Client) -> None:
    shown = await page(client, f"/decisions/dec-{DIGITS}", 404)

    assert f"no decision dec-{DIGITS} is kept" in shown.text


# --- What others wrote ------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", f"/decisions/dec-{DIGITS}"])
async def test_hostile_values_are_text(world: AdminWorld, client: Client, path: str) -> None:
    hear_a_worker(world, model=HOSTILE)
    attempt = an_attempt(
        a_view(a_worker("east/p1", model=HOSTILE), a_worker("west/d1", model=HOSTILE)),
        model=HOSTILE,
    )
    await world.keep(
        a_record(attempt, model=HOSTILE, client_request_id=HOSTILE, router=HOSTILE, detail=HOSTILE)
    )

    shown = await page(client, path)

    assert HOSTILE in shown.text
    assert all(script.get("src") == "/static/status.js" for script in shown.all("script"))


async def test_a_hostile_path_is_text_on_its_page(client: Client) -> None:
    shown = await page(client, "/%3Cscript%3Ealert(1)%3C%2Fscript%3E", 404)

    assert "<script>alert(1)</script>" in shown.text
    assert shown.all("script") == []
