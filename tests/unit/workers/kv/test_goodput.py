from __future__ import annotations

from workers.kv.goodput import GoodputMeter


def test_goodput_is_bits_over_the_time_in_motion() -> None:
    meter = GoodputMeter()
    meter.begin(10.0)

    meter.arrived(500, 10.5, has_waited=False)
    meter.arrived(500, 11.0, has_waited=False)

    assert meter.goodput_bps == 8000


def test_waiting_for_the_prefill_does_not_slow_a_link_down() -> None:
    meter = GoodputMeter()
    meter.begin(0.0)

    meter.arrived(100, 50.0, has_waited=True)
    meter.arrived(1000, 51.0, has_waited=False)

    assert meter.goodput_bps == 8000


def test_bytes_that_moved_in_no_time_say_nothing() -> None:
    meter = GoodputMeter()
    meter.begin(0.0)

    meter.arrived(1000, 0.0005, has_waited=False)

    assert meter.goodput_bps == 0


def test_all_payload_counts_whatever_it_waited_for() -> None:
    meter = GoodputMeter()
    meter.begin(0.0)

    meter.arrived(100, 1.0, has_waited=True)
    meter.arrived(10, 2.0, has_waited=False)

    assert (meter.payload_bytes, meter.first_byte_s) == (110, 1.0)


def test_a_second_connection_does_not_restart_the_measure() -> None:
    meter = GoodputMeter()
    meter.begin(0.0)
    meter.begin(0.9)

    meter.arrived(1000, 1.0, has_waited=False)

    assert meter.goodput_bps == 8000


def test_nothing_received_is_no_goodput() -> None:
    assert GoodputMeter().goodput_bps == 0
