"""What a decode worker measures on the links that its KV comes over."""

from __future__ import annotations

from dataclasses import dataclass

from controlplane.wire import LinkReport

#: Smaller transfers fit a sender's burst and tell its speed, not the link's.
_TELLING_BYTES = 1 << 20

#: Weight of the newest transfer; about the last five count.
_WEIGHT = 0.3


@dataclass(slots=True)
class _Meter:
    goodput_bps: float = 0.0
    rtt_s: float = 0.0
    bytes_total: int = 0


class LinkMeters:
    """Smoothed goodput and round trip, and total bytes, by datacenter of origin."""

    def __init__(self, datacenter: str) -> None:
        self._datacenter = datacenter
        self._meters: dict[str, _Meter] = {}

    def add(
        self, from_datacenter: str, *, moved_bytes: int, goodput_bps: float, rtt_s: float
    ) -> None:
        """
        Take one finished transfer.

        Args:
            from_datacenter: Where it came from; transfers inside a datacenter use no link.
            moved_bytes: Payload.
            goodput_bps: Bits per second while bytes moved; of small transfers it is not used.
            rtt_s: Request of a ready chunk to its first byte; 0 when unknown.
        """
        if from_datacenter == self._datacenter:
            return
        meter = self._meters.setdefault(from_datacenter, _Meter())
        meter.bytes_total += moved_bytes
        if moved_bytes >= _TELLING_BYTES:
            meter.goodput_bps = _smooth(meter.goodput_bps, goodput_bps)
        meter.rtt_s = _smooth(meter.rtt_s, rtt_s)

    def reports(self) -> tuple[LinkReport, ...]:
        """What goes into a heartbeat."""
        return tuple(
            LinkReport(
                from_datacenter=name,
                to_datacenter=self._datacenter,
                goodput_bps=meter.goodput_bps,
                bytes_total=meter.bytes_total,
                rtt_s=meter.rtt_s,
            )
            for name, meter in sorted(self._meters.items())
        )


def _smooth(known: float, new: float) -> float:
    if new <= 0:
        return known
    return new if known <= 0 else known + _WEIGHT * (new - known)
