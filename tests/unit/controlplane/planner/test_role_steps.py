"""Which worker is asked to change next."""

from __future__ import annotations

from typing import Any

from planner_builders import a_worker_beat, rules

from controlplane.domain.plan import SiteRoles
from controlplane.planner.role_steps import Step, UnderWay, next_steps, still_under_way
from controlplane.wire import WorkerBeat


def west(prefill: int, decode: int, **overrides: Any) -> list[WorkerBeat]:
    """So many workers, those of the lowest number with the least to do."""
    return [
        a_worker_beat(f"west/{kind[0]}{number}", role=kind, queue=number, **overrides)
        for kind, count in (("prefill", prefill), ("decode", decode))
        for number in range(count)
    ]


def steps(
    target: SiteRoles, beats: list[WorkerBeat], **options: Any
) -> list[tuple[str, str, float]]:
    under_way = options.pop("under_way", {})
    refused = options.pop("refused", ())
    found = next_steps({"west": target}, beats, under_way, rules(**options), refused=refused)
    return [(step.worker_id, step.role, step.lend_share) for step in found]


def target(prefill: int, decode: int, lent: float = 0.0) -> SiteRoles:
    return SiteRoles(prefill_workers=prefill, decode_workers=decode, lent_workers=lent)


def test_nothing_is_asked_for_when_roles_are_as_planned() -> None:
    assert steps(target(3, 5), west(3, 5)) == []


def test_the_decode_worker_with_the_least_to_finish_becomes_a_prefill_worker() -> None:
    assert steps(target(4, 4), west(3, 5)) == [("west/d0", "prefill", 0.0)]


def test_the_prefill_worker_with_the_least_to_finish_becomes_a_decode_worker() -> None:
    assert steps(target(1, 7), west(3, 5)) == [("west/p0", "decode", 0.0)]


def test_one_worker_is_asked_at_a_time_however_many_are_to_change() -> None:
    assert len(steps(target(7, 1), west(3, 5))) == 1


def test_nobody_is_asked_while_another_one_changes() -> None:
    busy = {"west": UnderWay(worker_id="west/d9", role="prefill", since_s=0.0)}

    assert steps(target(4, 4), west(3, 5), under_way=busy) == []


def test_nobody_is_asked_while_one_that_can_change_drains() -> None:
    """The leader before this one may have asked it."""
    beats = [*west(3, 4), a_worker_beat("west/d8", is_draining=True)]

    assert steps(target(4, 4), beats) == []


def test_workers_that_cannot_change_are_left_alone() -> None:
    assert steps(target(4, 4), west(3, 5, roles=())) == []


def test_workers_that_cannot_change_are_not_counted() -> None:
    beats = [
        *west(3, 5),
        *(a_worker_beat(f"west/fixed{n}", role="prefill", roles=()) for n in "12"),
    ]

    assert steps(target(4, 4), beats) == [("west/d0", "prefill", 0.0)]


def test_workers_that_said_no_are_left_alone_for_a_while() -> None:
    assert steps(target(4, 4), west(3, 5), refused={"west/d0"}) == [("west/d1", "prefill", 0.0)]


def test_the_last_decode_worker_of_the_fleet_stays_one() -> None:
    assert steps(target(3, 0), west(2, 1)) == []


def test_another_datacenter_s_change_does_not_hold_this_one_up() -> None:
    beats = [*west(3, 5), a_worker_beat("east/d1", is_draining=True)]
    busy = {"east": UnderWay(worker_id="east/d1", role="prefill", since_s=0.0)}

    assert steps(target(4, 4), beats, under_way=busy)


def test_all_decode_workers_lend_alike() -> None:
    found = steps(target(3, 5, lent=1.0), west(3, 5))

    assert found == [(f"west/d{number}", "decode", 0.2) for number in range(5)]


def test_lent_time_is_in_steps_and_rounded_in_favour_of_decode() -> None:
    assert {share for *_, share in steps(target(3, 5, lent=0.7), west(3, 5))} == {0.1}


def test_lent_time_is_bounded() -> None:
    assert {share for *_, share in steps(target(3, 5, lent=4.0), west(3, 5))} == {0.25}


def test_who_lends_what_is_planned_is_not_asked() -> None:
    beats = [*west(3, 2), a_worker_beat("west/d7", lend_share=0.2)]

    assert [name for name, *_ in steps(target(3, 3, lent=0.6), beats)] == ["west/d0", "west/d1"]


def test_lending_ends_when_the_plan_wants_none() -> None:
    assert steps(target(0, 1), [a_worker_beat("west/d1", lend_share=0.2)]) == [
        ("west/d1", "decode", 0.0)
    ]


def test_roles_come_before_shares() -> None:
    assert steps(target(4, 4, lent=0.8), west(3, 5)) == [("west/d0", "prefill", 0.0)]


def test_the_registration_of_lent_time_is_no_worker() -> None:
    lent = a_worker_beat("west/d0.lent", role="prefill", lent_by="west/d0")

    assert steps(target(3, 5), [*west(3, 5), lent]) == []


def test_a_step_names_the_life_it_is_meant_for() -> None:
    beat = a_worker_beat("west/d1", incarnation="life-7")

    (step,) = next_steps({"west": target(1, 1)}, [beat, *west(0, 1)], {}, rules())

    assert step == Step(
        worker_id="west/d0",
        datacenter="west",
        incarnation="i1",
        url="http://west/d0",
        from_role="decode",
        role="prefill",
    )
    assert step.is_role_change


ASKED = {"west": UnderWay(worker_id="west/d0", role="prefill", since_s=100.0)}


def test_a_change_is_under_way_until_the_worker_is_back() -> None:
    gone: list[WorkerBeat] = []
    old = [a_worker_beat("west/d0", is_draining=True)]
    back = [a_worker_beat("west/d0", role="prefill", incarnation="i2")]

    for beats in (gone, old):
        assert still_under_way(ASKED, beats, now_s=110.0, rules=rules()) == ASKED
    assert still_under_way(ASKED, back, now_s=110.0, rules=rules()) == {}


def test_a_worker_that_does_not_come_back_is_waited_for_a_while() -> None:
    assert still_under_way(ASKED, [], now_s=219.0, rules=rules()) == ASKED
    assert still_under_way(ASKED, [], now_s=221.0, rules=rules()) == {}
