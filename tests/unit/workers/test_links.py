"""What a receiver tells of its links: smoothed rates, and every byte."""

from __future__ import annotations

import pytest

from controlplane.config import KvConfig, LinkConfig
from controlplane.wire import LinkReport
from workers.links import LinkMeters

#: Enough to tell a link's speed.
MUCH = 1 << 20


def add(meters: LinkMeters, origin: str = "east", **measured: float) -> None:
    """One finished transfer."""
    meters.add(
        origin,
        moved_bytes=int(measured.get("moved_bytes", MUCH)),
        goodput_bps=measured.get("goodput_bps", 8e6),
        rtt_s=measured.get("rtt_s", 0.05),
    )


def connections(meters: LinkMeters, origin: str = "east") -> int:
    with meters.fetching(origin, KvConfig()) as config:
        return config.connections


def a_fast_link() -> LinkConfig:
    return LinkConfig(from_datacenter="east", to_datacenter="west", capacity_mbit_per_s=5000)


def test_a_transfer_has_as_many_connections_as_its_link_needs() -> None:
    meters = LinkMeters("west", [a_fast_link()])
    add(meters, rtt_s=0.1)

    assert connections(meters) == 24
    with meters.fetching("east", KvConfig()):
        assert connections(meters) == 12
    assert connections(meters) == 24


def test_without_a_link_a_transfer_has_what_the_configuration_says() -> None:
    meters = LinkMeters("east", [a_fast_link()])

    assert connections(meters, "east") == KvConfig().connections
    assert connections(meters, "north") == KvConfig().connections


def test_before_the_first_transfer_there_is_nothing_to_tell() -> None:
    """A link that was never used has no figures."""
    assert LinkMeters("west").reports() == ()


def test_the_first_transfer_is_taken_as_it_is() -> None:
    """There is nothing to smooth it with."""
    meters = LinkMeters("west")

    add(meters)

    assert meters.reports() == (
        LinkReport(
            from_datacenter="east",
            to_datacenter="west",
            goodput_bps=8e6,
            bytes_total=MUCH,
            rtt_s=0.05,
        ),
    )


def test_later_ones_move_the_figures_a_part_of_the_way() -> None:
    """One odd transfer does not turn the picture over; bytes all count."""
    meters = LinkMeters("west")
    add(meters)

    add(meters, goodput_bps=18e6, rtt_s=0.15)

    (report,) = meters.reports()
    assert report.goodput_bps == pytest.approx(11e6)
    assert report.rtt_s == pytest.approx(0.08)
    assert report.bytes_total == 2 * MUCH


def test_a_transfer_that_was_too_short_to_measure_changes_no_rate() -> None:
    """Its bytes were moved all the same."""
    meters = LinkMeters("west")
    add(meters)

    add(meters, goodput_bps=0, rtt_s=0)

    (report,) = meters.reports()
    assert (report.goodput_bps, report.rtt_s, report.bytes_total) == (8e6, 0.05, 2 * MUCH)


def test_a_small_transfer_tells_no_rate() -> None:
    """It fits a sender's burst, which is faster than the link."""
    meters = LinkMeters("west")

    add(meters, moved_bytes=MUCH - 1)

    (report,) = meters.reports()
    assert (report.goodput_bps, report.rtt_s, report.bytes_total) == (0, 0.05, MUCH - 1)


def test_transfers_inside_the_datacenter_use_no_link() -> None:
    """They are not what anybody pays for."""
    meters = LinkMeters("west")

    add(meters, "west")

    assert meters.reports() == ()


def test_each_origin_has_a_report_of_its_own() -> None:
    """In the order of their names, so that equal figures make equal beats."""
    meters = LinkMeters("west")
    for origin in ("north", "east", "north"):
        add(meters, origin)

    assert [(one.from_datacenter, one.bytes_total) for one in meters.reports()] == [
        ("east", MUCH),
        ("north", 2 * MUCH),
    ]


def test_bytes_under_way_and_busy_time_are_told_once_a_transfer_has_begun() -> None:
    """Before that a router must not take the silence for an idle link of this version."""
    meters = LinkMeters("west")
    add(meters)
    (before,) = meters.reports()

    traffic = meters.traffic("east")
    assert traffic is not None
    traffic.arrived_bytes_total += 1000
    traffic.was_busy(1.0, 1.5)
    (after,) = meters.reports()

    assert before.busy_s_total is None
    assert (after.arrived_bytes_total, after.busy_s_total) == (1000, 0.5)


def test_bytes_inside_a_datacenter_are_of_no_link() -> None:
    assert LinkMeters("west").traffic("west") is None
