"""Waiting and computing, told apart without asking the server."""

from __future__ import annotations

from workers.engines.remote.turns import Turns


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_request_alone_computes_all_of_its_time() -> None:
    clock = Clock()
    turn = Turns(clock).take()
    clock.now_s += 2

    assert turn.times_s() == (0.0, 2.0)


def test_a_request_behind_another_waits_until_that_has_ended() -> None:
    clock = Clock()
    turns = Turns(clock)
    first, second = turns.take(), turns.take()
    clock.now_s += 2
    assert first.times_s() == (0.0, 2.0)
    clock.now_s += 3

    assert second.times_s() == (2.0, 3.0)


def test_a_request_that_was_given_up_does_not_count_its_time_twice() -> None:
    clock = Clock()
    turns = Turns(clock)
    gone, next_one = turns.take(), turns.take()
    clock.now_s += 2
    gone.end()
    gone.end()
    clock.now_s += 1

    assert next_one.times_s() == (2.0, 1.0)
