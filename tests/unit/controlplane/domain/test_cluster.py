from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest
from builders import a_link, a_request, a_view, a_worker

from controlplane.domain.cluster import RECORDED_WORKERS_MAX, ClusterView, link_id, recorded
from controlplane.domain.decision import Placement
from controlplane.domain.prefix import PrefixHit
from controlplane.domain.sites import SiteKeeper, sites_of


def test_a_link_is_named_by_its_direction() -> None:
    assert link_id("east", "west") == "east>west"
    assert a_link("west", "east").link_id == "west>east"


@pytest.mark.parametrize(
    ("goodput_bps", "rate_bps"),
    [
        pytest.param(0.0, 100.0, id="nothing measured: the budget"),
        pytest.param(200.0, 100.0, id="never above the budget"),
        pytest.param(80.0, 80.0, id="measured less than the budget"),
        pytest.param(50.0, 50.0, id="half the budget"),
        pytest.param(10.0, 50.0, id="a busy link is not a slow one"),
    ],
)
def test_measured_goodput_lowers_the_rate_by_half_at_most(
    goodput_bps: float, rate_bps: float
) -> None:
    link = a_link(capacity_bps=100.0, goodput_bps=goodput_bps)

    assert link.rate_bps == rate_bps


@pytest.mark.parametrize(
    ("measured_bps", "rate_bps"), [(10.0, 10.0), (0.5, 0.5), (100.0, 100.0), (250.0, 100.0)]
)
def test_what_was_measured_while_a_link_was_busy_is_believed_up_to_the_budget(
    measured_bps: float, rate_bps: float
) -> None:
    """Whatever goodput says, which is low on a link that is used by many."""
    link = a_link(capacity_bps=100.0, goodput_bps=1.0, measured_bps=measured_bps)

    assert link.rate_bps == rate_bps


def test_a_view_finds_links_by_direction() -> None:
    there, back = a_link("east", "west"), a_link("west", "east")
    view = a_view(links=(there, back))

    assert view.link("east", "west") is there
    assert view.link("west", "east") is back
    assert view.link("east", "north") is None
    assert view.link("north", "west") is None


def test_a_view_finds_workers_by_id() -> None:
    view = a_view(a_worker("east/p1"), a_worker("west/p1"))

    assert view.worker("west/p1") == a_worker("west/p1")
    assert view.worker("west/p2") is None


def test_a_view_is_sorted_however_it_was_made() -> None:
    workers = (a_worker("west/p1"), a_worker("east/p2"), a_worker("east/p1"))
    links = (a_link("west", "east"), a_link("east", "west"))

    view = a_view(*workers, links=links)

    assert [worker.worker_id for worker in view.workers] == ["east/p1", "east/p2", "west/p1"]
    assert [link.link_id for link in view.links] == ["east>west", "west>east"]
    assert view == a_view(*workers[::-1], links=links[::-1])


def test_a_view_cannot_be_changed() -> None:
    view = a_view()

    with pytest.raises(FrozenInstanceError):
        view.epoch = 2  # type: ignore[misc]


def test_the_last_prompt_token_is_left_to_decode() -> None:
    assert a_request(input_tokens=101).prefill_tokens == 100
    assert a_request(input_tokens=1).prefill_tokens == 0


def test_a_worker_without_a_hit_has_nothing() -> None:
    request = a_request(prefix_hits={"east/p1": PrefixHit(32, 16)})

    assert request.hit("east/p1") == PrefixHit(32, 16)
    assert request.hit("west/p1") == PrefixHit(0, 0)


@pytest.mark.parametrize(
    ("prefill_datacenter", "is_offloaded"),
    [pytest.param("west", False, id="local"), pytest.param("east", True, id="offloaded")],
)
def test_a_placement_is_offloaded_when_its_datacenters_differ(
    prefill_datacenter: str,
    is_offloaded: bool,  # noqa: FBT001 - a column of the table
) -> None:
    placement = Placement(
        prefill_worker=f"{prefill_datacenter}/p1",
        prefill_datacenter=prefill_datacenter,
        decode_worker="west/d1",
        decode_datacenter="west",
    )

    assert placement.is_offloaded is is_offloaded


