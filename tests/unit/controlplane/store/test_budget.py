"""The shared token bucket: what it grants in any window, and when it says to come again."""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.store.budget import TokenBucket

GAPS_AND_WANTS = st.lists(
    st.tuples(st.floats(0, 2, allow_nan=False), st.integers(0, 5000)), min_size=1, max_size=40
)


@given(
    calls=GAPS_AND_WANTS,
    rate=st.floats(0.5, 1e5, allow_nan=False),
    burst=st.integers(1, 3000),
)
def test_grants_of_any_window_stay_under_rate_and_burst(
    calls: list[tuple[float, int]], rate: float, burst: int
) -> None:
    bucket = TokenBucket(burst, 0.0)
    times = list(accumulate(gap for gap, _ in calls))
    grants = [
        bucket.take(
            want_bytes=want, rate_bytes_per_s=rate, burst_bytes=burst, now_s=now_s
        ).granted_bytes
        for now_s, (_, want) in zip(times, calls, strict=True)
    ]

    for first in range(len(calls)):
        for last in range(first, len(calls)):
            window_s = times[last] - times[first]
            assert sum(grants[first : last + 1]) <= rate * window_s + burst + 1e-6


@given(
    want=st.integers(1, 5000),
    rate=st.floats(0.5, 1e5, allow_nan=False),
    burst=st.integers(1, 3000),
)
def test_who_waits_as_told_gets_what_was_wanted_or_a_burst(
    want: int, rate: float, burst: int
) -> None:
    bucket = TokenBucket(0.0, 100.0)
    refused = bucket.take(want_bytes=want, rate_bytes_per_s=rate, burst_bytes=burst, now_s=100.0)

    granted = bucket.take(
        want_bytes=want,
        rate_bytes_per_s=rate,
        burst_bytes=burst,
        now_s=100.0 + refused.retry_after_s + 1e-6 / rate + 1e-9,
    )

    assert refused.granted_bytes == 0
    assert granted.granted_bytes >= min(want, burst) - 1


def test_small_steps_lose_nothing_to_rounding() -> None:
    bucket = TokenBucket(0.0, 0.0)

    granted = sum(
        bucket.take(
            want_bytes=10, rate_bytes_per_s=1.0, burst_bytes=10, now_s=step / 1024
        ).granted_bytes
        for step in range(1, 5 * 1024 + 1)
    )

    assert granted == 5


def test_a_clock_that_goes_back_brings_nothing_and_breaks_nothing() -> None:
    bucket = TokenBucket(0.0, 100.0)

    back = bucket.take(want_bytes=5, rate_bytes_per_s=1.0, burst_bytes=5, now_s=50.0)
    after = bucket.take(want_bytes=5, rate_bytes_per_s=1.0, burst_bytes=5, now_s=53.0)

    assert back.granted_bytes == 0
    assert after.granted_bytes == 3


def test_wanting_nothing_is_no_reason_to_wait() -> None:
    grant = TokenBucket(0.0, 0.0).take(want_bytes=0, rate_bytes_per_s=1.0, burst_bytes=5, now_s=0.0)

    assert grant.retry_after_s == pytest.approx(0)
