from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from builders import a_view, a_worker
from hypothesis import given
from hypothesis import strategies as st

from controlplane.domain.cluster import WorkerView
from controlplane.domain.sites import (
    Site,
    SiteKeeper,
    Standing,
    kind_of,
    load_of,
    share_of,
    sites_of,
    standing_of,
)


def sites_with(*workers: WorkerView) -> tuple[Site, ...]:
    return sites_of(a_view(*workers))


def names(workers: tuple[WorkerView, ...]) -> list[str]:
    return [worker.worker_id for worker in workers]


def test_workers_are_together_with_those_that_can_stand_in_for_them() -> None:
    sites = sites_with(
        a_worker("west/p1"),
        a_worker("west/p2"),
        a_worker("west/p3", fingerprint="g"),
        a_worker("west/d1"),
        a_worker("east/p1"),
    )

    found = {site.datacenter: sorted(names(pool.able) for pool in site.pools) for site in sites}
    assert found == {
        "east": [["east/p1"]],
        "west": [["west/d1"], ["west/p1", "west/p2"], ["west/p3"]],
    }


@pytest.mark.parametrize(
    "other",
    [
        {"model": "n"},
        {"fingerprint": "g"},
        {"context_tokens_max": 1},
        {"can_resume": True},
        {"prefill_s_per_token": 0.002},
        {"prefill_s_per_token_squared": 0.001},
        {"kv_bytes_per_token": 7},
        {"share": 0.5},
    ],
    ids=str,
)
def test_a_request_may_tell_kinds_apart(other: dict[str, Any]) -> None:
    assert kind_of(a_worker()) != kind_of(a_worker(**other))


@pytest.mark.parametrize(
    "other",
    [
        {"pending_tokens": 9},
        {"pending_requests": 9},
        {"incarnation": "i2"},
        {"prefill_s_per_token": 0.00101},
        {"is_draining": True},
    ],
    ids=str,
)
def test_load_state_and_a_little_more_speed_make_no_other_kind(other: dict[str, Any]) -> None:
    assert kind_of(a_worker()) == kind_of(a_worker(**other))


def test_speed_is_no_matter_for_decode() -> None:
    assert kind_of(a_worker("west/d1")) == kind_of(a_worker("west/d1", prefill_s_per_token=7.0))


def test_a_pool_is_in_order_of_what_there_is_to_do() -> None:
    (site,) = sites_with(
        a_worker("west/p1", pending_tokens=30),
        a_worker("west/p2", pending_tokens=10),
        a_worker("west/p3", pending_s=0.02),
        a_worker("west/p4", pending_tokens=10),
    )

    (pool,) = site.pools
    assert names(pool.able) == ["west/p1", "west/p2", "west/p3", "west/p4"]
    assert names(pool.by_load) == ["west/p2", "west/p4", "west/p3", "west/p1"]


def test_decode_workers_with_a_free_slot_come_first() -> None:
    (site,) = sites_with(
        a_worker("west/d1", slots=1, pending_requests=1),
        a_worker("west/d2", slots=8, pending_requests=5),
        a_worker("west/d3", slots=8, pending_requests=3),
    )

    assert names(site.pools[0].by_load) == ["west/d3", "west/d2", "west/d1"]


def test_a_worker_that_warms_up_has_more_to_do_than_it_says() -> None:
    assert load_of(a_worker("west/d1", share=0.5, pending_requests=1))[1] == 4
    assert load_of(a_worker("west/p1", share=0.5, pending_tokens=100))[1] == pytest.approx(0.2)


def test_a_doubted_worker_has_a_tenth_of_the_usual_share() -> None:
    assert share_of(a_worker(is_suspect=True)) == 0.1
    assert share_of(a_worker(is_ejected=True, share=0.05)) == 0.05
    assert share_of(a_worker(share=0.3)) == 0.3


@pytest.mark.parametrize(
    ("overrides", "standing"),
    [
        ({}, None),
        ({"is_ejected": True, "is_suspect": True, "is_draining": True}, "ejected"),
        ({"is_suspect": True, "is_draining": True}, "suspect"),
        ({"is_suspect": True, "is_ejected": True, "is_needed": True}, None),
        ({"is_draining": True, "pending_requests": 16}, "draining"),
        ({"pending_requests": 16}, "full"),
    ],
    ids=str,
)
def test_what_keeps_a_worker_from_any_request(
    overrides: dict[str, Any], standing: Standing | None
) -> None:
    worker = a_worker(**overrides)

    (site,) = sites_with(worker)

    assert standing_of(worker) == standing
    assert site.pools[0].out == ({} if standing is None else {standing: (worker,)})
    assert site.pools[0].able == ((worker,) if standing is None else ())


def test_what_has_not_changed_is_not_made_anew() -> None:
    keeper = SiteKeeper()
    for worker in (a_worker("east/p1"), a_worker("west/p1"), a_worker("west/d1")):
        keeper.put(worker)
    before = keeper.sites()

    assert keeper.sites() is before
    keeper.put(a_worker("west/p1", pending_tokens=7))
    after = keeper.sites()

    assert after[0] is before[0]
    assert after[1] is not before[1]
    assert after[1].pools[0] is before[1].pools[0], "decode workers are as they were"


def test_a_datacenter_without_workers_is_gone() -> None:
    keeper = SiteKeeper()
    keeper.put(a_worker("east/p1"))
    keeper.put(a_worker("west/p1"))

    keeper.drop("east/p1")
    keeper.drop("nobody")

    assert [site.datacenter for site in keeper.sites()] == ["west"]
    assert repr(keeper) == "<SiteKeeper 1 workers in 1 datacenters>"


CHANGES: tuple[dict[str, Any], ...] = (
    {},
    {"pending_tokens": 50},
    {"pending_requests": 3},
    {"pending_requests": 16},
    {"is_draining": True},
    {"is_suspect": True},
    {"share": 0.4},
    {"model": "n"},
    {"datacenter": "south"},
    {"prefill_s_per_token": 0.1},
)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(("east/p1", "east/p2", "west/p1", "west/d1", "west/d2")),
            st.sampled_from((*CHANGES, None)),
        ),
        max_size=30,
    )
)
def test_sites_kept_change_by_change_are_those_made_at_once(
    changes: list[tuple[str, dict[str, Any] | None]],
) -> None:
    """Whatever happens in whatever order, and whoever looks in between."""
    keeper = SiteKeeper()
    workers: dict[str, WorkerView] = {}
    for worker_id, change in changes:
        if change is None:
            workers.pop(worker_id, None)
            keeper.drop(worker_id)
        else:
            workers[worker_id] = a_worker(worker_id, **change)
            keeper.put(workers[worker_id])
        kept = keeper.sites()

        made = sites_of(a_view(workers=tuple(replace(one) for one in workers.values())))

        assert kept == made
        assert [list(pool.out) for site in kept for pool in site.pools] == [
            list(pool.out) for site in made for pool in site.pools
        ]
