"""The token bucket that all senders of a link share, as plain arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass

from controlplane.store.api import BudgetGrant


def check_budget(*, want_bytes: int, rate_bytes_per_s: float, burst_bytes: int) -> None:
    """
    Refuse a bucket that could never grant anything.

    Raises:
        ValueError: `want_bytes` < 0, or rate or burst not positive and finite.
    """
    if want_bytes < 0:
        raise ValueError(f"want_bytes must be >= 0, not {want_bytes}")
    if not (rate_bytes_per_s > 0 and math.isfinite(rate_bytes_per_s)):
        raise ValueError(f"rate_bytes_per_s must be positive, not {rate_bytes_per_s}")
    if burst_bytes < 1:
        raise ValueError(f"burst_bytes must be >= 1, not {burst_bytes}")


@dataclass(slots=True)
class TokenBucket:
    """
    What `link_budget.lua` keeps in Redis.

    In any window of `w` seconds it grants at most `rate * w + burst`: tokens come at `rate`, and
    never more than `burst` of them wait.
    """

    #: Bytes that may be taken, 0 <= tokens <= burst.
    tokens: float
    #: Time of the last call, seconds.
    since_s: float

    def take(
        self, *, want_bytes: int, rate_bytes_per_s: float, burst_bytes: int, now_s: float
    ) -> BudgetGrant:
        """
        Take what is there, up to `want_bytes`.

        Args:
            want_bytes: >= 0.
            rate_bytes_per_s: > 0; applies from the last call on.
            burst_bytes: >= 1.
            now_s: Seconds; a time before the last call brings nothing.

        Mutates: the bucket.
        """
        elapsed_s = max(0.0, now_s - self.since_s)
        self.tokens = min(burst_bytes, self.tokens + elapsed_s * rate_bytes_per_s)
        self.since_s = now_s
        granted = math.floor(min(want_bytes, self.tokens))
        self.tokens -= granted
        if granted or not want_bytes:
            return BudgetGrant(granted_bytes=granted, retry_after_s=0.0)
        missing = max(0.0, min(want_bytes, burst_bytes) - self.tokens)
        return BudgetGrant(granted_bytes=0, retry_after_s=missing / rate_bytes_per_s)
