from __future__ import annotations

from admin_world import Clock

from controlplane.admin.link_meter import LinkMeter


def test_a_first_look_knows_no_rate() -> None:
    meter = LinkMeter(Clock())

    assert meter.egress_bps({"east>west": 5_000}) == {"east>west": None}


def test_the_rate_is_the_growth_of_the_counter_in_bits() -> None:
    clock = Clock()
    meter = LinkMeter(clock)
    meter.egress_bps({"east>west": 5_000})

    clock.now_s += 4

    assert meter.egress_bps({"east>west": 7_000}) == {"east>west": 4_000.0}


def test_the_rate_is_an_average_over_the_last_ten_seconds() -> None:
    clock = Clock()
    meter = LinkMeter(clock)
    rates = {}
    for total in (0, 8_000, 8_000, 8_000):
        rates = meter.egress_bps({"east>west": total})
        clock.now_s += 5

    assert rates == {"east>west": 0.0}


def test_a_counter_that_fell_is_no_traffic() -> None:
    clock = Clock()
    meter = LinkMeter(clock)
    meter.egress_bps({"east>west": 9_000})

    clock.now_s += 2

    assert meter.egress_bps({"east>west": 10}) == {"east>west": 0.0}


def test_a_look_after_a_pause_does_not_average_over_the_pause() -> None:
    clock = Clock()
    meter = LinkMeter(clock)
    meter.egress_bps({"east>west": 0})

    clock.now_s += 3600

    assert meter.egress_bps({"east>west": 9_000}) == {"east>west": None}


def test_two_looks_at_the_same_moment_say_the_same() -> None:
    clock = Clock()
    meter = LinkMeter(clock)
    meter.egress_bps({"east>west": 0})
    clock.now_s += 2

    first = meter.egress_bps({"east>west": 1_000})

    assert meter.egress_bps({"east>west": 1_000}) == first


def test_many_looks_keep_few_samples() -> None:
    clock = Clock()
    meter = LinkMeter(clock)
    for total in range(1_000):
        meter.egress_bps({"east>west": total})
        clock.now_s += 0.1

    assert len(meter._samples) <= 21
