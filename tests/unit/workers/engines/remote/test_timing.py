from __future__ import annotations

import pytest

from workers.engines.remote.timing import Timing


def test_long_prompts_tell_what_a_token_takes() -> None:
    timing = Timing(prefill_s_per_token=1e-3, prefill_fixed_s=0.1)

    for _ in range(60):
        timing.add_prefill(1000, 0.1 + 2.0)

    assert timing.prefill_s_per_token == pytest.approx(2e-3, rel=0.01)
    assert timing.prefill_fixed_s == 0.1


def test_short_prompts_tell_what_a_request_takes() -> None:
    timing = Timing(prefill_s_per_token=1e-3, prefill_fixed_s=0.001)

    for _ in range(60):
        timing.add_prefill(100, 0.1 + 0.3)

    assert timing.prefill_fixed_s == pytest.approx(0.3, rel=0.01)
    assert timing.prefill_s_per_token == 1e-3


def test_a_prompt_that_was_cached_tells_nothing() -> None:
    timing = Timing(prefill_s_per_token=1e-3)

    timing.add_prefill(0, 5.0)

    assert timing == Timing(prefill_s_per_token=1e-3)


def test_a_trial_counts_like_one_request() -> None:
    timing = Timing(prefill_s_per_token=1e-3)

    timing.add_prefill(1000, 2.0)
    assert timing.prefill_s_per_token == pytest.approx(1.5e-3)
    timing.add_prefill(1000, 3.0)

    assert timing.prefill_s_per_token == pytest.approx(2e-3)


def test_what_pairs_of_tokens_take_is_not_counted_twice() -> None:
    timing = Timing(prefill_s_per_token=1e-3, prefill_s_per_token_squared=1e-6)

    timing.add_prefill(1000, 1.0 + 3.0, cached_tokens=1000)

    assert timing.prefill_s_per_token == pytest.approx(1e-3)


def test_of_a_server_that_could_not_be_tried_the_first_request_tells() -> None:
    timing = Timing()

    timing.add_prefill(1000, 3.0)
    timing.add_step(0.02)

    assert timing.prefill_s_per_token == pytest.approx(3e-3)
    assert timing.decode_step_s == 0.02
