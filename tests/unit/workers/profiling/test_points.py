from __future__ import annotations

from itertools import islice

import pytest

from workers.profiling.points import batch_within, batches, kv_size_through, prompt_lengths, rising


def test_lengths_are_powers_of_two_that_leave_room_for_an_answer() -> None:
    assert prompt_lengths(4096) == [256, 512, 1024, 2048]
    assert prompt_lengths(4097)[-1] == 4096
    assert prompt_lengths(10_000_000)[-1] == 131_072


def test_a_context_that_is_too_short_has_no_lengths() -> None:
    assert prompt_lengths(256) == []


def test_batches_double() -> None:
    assert list(islice(batches(), 5)) == [1, 2, 4, 8, 16]


@pytest.mark.parametrize(
    ("steps_s", "batch"),
    [
        ({1: 0.01, 2: 0.02, 4: 0.04}, 4),
        ({1: 0.01, 2: 0.02, 4: 0.04, 8: 0.08}, 5),
        ({1: 0.08}, 1),
        ({1: 0.08, 2: 0.09}, 1),
        # Noise: the last one that keeps the objective counts, not one behind a slow one.
        ({1: 0.02, 2: 0.06, 4: 0.04}, 1),
    ],
)
def test_the_largest_batch_that_keeps_the_objective(steps_s: dict[int, float], batch: int) -> None:
    assert batch_within(steps_s, 0.05) == batch


def test_times_that_fall_are_put_at_their_mean() -> None:
    points = [(1, 1.0), (2, 3.0), (3, 2.0), (4, 5.0), (5, 4.0), (6, 3.0)]

    assert rising(points) == [(1, 1.0), (2, 2.5), (3, 2.5), (4, 4.0), (5, 4.0), (6, 4.0)]


def test_sizes_on_a_line_give_state_and_tokens() -> None:
    size = kv_size_through([(tokens, 5_000_000 + 2048 * tokens) for tokens in (256, 1024, 4096)])

    assert size.state_bytes == pytest.approx(5_000_000)
    assert size.bytes_per_token == pytest.approx(2048)


def test_blocks_that_are_sent_whole_make_no_negative_state() -> None:
    assert kv_size_through([(100, 100_000), (200, 210_000)]).state_bytes == 0


def test_one_length_does_not_tell_state_from_tokens() -> None:
    with pytest.raises(ValueError, match="one length"):
        kv_size_through([(256, 1000), (256, 1001)])
