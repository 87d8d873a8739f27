"""What a decode worker measures on the links that its KV comes over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypedDict

from controlplane.config import KvConfig, LinkConfig
from controlplane.wire import LinkReport
from workers.kv.striping import connections_for
from workers.kv.traffic import LinkTraffic

#: Smaller transfers fit a sender's burst and tell its speed, not the link's.
_TELLING_BYTES = 1 << 20

#: Weight of the newest transfer; about the last five count.
_WEIGHT = 0.3


@dataclass(slots=True)
class _Meter:
    goodput_bps: float = 0.0
    rtt_s: float = 0.0
    bytes_total: int = 0
    traffic: LinkTraffic | None = None
    #: Transfers that run now.
    fetches: int = 0


class LinkMeters:
    """Smoothed goodput and round trip, and total bytes, by datacenter of origin."""

    def __init__(self, datacenter: str, links: Iterable[LinkConfig] = ()) -> None:
        """
        Args:
            datacenter: Where the links end.
            links: Of the fleet; those that end elsewhere are of no use here.
        """
        self._datacenter = datacenter
        self._capacities_bps = {
            link.from_datacenter: link.capacity_bps
            for link in links
            if link.to_datacenter == datacenter
        }
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

    @contextmanager
    def fetching(self, from_datacenter: str, config: KvConfig) -> Iterator[KvConfig]:
        """The settings of a transfer while it runs: with as many connections as its link needs."""
        capacity_bps = self._capacities_bps.get(from_datacenter)
        if capacity_bps is None:
            yield config
            return
        meter = self._meters.setdefault(from_datacenter, _Meter())
        meter.fetches += 1
        try:
            count = connections_for(
                capacity_bps=capacity_bps, rtt_s=meter.rtt_s, transfers=meter.fetches,
                connections_min=config.connections,
            )  # fmt: skip
            yield config.model_copy(update={"connections": count})
        finally:
            meter.fetches -= 1

    def traffic(self, from_datacenter: str) -> LinkTraffic | None:
        """What counts bytes on their way over a link; None inside a datacenter."""
        if from_datacenter == self._datacenter:
            return None
        meter = self._meters.setdefault(from_datacenter, _Meter())
        if meter.traffic is None:
            meter.traffic = LinkTraffic()
        return meter.traffic

    def reports(self) -> tuple[LinkReport, ...]:
        """What goes into a heartbeat."""
        return tuple(
            LinkReport(
                from_datacenter=name,
                to_datacenter=self._datacenter,
                goodput_bps=meter.goodput_bps,
                bytes_total=meter.bytes_total,
                rtt_s=meter.rtt_s,
                **_told(meter.traffic),
            )
            for name, meter in sorted(self._meters.items())
        )


class _Told(TypedDict, total=False):
    arrived_bytes_total: int
    moved_bytes_total: int | None
    busy_s_total: float


def _told(traffic: LinkTraffic | None) -> _Told:
    if traffic is None:
        return {}
    return {
        "arrived_bytes_total": traffic.arrived_bytes_total,
        "moved_bytes_total": traffic.moved_bytes_total,
        "busy_s_total": traffic.busy_s_total,
    }


def _smooth(known: float, new: float) -> float:
    if new <= 0:
        return known
    return new if known <= 0 else known + _WEIGHT * (new - known)
