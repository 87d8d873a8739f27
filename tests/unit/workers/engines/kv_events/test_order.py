"""Batches in order, whatever is lost, repeated, or of another life."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workers.engines.kv_events.order import EventOrder, Step

A, B, C, D = b"a", b"b", b"c", b"d"


def following(*, can_replay: bool = True) -> EventOrder:
    """An order whose first replay has ended with nothing."""
    order = EventOrder(can_replay=can_replay)
    assert order.replay_ended() == []
    return order


def test_batches_in_order_are_taken() -> None:
    order = following()

    assert [order.live(0, A), order.live(1, B)] == [[A], [B]]


def test_the_past_is_asked_for_first_and_live_batches_wait_for_it() -> None:
    order = EventOrder(can_replay=True)

    assert order.replay_from == 0
    assert order.live(2, C) == []
    assert [order.replayed(0, A), order.replayed(1, B), order.replayed(2, C)] == [[A], [B], [C]]
    assert order.replay_ended() == []
    assert order.live(3, D) == [D]


def test_a_gap_is_closed_by_a_replay_before_anything_behind_it_is_taken() -> None:
    order = following()
    order.live(0, A)

    assert order.live(3, D) == []
    assert order.replay_from == 1
    assert [order.replayed(1, B), order.replayed(2, C)] == [[B], [C]]
    assert order.replay_ended() == [D]
    assert order.losses_total == 0


def test_a_gap_that_cannot_be_closed_voids_what_was_told_before_it() -> None:
    for order, closes in ((following(can_replay=False), False), (following(), True)):
        order.live(0, A)

        steps = order.live(3, D)

        assert (order.replay_ended() if closes else steps) == [None, D]
        assert order.losses_total == 1


def test_a_ring_that_has_forgotten_the_start_of_a_gap_is_a_loss() -> None:
    order = following()
    order.live(0, A)
    order.live(4, D)

    assert order.replayed(3, C) == [None, C]
    assert order.replay_ended() == [D]


def test_a_batch_that_came_by_replay_and_live_is_taken_once() -> None:
    order = EventOrder(can_replay=True)
    order.replayed(0, A)
    order.replayed(1, B)
    order.replay_ended()

    assert order.live(1, B) == []
    assert order.live(2, C) == [C]


def test_a_lower_number_is_another_life() -> None:
    order = following()
    order.live(5, A)

    assert order.live(0, B) == [None]
    assert order.replay_from == 0
    assert order.replay_ended() == [B]

    plain = following(can_replay=False)
    plain.live(5, A)
    assert plain.live(0, B) == [None, B]


def test_a_server_that_restarts_is_asked_for_its_new_past() -> None:
    order = following()
    order.live(3, A)

    order.restart()

    assert order.replay_from == 0
    assert order.live(9, D) == []


@given(st.lists(st.booleans(), max_size=30), st.integers(0, 40), st.randoms(use_true_random=False))
def test_whatever_is_lost_live_a_full_replay_gives_each_batch_once_and_in_order(
    lost: list[bool], chunk: int, random: object
) -> None:
    del random
    order = EventOrder(can_replay=True)
    taken: list[Step] = []
    made: list[bytes] = []

    def replay(upto: int) -> None:
        while order.replay_from is not None:
            for number in range(order.replay_from, upto):
                taken.extend(order.replayed(number, made[number]))
            taken.extend(order.replay_ended())

    for number, is_lost in enumerate(lost):
        made.append(str(number).encode())
        if not is_lost:
            taken.extend(order.live(number, made[number]))
        if number % 7 == chunk % 7:
            replay(len(made))
    made.append(b"last")
    taken.extend(order.live(len(made) - 1, b"last"))
    replay(len(made))

    assert taken == made
