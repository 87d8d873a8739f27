"""Whose turn it is, who makes room, and what a refused client is asked to wait."""

from __future__ import annotations

import pytest

from controlplane.domain.fair_queue import FairQueue, Offered, Pace, time_to_place_s

FAR_S = 1e9


def a_queue(*names: str, items_max: int = 100) -> FairQueue[str]:
    """Items such as `a1`, the first of tenant `a`."""
    queue: FairQueue[str] = FairQueue(items_max)
    for name in names:
        assert queue.offer(name[0], name, deadline_s=FAR_S).is_taken
    return queue


def taken(queue: FairQueue[str], now_s: float = 0.0) -> list[str]:
    """Everything, in the order in which it is handed out."""
    items = []
    while (item := queue.take(now_s)) is not None:
        items.append(item)
    return items


def test_tenants_take_turns_and_each_is_served_in_order() -> None:
    queue = a_queue("a1", "a2", "a3", "b1", "c1", "c2")

    assert taken(queue) == ["a1", "b1", "c1", "a2", "c2", "a3"]


def test_a_tenant_that_comes_back_waits_behind_the_others() -> None:
    queue = a_queue("a1", "b1", "b2")
    assert queue.take(0) == "a1"

    queue.offer("a", "a2", deadline_s=FAR_S)

    assert taken(queue) == ["b1", "a2", "b2"]


def test_when_it_is_full_the_newest_of_the_greediest_makes_room() -> None:
    queue = a_queue("a1", "a2", "a3", "b1", items_max=4)

    assert queue.offer("c", "c1", deadline_s=FAR_S) == Offered(is_taken=True, evicted="a3")
    assert taken(queue) == ["a1", "b1", "c1", "a2"]


def test_when_it_is_full_the_greediest_itself_is_refused() -> None:
    queue = a_queue("a1", "a2", "a3", "b1", items_max=4)

    assert queue.offer("a", "a4", deadline_s=FAR_S) == Offered(is_taken=False)
    assert taken(queue) == ["a1", "b1", "a2", "a3"]


def test_tenants_with_equal_shares_do_not_push_each_other_out() -> None:
    """Or each arrival would undo the one before, and nobody's wait would ever count."""
    queue = a_queue("a1", "a2", "b1", items_max=3)

    assert not queue.offer("b", "b2", deadline_s=FAR_S).is_taken


def test_a_queue_for_nobody_refuses_everybody() -> None:
    assert not a_queue(items_max=0).offer("a", "a1", deadline_s=FAR_S).is_taken


def test_what_is_too_late_is_dropped_and_never_handed_out() -> None:
    queue: FairQueue[str] = FairQueue(10)
    for name, deadline_s in (("a1", 5.0), ("a2", 7.0), ("b1", 5.0), ("b2", 5.1)):
        queue.offer(name[0], name, deadline_s=deadline_s)

    assert taken(queue, now_s=5.0) == ["a2", "b2"]
    assert len(queue) == 0


def test_what_left_is_not_handed_out_and_makes_room() -> None:
    queue = a_queue("a1", "a2", "b1", items_max=3)

    assert queue.remove("a1")
    assert not queue.remove("a1")

    assert queue.offer("b", "b2", deadline_s=FAR_S) == Offered(is_taken=True)
    assert taken(queue) == ["a2", "b1", "b2"]


def test_it_says_how_many_wait() -> None:
    queue = a_queue("a1", "a2", "b1")

    assert (len(queue), queue.count("a"), queue.count("z")) == (3, 2, 0)
    assert repr(queue) == "<FairQueue 3 of 100, 2 tenants>"


# --- How long until a place is free -----------------------------------------------------------


def a_pace(*, running: int, held_s: float, ended: int) -> Pace:
    """A router whose places were each held for so long by a request."""
    pace = Pace(0.0).now(0.0, running=running)
    now_s = 0.0
    for _ in range(ended):
        now_s += held_s / running
        pace = pace.now(now_s, running=running, has_ended=True)
    return pace


@pytest.mark.parametrize(("running", "held_s"), [(1, 2.0), (10, 2.0), (100, 0.5)])
def test_the_pace_is_places_by_the_time_they_are_held(running: int, held_s: float) -> None:
    pace = a_pace(running=running, held_s=held_s, ended=1000)

    assert pace.per_s(pace.seen_s) == pytest.approx(running / held_s, rel=0.02)


def test_the_pace_outlives_a_quiet_hour() -> None:
    """A flood finds the router as fast as it was."""
    before = a_pace(running=10, held_s=2.0, ended=1000)
    idle = before.now(before.seen_s, running=0)

    flooded = idle.now(idle.seen_s + 3600, running=10)

    assert flooded.per_s(flooded.seen_s) == pytest.approx(5.0, rel=0.02)


def test_the_pace_falls_when_nothing_ends_any_more() -> None:
    pace = a_pace(running=10, held_s=2.0, ended=1000)

    assert pace.per_s(pace.seen_s + 60) == pytest.approx(5.0 * 200 / 800, rel=0.05)


def test_a_pace_that_nobody_has_seen_is_none() -> None:
    assert Pace(0.0).per_s(10.0) == 0.0
    assert Pace(0.0).now(0.0, running=5).per_s(10.0) == 0.0


@pytest.mark.parametrize(
    ("ahead", "per_s", "expected_s"),
    [
        pytest.param(9, 2.0, 5.0, id="ten places at two a second"),
        pytest.param(9, 100.0, 1.0, id="soon: still a second"),
        pytest.param(1000, 1.0, 15.0, id="never beyond the bound"),
        pytest.param(0, 0.0, 15.0, id="nothing ends"),
    ],
)
def test_a_refused_client_waits_until_a_place_would_be_free(
    ahead: int, per_s: float, expected_s: float
) -> None:
    assert time_to_place_s(ahead=ahead, per_s=per_s, longest_s=15.0) == pytest.approx(expected_s)
