"""The fleet, by the word of its workers."""

from __future__ import annotations

import pytest
from planner_builders import LINK, a_worker_beat

from controlplane.planner.facts import SiteFacts, can_change, fleet_facts
from controlplane.wire import Profile, WorkerBeat


def west(*beats: WorkerBeat) -> SiteFacts:
    return fleet_facts(beats, {}).sites["west"]


def test_workers_are_counted_by_datacenter_and_role() -> None:
    beats = [a_worker_beat(name) for name in ("east/p1", "west/p1", "west/d1", "west/d2")]

    facts = fleet_facts(beats, {LINK: 5e6})

    assert facts.workers() == {
        "east/prefill": 1, "east/decode": 0, "west/prefill": 1, "west/decode": 2,
    }  # fmt: skip
    assert facts.link_bps == {LINK: 5e6}


def test_workers_that_can_change_are_told_from_those_that_cannot() -> None:
    fixed = a_worker_beat("west/d2", roles=())
    only_its_own = a_worker_beat("west/d3", roles=("decode",))

    site = west(a_worker_beat("west/p1"), a_worker_beat("west/d1"), fixed, only_its_own)

    assert (site.movable_prefill, site.movable_decode) == (1, 1)
    assert not can_change(fixed)
    assert not can_change(only_its_own)


def test_workers_that_drain_or_fail_take_no_work() -> None:
    beats = [
        a_worker_beat("west/d1"),
        a_worker_beat("west/d2", is_draining=True),
        a_worker_beat("west/d3"),
    ]

    site = fleet_facts(beats, {}, out={"west/d3"}).sites["west"]

    assert site.decode_workers == 1


def test_a_worker_that_changes_counts_as_what_it_will_be() -> None:
    """Before it drains, while it does, and while it is nowhere."""
    others = [a_worker_beat("west/d1"), a_worker_beat("west/p1")]
    meanwhile = (
        [a_worker_beat("west/d2")],
        [a_worker_beat("west/d2", is_draining=True)],
        [],
    )

    for beats in meanwhile:
        site = fleet_facts([*others, *beats], {}, changing={"west/d2": ("west", "prefill")}).sites[
            "west"
        ]
        assert (site.prefill_workers, site.decode_workers) == (2, 1)
        assert (site.movable_prefill, site.movable_decode) == (2, 1)


def test_lent_time_counts_at_the_worker_that_lends_it() -> None:
    lender = a_worker_beat("west/d1", lend_share=0.25)
    lent = a_worker_beat("west/d1.lent", role="prefill", lent_by="west/d1")

    site = west(lender, lent)

    assert (site.prefill_workers, site.decode_workers, site.lent_workers) == (0, 1, 0.25)


def test_a_profile_is_the_mean_of_those_who_have_one() -> None:
    fast = Profile(prefill_s_per_token=0.001, prefill_fixed_s=0.1)
    slow = Profile(prefill_s_per_token=0.003, prefill_fixed_s=0.3)
    none = Profile()

    site = west(*(a_worker_beat(f"west/p{n}", profile=p) for n, p in enumerate((fast, slow, none))))

    assert site.prefill is not None
    assert site.prefill.s_per_token == pytest.approx(0.002)
    assert site.prefill.fixed_s == pytest.approx(0.2)
    assert site.decode is None
    assert site.kv is None


def test_slots_are_those_of_workers_that_decode() -> None:
    """One that prefills has other slots, of prefill; which of its roles it has changes no capacity."""
    site = west(a_worker_beat("west/p1", slots=1), a_worker_beat("west/d1", slots=20))

    assert site.decode is not None
    assert site.decode.slots == 20


def test_where_nobody_decodes_what_could_be_is_known_all_the_same() -> None:
    site = west(a_worker_beat("west/p1", slots=8))

    assert site.decode is not None
    assert site.decode.slots == 8


def test_a_step_is_that_of_a_worker_that_lends_nothing() -> None:
    profile = Profile(decode_step_s=0.02 / (1 - 0.2))

    site = west(a_worker_beat("west/d1", profile=profile, lend_share=0.2))

    assert site.decode is not None
    assert site.decode.step_s == pytest.approx(0.02)
