"""A link that fails is left alone for a while, and longer each time it fails again."""

from __future__ import annotations

from controlplane.domain.holddown import (
    UP,
    HoldDown,
    HoldDownRules,
    failed,
    is_down,
    succeeded,
    tried,
)

RULES = HoldDownRules()


EAST_1, EAST_2 = "east/p1", "east/p2"


def down_twice(now_s: float) -> HoldDown:
    return failed(failed(UP, EAST_1, now_s, RULES), EAST_2, now_s, RULES)


def test_one_failure_is_no_reason() -> None:
    assert not is_down(failed(UP, EAST_1, 0.0, RULES), 0.0)


def test_failures_of_one_worker_are_its_own() -> None:
    """A worker that has died fails all transfers from it; the link is none the worse."""
    link = UP
    for _ in range(100):
        link = failed(link, EAST_1, 0.0, RULES)

    assert not is_down(link, 0.0)


def test_failures_of_two_workers_in_a_row_hold_it_down_for_its_time() -> None:
    link = down_twice(0.0)

    assert is_down(link, 1.9)
    assert not is_down(link, 2.0)


def test_a_success_between_ends_the_row() -> None:
    link = failed(succeeded(failed(UP, EAST_1, 0.0, RULES), 0.1), EAST_2, 0.2, RULES)

    assert not is_down(link, 0.2)


def test_what_was_begun_before_says_nothing_while_it_is_held() -> None:
    link = down_twice(0.0)

    assert failed(link, EAST_1, 1.0, RULES) == link
    assert succeeded(link, 1.0) == link


def test_after_a_hold_one_failure_holds_it_for_twice_as_long_up_to_a_minute() -> None:
    link, now_s, lengths = down_twice(0.0), 0.0, []
    for _ in range(7):
        lengths.append(link.down_until_s - now_s)
        now_s = link.down_until_s
        link = failed(link, EAST_1, now_s, RULES)

    assert lengths == [2, 4, 8, 16, 32, 60, 60]


def test_a_link_that_flaps_every_second_is_tried_a_few_times_a_minute() -> None:
    link, tries = UP, 0
    for tenth in range(3000):
        now_s = tenth / 10
        if not is_down(link, now_s):
            tries += 1
            is_up = int(now_s) % 2 == 0
            source = (EAST_1, EAST_2)[tenth % 2]
            link = succeeded(link, now_s) if is_up else failed(link, source, now_s, RULES)

    assert tries < 3000 / 3


def test_a_link_that_was_up_for_as_long_as_it_was_held_is_forgiven() -> None:
    link = down_twice(0.0)

    assert succeeded(link, 3.9) != UP
    assert succeeded(link, 4.0) == UP


# --- The trial after a hold -------------------------------------------------------------------


def test_after_a_hold_one_request_tries_and_the_others_wait_for_it() -> None:
    link = down_twice(0.0)

    trial = tried(link, 2.0)

    assert not is_down(link, 2.0)
    assert is_down(trial, 2.0)


def test_a_trial_that_arrives_opens_the_link_for_all() -> None:
    link = succeeded(tried(down_twice(0.0), 2.0), 2.5)

    assert not is_down(link, 2.5)
    assert tried(link, 2.6) == link, "no trial is needed any more"


def test_a_trial_that_fails_holds_the_link_for_twice_as_long() -> None:
    link = failed(tried(down_twice(0.0), 2.0), EAST_1, 3.5, RULES)

    assert is_down(link, 7.4)
    assert not is_down(link, 7.5)
    assert is_down(tried(link, 7.5), 7.5)


def test_a_trial_that_nobody_tells_of_makes_room_for_another_one() -> None:
    """Its client left, or its prefill worker died of something else."""
    link = tried(down_twice(0.0), 2.0)

    assert not is_down(link, 4.0)
    assert is_down(tried(link, 4.0), 4.0)


def test_a_link_that_has_never_failed_needs_no_trial() -> None:
    assert tried(UP, 1.0) == UP


def test_failures_that_held_nothing_down_need_no_trial() -> None:
    link = failed(UP, EAST_1, 0.0, RULES)

    assert tried(link, 0.1) == link
