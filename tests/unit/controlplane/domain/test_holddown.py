"""A link that fails is left alone for a while, and longer each time it fails again."""

from __future__ import annotations

from controlplane.domain.holddown import (
    UP,
    HoldDown,
    HoldDownRules,
    failed,
    is_down,
    probed,
    succeeded,
    tried,
)

RULES = HoldDownRules()

EAST_1, EAST_2 = "east/p1", "east/p2"


def down_twice(now_s: float) -> HoldDown:
    """Two workers' transfers have failed."""
    return failed(failed(UP, EAST_1, now_s, RULES), EAST_2, now_s, RULES)


def answered(link: HoldDown, now_s: float, *, asked_s: float | None = None) -> HoldDown:
    """A probe crossed it, in no time if nothing else is said."""
    asked_s = now_s if asked_s is None else asked_s
    return probed(link, is_answered=True, asked_s=asked_s, now_s=now_s, rules=RULES)


def unanswered(link: HoldDown, now_s: float) -> HoldDown:
    """Probes to all workers were given up after a second."""
    return probed(link, is_answered=False, asked_s=now_s - 1, now_s=now_s, rules=RULES)


def on_trial(now_s: float) -> HoldDown:
    """Held until `now_s`, answered then, and tried at once."""
    return tried(answered(down_twice(now_s - 2), now_s), now_s, RULES)


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
    assert not is_down(answered(link, 2.0), 2.0)


def test_a_success_between_ends_the_row() -> None:
    link = failed(succeeded(failed(UP, EAST_1, 0.0, RULES), 0.1), EAST_2, 0.2, RULES)

    assert not is_down(link, 0.2)


def test_what_was_begun_before_says_nothing_while_it_is_held() -> None:
    link = down_twice(0.0)

    assert failed(link, EAST_1, 1.0, RULES) == link
    assert succeeded(link, 1.0) == link


def test_what_was_begun_before_says_nothing_after_the_hold() -> None:
    """A request that crossed in time may wait for its first token until then."""
    link = down_twice(0.0)

    assert succeeded(link, 4.5) == link
    assert failed(link, EAST_1, 4.5, RULES) == link


def test_each_failed_trial_holds_it_for_twice_as_long_up_to_a_minute() -> None:
    link, now_s, lengths = down_twice(0.0), 0.0, []
    for _ in range(7):
        lengths.append(link.down_until_s - now_s)
        now_s = link.down_until_s
        link = failed(tried(answered(link, now_s), now_s, RULES), EAST_1, now_s, RULES)

    assert lengths == [2, 4, 8, 16, 32, 60, 60]


def test_a_link_that_flaps_every_second_is_tried_a_few_times_a_minute() -> None:
    link, tries = UP, 0
    for tenth in range(3000):
        now_s, is_up = tenth / 10, tenth // 10 % 2 == 0
        if tenth % 5 == 0 and is_up:
            link = answered(link, now_s)
        if not is_down(link, now_s):
            tries += 1
            link = tried(link, now_s, RULES)
            source = (EAST_1, EAST_2)[tenth % 2]
            link = succeeded(link, now_s) if is_up else failed(link, source, now_s, RULES)

    assert tries < 3000 / 3


def test_a_link_that_was_up_for_as_long_as_it_was_held_is_forgiven() -> None:
    link = succeeded(on_trial(2.0), 2.5)

    assert succeeded(link, 4.4) != UP
    assert succeeded(link, 4.5) == UP


# --- Probes -----------------------------------------------------------------------------------


def test_probes_that_nobody_answers_hold_a_link_down_before_any_request_fails() -> None:
    link = unanswered(UP, 1.5)

    assert is_down(link, 3.4)


def test_an_answered_probe_does_not_excuse_failed_transfers() -> None:
    """Small frames pass where full ones do not."""
    link = failed(answered(failed(UP, EAST_1, 0.0, RULES), 0.1), EAST_2, 0.2, RULES)

    assert is_down(link, 0.3)


def test_after_its_time_a_link_stays_down_until_a_probe_crosses_it() -> None:
    link = down_twice(0.0)
    for second in range(1, 60):
        link = unanswered(link, float(second))
        assert is_down(link, second + 0.9)

    assert not is_down(answered(link, 60.0), 60.0)


def test_a_long_cut_does_not_make_the_hold_longer() -> None:
    """Only a request that fails does: nothing was lost while probes alone were sent."""
    link = down_twice(0.0)
    for second in range(1, 60):
        link = unanswered(link, float(second))

    assert link.held_s == 2


def test_an_answer_to_a_probe_of_before_or_during_the_hold_does_not_open_it() -> None:
    link = answered(down_twice(0.0), 2.1, asked_s=1.9)

    assert is_down(link, 2.1)


def test_a_link_that_falls_silent_again_before_it_was_tried_is_held_for_longer() -> None:
    link = unanswered(answered(down_twice(0.0), 2.0), 3.5)

    assert is_down(link, 7.4)
    assert is_down(link, 7.6), "and then it waits for a probe"


def test_a_link_that_nobody_can_probe_is_tried_by_a_request() -> None:
    """Its workers are of a version that cannot, or all of those asked are frozen."""
    link = down_twice(0.0)

    assert is_down(link, 4.9)
    assert not is_down(link, 5.0)
    assert is_down(tried(link, 5.0, RULES), 5.0)


# --- The trial after a hold -------------------------------------------------------------------


def test_after_a_hold_one_request_tries_and_the_others_wait_for_it() -> None:
    link = answered(down_twice(0.0), 2.0)

    trial = tried(link, 2.0, RULES)

    assert not is_down(link, 2.0)
    assert is_down(trial, 2.0)


def test_a_trial_that_arrives_opens_the_link_for_all() -> None:
    link = succeeded(on_trial(2.0), 2.5)

    assert not is_down(link, 2.5)
    assert tried(link, 2.6, RULES) == link, "no trial is needed any more"


def test_a_trial_that_fails_holds_the_link_for_twice_as_long() -> None:
    link = failed(on_trial(2.0), EAST_1, 3.5, RULES)

    assert is_down(link, 7.4)
    assert is_down(link, 7.5), "and then it waits for a probe"
    assert not is_down(answered(link, 7.5), 7.5)


def test_a_trial_that_nobody_tells_of_makes_room_for_another_one_after_another_probe() -> None:
    """Its client left, or its prefill worker died of something else."""
    link = on_trial(2.0)

    assert is_down(link, 4.0)
    assert not is_down(answered(link, 4.0), 4.0)
    assert is_down(tried(answered(link, 4.0), 4.0, RULES), 4.0)


def test_a_link_that_has_never_failed_needs_no_trial() -> None:
    assert tried(UP, 1.0, RULES) == UP


def test_failures_that_held_nothing_down_need_no_trial() -> None:
    link = failed(UP, EAST_1, 0.0, RULES)

    assert tried(link, 0.1, RULES) == link
