"""A reader tells the time in which a link had something to carry from that in which it had not."""

from __future__ import annotations

import pytest

from workers.kv.traffic import Flow, LinkTraffic, SendGaps


def busy_s(*spans: tuple[float, float]) -> float:
    """What spans add up to, told one after the other."""
    traffic = LinkTraffic()
    for start_s, end_s in spans:
        traffic.was_busy(start_s, end_s)
    return traffic.busy_s_total


class Transfer:
    """A flow that began at second 0, and the link it uses."""

    def __init__(self, traffic: LinkTraffic | None = None) -> None:
        self.traffic = traffic or LinkTraffic()
        self._flow = Flow(self.traffic, 0.0)

    def part(self, now_s: float, *, waited_s: float = 0.0, gap_s: float = 0.0) -> None:
        """A thousand bytes; `waited_s` is the owner's gap when it had to compute them."""
        self._flow.arrived(1000, now_s, has_waited=waited_s > 0, owner_gap_s=waited_s or gap_s)


# --- Time -------------------------------------------------------------------------------------


def test_spans_that_overlap_count_once() -> None:
    assert busy_s((0, 2), (1, 3)) == 3
    assert busy_s((0, 1), (2, 3)) == 2
    assert busy_s((0, 1), (2, 3), (0, 4)) == 4
    assert busy_s((0, 4), (1, 2)) == 4


def test_a_span_of_before_fits_between_others() -> None:
    """A slow transfer tells of its gap when it is over."""
    assert busy_s((0, 1), (4, 5), (2, 3)) == 3
    assert busy_s((0, 1), (4, 5), (2, 3), (2.5, 4.5)) == pytest.approx(4)


def test_a_span_that_ends_before_it_begins_is_none() -> None:
    assert busy_s((2, 2), (3, 1)) == 0


def test_busy_time_never_goes_back() -> None:
    """However many spans there are: of a hundred, only the newest are remembered."""
    traffic, seen = LinkTraffic(), [0.0]
    for number in range(200):
        traffic.was_busy(number * 2, number * 2 + 1)
        traffic.was_busy(number - 50, number - 49.5)
        seen.append(traffic.busy_s_total)

    assert seen == sorted(seen)


# --- Whose gap it is --------------------------------------------------------------------------


def test_a_link_is_busy_while_the_owner_has_bytes_to_send() -> None:
    transfer = Transfer()

    transfer.part(0.5, gap_s=0.5)
    transfer.part(1.0, gap_s=0.5)

    assert transfer.traffic.busy_s_total == 1.0
    assert transfer.traffic.arrived_bytes_total == 2000


def test_a_link_is_not_busy_while_the_owner_computes() -> None:
    transfer = Transfer()
    for number in range(1, 11):
        transfer.part(number * 0.1, waited_s=0.1)

    assert transfer.traffic.busy_s_total == pytest.approx(0)
    assert transfer.traffic.arrived_bytes_total == 10_000


def test_a_slow_link_is_busy_although_the_owner_computes_what_it_sends() -> None:
    """Buffers on the way take all of it: the owner never waits for the link."""
    transfer = Transfer()
    for number in range(1, 11):
        transfer.part(number * 0.1, waited_s=0.005)

    assert transfer.traffic.busy_s_total == pytest.approx(0.9, abs=0.01)


def test_what_waits_on_the_way_drains_while_the_owner_computes_on() -> None:
    """A second's worth is in the buffers; after it has come the link is idle."""
    transfer = Transfer()
    transfer.part(1.0, gap_s=0.0)

    transfer.part(5.0, waited_s=5.0)

    assert transfer.traffic.busy_s_total == pytest.approx(1.99)


def test_turns_of_event_loops_are_no_queue() -> None:
    """Each part comes a little later than it was sent, and no later than the one before."""
    transfer = Transfer()
    for number in range(1, 101):
        transfer.part(number * 0.02 + 0.008 * (number % 2), waited_s=0.02)

    assert transfer.traffic.busy_s_total < 0.2


def test_of_an_owner_that_does_not_tell_its_gaps_waits_are_left_out() -> None:
    """As before there were any: it says that it waited, and not how long."""
    traffic = LinkTraffic()
    flow = Flow(traffic, 0.0)
    for number in range(1, 11):
        flow.arrived(1000, number * 0.1, has_waited=number % 2 == 0, owner_gap_s=0.0)

    assert traffic.busy_s_total == pytest.approx(0.5)


def test_transfers_over_one_link_are_busy_together() -> None:
    first = Transfer()
    second = Transfer(first.traffic)

    first.part(1.0, gap_s=1.0)
    second.part(1.0, gap_s=1.0)

    assert first.traffic.busy_s_total == 1.0
    assert first.traffic.arrived_bytes_total == 2000


# --- The owner's side -------------------------------------------------------------------------


def test_gaps_between_sends_are_whole_milliseconds_and_nothing_is_lost_by_rounding() -> None:
    gaps = SendGaps(10.0)

    told = [gaps.next_ms(10.0 + 0.00075 * number, has_waited=False) for number in range(1, 11)]

    assert sum(told) == 7


def test_an_owner_that_waited_always_says_how_long() -> None:
    """0 is what owners say that do not tell."""
    gaps = SendGaps(10.0)

    told = [gaps.next_ms(10.0 + 0.0001 * number, has_waited=True) for number in range(1, 4)]

    assert told == [1, 1, 1]


def test_bytes_count_as_moved_only_as_far_as_the_link_was_busy() -> None:
    """What came while the owner computed says nothing of what the link gives."""
    transfer = Transfer()
    transfer.part(1.0, gap_s=1.0)
    transfer.part(3.0, waited_s=2.0)
    transfer.part(4.0, gap_s=1.0)

    assert transfer.traffic.arrived_bytes_total == 3000
    assert transfer.traffic.moved_bytes_total == 2000
    assert transfer.traffic.busy_s_total == pytest.approx(2.0, abs=0.01)