# --- Looking up, and views of what is sorted already ------------------------------------------


def test_a_worker_is_found_by_its_id_alone() -> None:
    view = a_view(*(a_worker(f"west/p{number}") for number in range(20)))

    assert view.worker("west/p7") is view.workers[17]
    assert [view.worker(name) for name in ("west/p", "west/p70", "zulu/p1", "")] == [None] * 4


def test_a_link_is_found_by_its_ends_alone() -> None:
    links = (a_link("a-b", "c"), a_link("a", "c"), a_link("c", "a"))
    view = a_view(links=links)

    found = [view.link("a", "c"), view.link("a-b", "c"), view.link("c", "a")]
    assert [one.link_id if one else None for one in found] == ["a>c", "a-b>c", "c>a"]
    assert view.link("b", "c") is None
    assert a_view(links=()).link("a", "c") is None


def test_a_view_of_sites_equals_one_of_workers() -> None:
    view = a_view(mode="store_down", prefix_trust=0.25)

    fast = ClusterView.of_sites(
        sites_of(a_view()),
        view.links,
        epoch=view.epoch,
        age_s=view.age_s,
        home_datacenter=view.home_datacenter,
        mode=view.mode,
        prefix_trust=view.prefix_trust,
    )

    assert fast == view
    assert repr(fast) == repr(view)
    assert replace(fast, epoch=2) == replace(view, epoch=2)


# --- What a record keeps ----------------------------------------------------------------------


def test_a_record_keeps_the_whole_of_a_view_that_is_not_large() -> None:
    view = a_view(*(a_worker(f"west/p{number:03}") for number in range(RECORDED_WORKERS_MAX)))

    assert recorded(view, ["west/p001"]) is view
    assert view.workers_omitted == 0


def test_a_record_of_a_large_view_keeps_the_candidates_and_counts_the_rest() -> None:
    view = a_view(*(a_worker(f"west/p{number:03}") for number in range(100)))

    kept = recorded(view, ["west/p050", "west/p001", "nobody"])

    assert [worker.worker_id for worker in kept.workers] == ["west/p001", "west/p050"]
    assert kept.workers_omitted == 98
    assert (kept.links, kept.epoch, kept.mode) == (view.links, view.epoch, view.mode)


def test_a_view_finds_its_own_workers_also_when_its_keeper_has_gone_on() -> None:
    keeper = SiteKeeper()
    keeper.put(a_worker("west/p1"))
    keeper.put(a_worker("west/p2"))
    view = a_view(a_worker("west/p1"), a_worker("west/p2"))
    kept = ClusterView.of_sites(
        keeper.sites(),
        view.links,
        epoch=view.epoch,
        age_s=view.age_s,
        home_datacenter=view.home_datacenter,
        mode=view.mode,
        prefix_trust=view.prefix_trust,
        keeper=keeper,
    )
    assert kept.worker("west/p1") == a_worker("west/p1")
    assert kept.worker("west/p3") is None

    keeper.put(a_worker("west/p1", pending_tokens=9))
    keeper.drop("west/p2")
    keeper.put(a_worker("west/p3"))

    assert kept.worker("west/p1") == a_worker("west/p1")
    assert kept.worker("west/p2") == a_worker("west/p2")
    assert kept.worker("west/p3") is None
    assert kept == view


def test_a_worker_whose_id_does_not_tell_its_datacenter_is_found() -> None:
    stray = a_worker("west/p1", datacenter="east")

    view = a_view(stray, a_worker("west/p2"))
    sites_of(view)

    assert view.worker("west/p1") == stray
    assert view.worker("nowhere/p1") is None
    assert view.size == 2
