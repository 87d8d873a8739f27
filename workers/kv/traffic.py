"""
What crosses one link into a worker, and for how long the link had something to carry.

A link that is slow and a link that is little used bring the same few bytes a second. What tells them
apart is whether bytes were under way all the time. A reader sees gaps between parts: a gap is the
link's when the owner had the bytes ready, and the prefill's when the owner had to wait for them. The
owner says which, and how long it was between its own sends, because the buffers between the two hide
it: bytes that wait in them keep a link busy also while the owner waits for the next ones.
"""

from __future__ import annotations

from collections import deque
from typing import Final

#: Lag up to here is taken for turns of event loops and the distance, seconds.
_GRACE_S: Final = 0.01
#: Separate spans of time that are remembered: transfers overlap, and report their gaps afterwards.
_SPANS_MAX: Final = 64


class SendGaps:
    """The owner's side of it: whole milliseconds between its sends, and nothing lost by rounding."""

    def __init__(self, began_s: float) -> None:
        self._began_s = began_s
        self._told_ms = 0

    def next_ms(self, now_s: float, *, has_waited: bool) -> int:
        """Milliseconds since the send before; at least 1 where it waited, because 0 is not told."""
        elapsed_ms = int((now_s - self._began_s) * 1000)
        gap_ms = max(1 if has_waited else 0, elapsed_ms - self._told_ms)
        self._told_ms += gap_ms
        return gap_ms


class LinkTraffic:
    """Totals of one link, over all transfers that come over it to this worker."""

    def __init__(self) -> None:
        #: KV payload that has arrived, of transfers under way too.
        self.arrived_bytes_total = 0
        #: Of those, what arrived in the seconds below; None where the two are not told apart.
        self.moved_bytes_total: int | None = None
        #: Seconds in which at least one transfer had bytes on their way.
        self.busy_s_total = 0.0
        #: Disjoint spans of those seconds, by begin and end, in order.
        self._spans: deque[tuple[float, float]] = deque(maxlen=_SPANS_MAX)

    def __repr__(self) -> str:
        return f"<LinkTraffic {self.arrived_bytes_total} bytes in {self.busy_s_total:.3f} s>"

    def moved(self, payload_bytes: int, moving_s: float, *, ended_s: float) -> None:
        """
        Count what an engine has moved by itself.

        Args:
            payload_bytes: Bytes, >= 0.
            moving_s: Seconds in which they moved, by its own count.
            ended_s: When that was heard of, on the clock of all calls.
        """
        self.was_busy(ended_s - moving_s, ended_s)
        self.moved_bytes_total = (self.moved_bytes_total or 0) + payload_bytes
        self.arrived_bytes_total += payload_bytes

    def was_busy(self, start_s: float, end_s: float) -> None:
        """Count a span of time, but for what of it is counted already."""
        if end_s <= start_s:
            return
        apart: list[tuple[float, float]] = []
        while self._spans and self._spans[-1][1] >= start_s:
            span = self._spans.pop()
            if span[0] > end_s:
                apart.append(span)
                continue
            self.busy_s_total -= span[1] - span[0]
            start_s, end_s = min(start_s, span[0]), max(end_s, span[1])
        self.busy_s_total += end_s - start_s
        self._spans.append((start_s, end_s))
        self._spans.extend(reversed(apart))


class Flow:
    """One connection of a transfer: turns its gaps into traffic of the link."""

    def __init__(self, traffic: LinkTraffic, begun_s: float) -> None:
        """
        Nothing has arrived.

        Args:
            traffic: Of the link.
            begun_s: When the owner accepted, on the clock of all further calls.
        """
        self._traffic = traffic
        self._last_s = begun_s
        #: How much later than its first bytes the newest ones came: what waited on the way.
        self._lag_s = 0.0

    def arrived(
        self, payload_bytes: int, now_s: float, *, has_waited: bool, owner_gap_s: float
    ) -> None:
        """
        Some payload is here.

        Args:
            payload_bytes: Bytes, >= 0.
            now_s: Now.
            has_waited: The owner had to wait until these bytes were computed.
            owner_gap_s: Seconds between the owner's sending this part and the one before; 0 from
                owners that do not tell.
        """
        gap_s, last_s = max(0.0, now_s - self._last_s), self._last_s
        waiting_s = max(0.0, self._lag_s - _GRACE_S)
        moved_bytes = 0
        if not has_waited or (owner_gap_s and waiting_s >= owner_gap_s):
            # The owner had it, or what was still on its way kept the link busy meanwhile.
            self._traffic.was_busy(last_s, now_s)
            moved_bytes = payload_bytes
        elif owner_gap_s:
            busy_s = min(gap_s, waiting_s)
            self._traffic.was_busy(last_s, last_s + busy_s)
            moved_bytes = int(payload_bytes * busy_s / gap_s) if gap_s else 0
        self._traffic.moved_bytes_total = (self._traffic.moved_bytes_total or 0) + moved_bytes
        self._lag_s = max(0.0, self._lag_s + gap_s - owner_gap_s)
        self._last_s = now_s
        self._traffic.arrived_bytes_total += payload_bytes
