from __future__ import annotations

from typing import Any

import pytest
from builders import a_link, a_view, a_worker

from controlplane.admin.state import RouterFacts, WorkerHoldings, state_document


def facts(**overrides: Any) -> RouterFacts:
    values: dict[str, Any] = {
        "router_id": "west/router-1",
        "fleet": "local",
        "datacenters": ("east", "west"),
        "policy": "prfaas",
        "policy_parameters": {"threshold_tokens": 64},
        "is_store_away": False,
        "view_age_s": 0.25,
        "requests_in_flight": 2,
        "requests_max": 1024,
        "holdings": {},
        "link_bytes_total": {},
        "link_egress_bps": {},
    }
    return RouterFacts(**{**values, **overrides})


def workers_of(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        worker["worker_id"]: worker
        for datacenter in document["datacenters"]
        for worker in datacenter["workers"]
    }


def test_workers_stand_in_their_datacenter() -> None:
    document = state_document(a_view(), facts())

    assert {
        site["name"]: [worker["worker_id"] for worker in site["workers"]]
        for site in document["datacenters"]
    } == {"east": ["east/p1"], "west": ["west/d1", "west/p1"]}


def test_a_datacenter_without_workers_is_shown() -> None:
    document = state_document(a_view(a_worker("west/d1")), facts())

    east = document["datacenters"][0]
    assert (east["name"], east["workers"], east["queues"]["prefill"]["workers"]) == ("east", [], 0)


def test_a_datacenter_that_nobody_configured_is_shown_too() -> None:
    document = state_document(a_view(a_worker("north/p1")), facts())

    assert [site["name"] for site in document["datacenters"]] == ["east", "west", "north"]


def test_the_home_of_the_router_is_marked() -> None:
    document = state_document(a_view(), facts())

    assert [site["is_home"] for site in document["datacenters"]] == [False, True]


@pytest.mark.parametrize(
    ("flags", "status"),
    [
        ({}, "ready"),
        ({"is_suspect": True}, "suspect"),
        ({"is_suspect": True, "is_ejected": True}, "ejected"),
        ({"is_draining": True}, "draining"),
        ({"is_draining": True, "is_suspect": True}, "draining"),
    ],
)
def test_one_word_says_whether_a_worker_gets_work(flags: dict[str, bool], status: str) -> None:
    document = state_document(a_view(a_worker("west/p1", **flags)), facts())

    assert workers_of(document)["west/p1"]["status"] == status


def test_a_worker_shows_what_it_holds() -> None:
    holdings = {"west/p1": WorkerHoldings(held_blocks=12, kv_bytes=3_000)}

    worker = workers_of(state_document(a_view(), facts(holdings=holdings)))["west/p1"]

    assert (worker["held_blocks"], worker["kv_bytes"]) == (12, 3_000)


def test_a_worker_shows_its_profile() -> None:
    worker = workers_of(state_document(a_view(), facts()))["west/p1"]

    assert worker["profile"] == {
        "prefill_s_per_token": 0.001,
        "prefill_fixed_s": 0.01,
        "decode_step_s": 0.02,
        "kv_bytes_per_token": 1000,
        "kv_state_bytes": 50_000,
    }


def test_the_queue_of_a_role_is_the_sum_over_its_workers() -> None:
    view = a_view(
        a_worker("west/p1", pending_requests=2, pending_tokens=300),
        a_worker("west/p2", pending_requests=1, pending_tokens=50, is_draining=True),
        a_worker("west/d1", pending_requests=7),
    )

    queues = state_document(view, facts())["datacenters"][1]["queues"]

    assert queues["prefill"] == {
        "workers": 2,
        "workers_ready": 1,
        "pending_requests": 3,
        "pending_tokens": 350,
        "slots": 8,
        "requests_max": 32,
    }
    assert queues["decode"]["pending_requests"] == 7


def test_a_link_shows_what_is_promised_and_how_long_it_takes() -> None:
    view = a_view(links=(a_link(reserved_bytes=500_000),))

    link = state_document(view, facts())["links"][0]

    assert (link["link_id"], link["reserved_bytes"], link["reserved_s"]) == (
        "east>west",
        500_000,
        0.5,
    )


def test_utilisation_is_what_crosses_of_the_budget() -> None:
    document = state_document(a_view(), facts(link_egress_bps={"east>west": 2e6}))

    assert document["links"][0]["utilisation_ratio"] == 0.25


def test_utilisation_is_unknown_until_it_was_measured() -> None:
    document = state_document(a_view(), facts(link_egress_bps={"east>west": None}))

    assert document["links"][0]["utilisation_ratio"] is None


@pytest.mark.parametrize(("is_away", "status"), [(True, "away"), (False, "ok")])
def test_the_store_is_ok_or_away(is_away: bool, status: str) -> None:  # noqa: FBT001 - a table
    document = state_document(a_view(), facts(is_store_away=is_away))

    assert document["store"] == {"status": status}


def test_the_age_of_the_view_is_the_one_of_now() -> None:
    document = state_document(a_view(epoch=9, age_s=0.0), facts(view_age_s=4.5))

    assert (document["view"]["epoch"], document["view"]["age_s"]) == (9, 4.5)


def test_the_step_of_the_degraded_ladder_is_shown() -> None:
    document = state_document(a_view(mode="store_down", prefix_trust=0.25), facts())

    view = document["view"]
    assert (view["mode"], view["mode_step"], view["prefix_trust"]) == ("store_down", 2, 0.25)


def test_a_worker_shows_how_it_is() -> None:
    holdings = {"west/p1": WorkerHoldings(silence_s=1.5, state="ejected")}
    view = a_view(a_worker("west/p1", is_ejected=True, is_needed=True, share=0.5))

    worker = workers_of(state_document(view, facts(holdings=holdings)))["west/p1"]

    assert (worker["state"], worker["silence_s"], worker["share_ratio"]) == ("ejected", 1.5, 0.5)
    assert (worker["is_ejected"], worker["is_needed"]) == (True, True)


def test_a_link_shows_whether_it_holds() -> None:
    view = a_view(links=(a_link(is_down=True, is_measured=False),))

    link = state_document(view, facts())["links"][0]

    assert (link["is_down"], link["is_measured"]) == (True, False)
