"""The status page: the whole fleet on one page, whole without a script and live with one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from controlplane.admin.binding import Column, Item, badge, field, repeated, row, show, table
from controlplane.admin.columns import DECISIONS, LINKS, WORKERS
from controlplane.admin.layout import brand, document
from controlplane.admin.markup import Html, tag

#: Decisions on the page.
SHOWN_DECISIONS: Final = 25


def status_page(state: Mapping[str, Any], decisions: Mapping[str, Any]) -> Html:
    """
    The page as a document.

    Args:
        state: From `state_document`.
        decisions: A `DecisionPage` as JSON.
    """
    item: Item = {**state, "log": decisions}
    head = (
        tag("script", src="/static/status.js", defer=True),
        tag("noscript", tag("meta", http_equiv="refresh", content="2")),
    )
    main = tag(
        "main",
        tag("p", "", id="trouble", role="status", class_="notice"),
        show(item, "log.detail", name="p"),
        _section("Datacenters", _datacenters(item)),
        _section("Links", _links(item)),
        _section("Latest decisions", _decisions(item)),
        id="main",
        data_shown=SHOWN_DECISIONS,
    )
    return document("Status", (_header(item), main, _templates()), head=head)


def _header(item: Item) -> Html:
    facts = (
        ("Fleet", show(item, "router.fleet")),
        ("Store", badge(item, "store.status")),
        ("View age", show(item, "view.age_s", "seconds")),
        ("View epoch", show(item, "view.epoch", "count")),
        (
            "In flight",
            (
                show(item, "router.requests_in_flight", "count"),
                " / ",
                show(item, "router.requests_max", "count"),
            ),
        ),
        ("Policy", show(item, "policy.name")),
        ("Parameters", show(item, "policy.parameters", "pairs")),
        ("Shadows", show(item, "policy.shadows", "list")),
        ("Plan", show(item, "plan.summary")),
        ("Router", show(item, "router.router_id")),
    )
    return tag(
        "header",
        tag(
            "div",
            brand(),
            tag("button", "Pause", id="pause", type="button", aria_pressed="false", hidden=True),
            class_="top",
        ),
        tag(
            "dl",
            [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts],
            class_="facts",
        ),
    )


def _section(title: str, *content: Html) -> Html:
    name = title.lower().replace(" ", "-")
    return tag("section", tag("h2", title, id=name), content, aria_labelledby=name)


def _datacenters(item: Item) -> Html:
    return repeated(
        "div", item, "datacenters", key="name", template="datacenter", build=_datacenter
    )


def _datacenter(item: Item) -> Html:
    body = repeated("tbody", item, "workers", key="worker_id", template="worker", build=_worker_row)
    return tag(
        "article",
        tag(
            "div",
            show(item, "name", name="h3"),
            tag(
                "span",
                "home",
                class_="badge home",
                title="The router stands here: decode stays here when it can",
                hidden=not item.get("is_home"),
                data_field="is_home",
                data_form="shown",
            ),
            _queue(item, "prefill"),
            _queue(item, "decode"),
            class_="title",
        ),
        table(WORKERS, (body, _empty(WORKERS, "No worker is known here.")), caption="Workers"),
        data_id=field(item, "name"),
        class_="card",
    )


def _queue(item: Item, role: str) -> Html:
    """What waits for one role; hidden where no worker has it."""
    at = f"queues.{role}"
    return tag(
        "p",
        tag("strong", role),
        " ",
        show(item, f"{at}.workers_ready", "count"),
        " of ",
        show(item, f"{at}.workers", "count"),
        " ready · requests ",
        show(item, f"{at}.pending_requests", "count"),
        " · tokens to do ",
        show(item, f"{at}.pending_tokens", "count"),
        class_="queue",
        hidden=not field(item, f"{at}.workers"),
        data_field=f"{at}.workers",
        data_form="shown",
    )


def _links(item: Item) -> Html:
    body = repeated("tbody", item, "links", key="link_id", template="link", build=_link_row)
    empty = _empty(LINKS, "The fleet has no links: nothing can be prefilled elsewhere.")
    return tag("div", table(LINKS, (body, empty), caption="Links"), class_="card")


def _decisions(item: Item) -> Html:
    body = repeated(
        "tbody",
        item,
        "log.decisions",
        key="decision_id",
        template="decision",
        build=_decision_row,
    )
    empty = _empty(DECISIONS, "No request has ended yet.")
    return tag("div", table(DECISIONS, (body, empty), caption="Latest decisions"), class_="card")


def _empty(columns: tuple[Column, ...], said: str) -> Html:
    """What stands in a table without rows; the style sheet shows it then."""
    return tag("tbody", tag("tr", tag("td", said, colspan=len(columns))), class_="empty")


def _worker_row(item: Item) -> Html:
    return row(WORKERS, item, key="worker_id")


def _link_row(item: Item) -> Html:
    return row(LINKS, item, key="link_id")


def _decision_row(item: Item) -> Html:
    return row(DECISIONS, item, key="decision_id")


def _templates() -> tuple[Html, ...]:
    """An item of each list without values, for the script to copy."""
    builds = {
        "datacenter": _datacenter,
        "worker": _worker_row,
        "link": _link_row,
        "decision": _decision_row,
    }
    return tuple(tag("template", build({}), id=name) for name, build in builds.items())
