"""How much of a link is used: differences of byte counters over the last seconds."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

#: Rates are averages over so long; heartbeats bring new counts once a second.
_WINDOW_S: Final = 10.0

#: Samples closer together than this say nothing new.
_SPACING_S: Final = 0.5


class LinkMeter:
    """
    Bytes that crossed each link per second, as far as anybody looked.

    Samples are taken when they are asked for, so a first look after a pause knows no rate.
    Memory is bounded by window and spacing: 21 samples.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._samples: deque[tuple[float, Mapping[str, int]]] = deque()

    def egress_bps(self, bytes_total: Mapping[str, int]) -> dict[str, float | None]:
        """
        Bits per second of each link over the last seconds; None before there are two samples.

        Args:
            bytes_total: Bytes by link id, from `ViewTracker.link_bytes_total`. A count that fell
                (a receiver was restarted) is taken as no traffic.
        """
        now_s = self._clock()
        while self._samples and now_s - self._samples[0][0] > _WINDOW_S:
            self._samples.popleft()
        if not self._samples or now_s - self._samples[-1][0] >= _SPACING_S:
            self._samples.append((now_s, dict(bytes_total)))
        since_s, before = self._samples[0]
        elapsed_s = now_s - since_s
        if elapsed_s < _SPACING_S:
            return dict.fromkeys(bytes_total)
        return {
            name: max(0, total - before.get(name, total)) * 8 / elapsed_s
            for name, total in bytes_total.items()
        }
