"""How fast bytes moved while they moved: what a receiver tells about a link."""

from __future__ import annotations

from typing import Final, Protocol

from workers.kv.traffic import Flow

#: Less than this long in motion says more about buffers and bursts than about a link.
_MOVING_S_MIN: Final = 0.001


class Meter(Protocol):
    """Is told of each part of a chunk that has arrived."""

    def arrived(
        self, payload_bytes: int, now_s: float, *, has_waited: bool, owner_gap_s: float = 0.0
    ) -> None:
        """
        Some payload is here.

        Args:
            payload_bytes: Bytes, >= 0.
            now_s: On the same clock as all other calls.
            has_waited: The owner had to wait until these bytes were computed.
            owner_gap_s: Seconds between its sending these and those before; 0 when it does not say.
        """


class GoodputMeter:
    """
    Goodput of one transfer over all its connections.

    The time between two arrivals counts as motion, except before a chunk that was not computed
    yet; the bytes that end such a gap are left out with it.
    """

    def __init__(self) -> None:
        #: Payload bytes that arrived, whatever became of them.
        self.payload_bytes = 0
        #: On the caller's clock; None before the first byte.
        self.first_byte_s: float | None = None
        self._last_s: float | None = None
        self._moved_bytes = 0
        self._moving_s = 0.0

    def begin(self, now_s: float) -> None:
        """An owner accepted: from now on the link could bring bytes."""
        if self._last_s is None:
            self._last_s = now_s

    def arrived(
        self, payload_bytes: int, now_s: float, *, has_waited: bool, owner_gap_s: float = 0.0
    ) -> None:
        """Some payload is here; see `Meter`."""
        del owner_gap_s
        self.payload_bytes += payload_bytes
        if self.first_byte_s is None:
            self.first_byte_s = now_s
        if self._last_s is not None and not has_waited:
            self._moved_bytes += payload_bytes
            self._moving_s += max(0.0, now_s - self._last_s)
        self._last_s = now_s

    @property
    def goodput_bps(self) -> float:
        """Bits per second in motion; 0 when too little moved to tell."""
        if self._moving_s < _MOVING_S_MIN:
            return 0.0
        return self._moved_bytes * 8 / self._moving_s


class ConnectionMeter:
    """What arrives over one connection: counted for its transfer, and for its link if it is one."""

    def __init__(self, transfer: GoodputMeter, flow: Flow | None) -> None:
        self._transfer = transfer
        self._flow = flow

    def arrived(
        self, payload_bytes: int, now_s: float, *, has_waited: bool, owner_gap_s: float = 0.0
    ) -> None:
        """Some payload is here; see `Meter`."""
        self._transfer.arrived(payload_bytes, now_s, has_waited=has_waited)
        if self._flow is not None:
            self._flow.arrived(payload_bytes, now_s, has_waited=has_waited, owner_gap_s=owner_gap_s)
