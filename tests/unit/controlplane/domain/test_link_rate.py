"""What a link gives: a slow one is told from one that is little used."""

from __future__ import annotations

from itertools import pairwise

import pytest

from controlplane.domain.link_rate import (
    LinkRate,
    LinkRateRules,
    Sample,
    Usage,
    extended,
    observed,
    rate_at,
    together,
    usage_of,
)

RULES = LinkRateRules()
#: 200 Mbit/s.
BUDGET = 200e6


def a_rate(rate_bps: float = BUDGET, **overrides: float) -> LinkRate:
    """Told of at second 100."""
    return LinkRate(**({"rate_bps": rate_bps, "told_s": 100.0} | overrides))


def a_usage(mbit_per_s: float, busy_share: float) -> Usage:
    bytes_per_s = mbit_per_s * 1e6 / 8
    return Usage(bytes_per_s=bytes_per_s, moved_per_s=bytes_per_s, busy_share=busy_share)


def after(rate: LinkRate, usage: Usage, *, times: int = 1, now_s: float = 101.0) -> LinkRate:
    """After so many looks, a second apart."""
    for look in range(times):
        rate = observed(rate, usage, BUDGET, now_s + look, RULES)
    return rate


def samples(*counts: tuple[float, int, float]) -> tuple[Sample, ...]:
    """Heartbeats of one receiver: its age, bytes, busy seconds."""
    found: tuple[Sample, ...] = ()
    for age_s, arrived_bytes, busy_s in counts:
        newest = Sample(
            age_s=age_s, arrived_bytes=arrived_bytes, moved_bytes=arrived_bytes, busy_s=busy_s
        )
        found = extended(found, newest, RULES)
    return found


# --- The estimate -----------------------------------------------------------------------------


def test_a_link_that_is_busy_all_the_time_gives_what_comes_over_it() -> None:
    """Throttled to a tenth, and asked for more."""
    rate = after(a_rate(), a_usage(20, 1.0))

    assert rate.rate_bps == 20e6
    assert rate.utilisation == 1.0


def test_a_link_that_is_busy_half_of_the_time_gives_twice_what_comes_over_it() -> None:
    rate = after(a_rate(), a_usage(10, 0.5))

    assert rate.rate_bps == 20e6
    assert rate.utilisation == 0.5


def test_bytes_that_came_while_it_was_not_busy_do_not_raise_what_it_gives() -> None:
    """Half of the time a link of 20 Mbit/s is asked for all it has, else for 8 Mbit/s."""
    usage = Usage(bytes_per_s=14e6 / 8, moved_per_s=10e6 / 8, busy_share=0.5)

    assert after(a_rate(), usage).rate_bps == 20e6


def test_a_link_that_is_little_used_keeps_its_estimate() -> None:
    """A few small transfers show bursts and round trips, not what it gives."""
    rate = after(a_rate(), a_usage(1, 0.1), times=10)

    assert rate_at(rate, BUDGET, 111.0, RULES) == BUDGET
    assert rate.utilisation == pytest.approx(1 / 200)


def test_less_than_half_busy_it_is_believed_step_by_step() -> None:
    steps = [after(a_rate(), a_usage(5, 0.25), times=times).rate_bps for times in range(1, 6)]

    assert all(later < sooner for sooner, later in pairwise(steps))
    assert steps[0] == pytest.approx((200e6 + 20e6) / 2)
    assert steps[4] == pytest.approx(20e6, rel=0.3)


def test_a_link_that_gives_more_again_is_raised_at_once() -> None:
    assert after(a_rate(20e6), a_usage(150, 1.0)).rate_bps == 150e6


def test_what_came_is_the_least_it_gives_whatever_receivers_make_of_their_gaps() -> None:
    assert after(a_rate(20e6), a_usage(80, 0.0)).rate_bps == 80e6


def test_no_estimate_is_more_than_the_budget() -> None:
    """A burst is sent from what was saved up."""
    rate = after(a_rate(), a_usage(300, 1.0))

    assert (rate.rate_bps, rate.utilisation) == (BUDGET, 1.0)


def test_an_estimate_is_never_nothing() -> None:
    """Times over it stay finite."""
    assert after(a_rate(), a_usage(0, 1.0)).rate_bps == BUDGET / 1000


def test_without_evidence_an_estimate_stands_and_then_doubles_up_to_the_budget() -> None:
    rate = a_rate(20e6)

    found = [rate_at(rate, BUDGET, 100.0 + after_s, RULES) for after_s in (0, 5, 10, 15, 20, 60)]

    assert found == [20e6, 20e6, 40e6, 80e6, 160e6, 200e6]


def test_looks_that_show_nothing_do_not_hold_the_doubling_up() -> None:
    rate = after(a_rate(20e6), a_usage(0, 0.0), times=10)

    assert rate_at(rate, BUDGET, 110.0, RULES) == 40e6
    assert rate.utilisation == 0.0


def test_evidence_lowers_what_has_doubled_meanwhile() -> None:
    rate = after(a_rate(20e6), a_usage(20, 1.0), now_s=115.0)

    assert rate.rate_bps == 20e6
    assert rate_at(rate, BUDGET, 120.0, RULES) == 20e6


# --- What receivers count ---------------------------------------------------------------------


def test_two_heartbeats_tell_what_came_between_them() -> None:
    usage = usage_of(samples((10.0, 1000, 2.0), (11.0, 3000, 2.5)))

    assert usage == Usage(bytes_per_s=2000, moved_per_s=2000, busy_share=0.5)


def test_one_heartbeat_tells_nothing() -> None:
    assert usage_of(samples((10.0, 1000, 2.0))) == Usage()
    assert usage_of(()) == Usage()


def test_what_is_older_than_the_window_is_forgotten() -> None:
    """But for the heartbeat before it: else a slow one would leave nothing."""
    counts = [(float(age_s), 1000 * age_s, 0.0) for age_s in range(100)]

    kept = samples(*counts)

    assert [sample.age_s for sample in kept] == [97, 98, 99]


def test_a_lost_heartbeat_loses_no_bytes() -> None:
    assert usage_of(samples((10.0, 0, 0.0), (14.0, 8000, 4.0))).bytes_per_s == 2000


@pytest.mark.parametrize("newest", [(0.5, 5000, 3.0), (11.0, 10, 3.0), (11.0, 5000, 0.1)])
def test_totals_that_go_back_are_of_another_life(newest: tuple[float, int, float]) -> None:
    assert len(samples((10.0, 4000, 2.0), newest)) == 1


def test_bytes_of_all_receivers_add_up_and_busy_times_overlap_by_chance() -> None:
    both = together([a_usage(10, 0.5), a_usage(30, 0.5)])

    assert both == a_usage(40, 0.75)


def test_four_receivers_of_a_full_link_are_all_busy() -> None:
    assert together([a_usage(5, 1.0)] * 4) == a_usage(20, 1.0)


def test_no_receiver_is_no_usage() -> None:
    assert together([]) == Usage()
