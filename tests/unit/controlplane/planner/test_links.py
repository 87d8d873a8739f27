"""What links give."""

from __future__ import annotations

from controlplane.planner.links import looked, steady_bps


def after(*looks: float) -> float:
    history: dict[str, tuple[float, ...]] = {}
    for bps in looks:
        history = looked(history, {"east>west": bps})
    return steady_bps(history)["east>west"]


def test_the_first_look_counts_at_once() -> None:
    assert after(100.0) == 100.0


def test_one_odd_measurement_is_passed_over() -> None:
    assert after(100.0, 100.0, 3.0) == 100.0
    assert after(100.0, 3.0, 100.0) == 100.0


def test_a_step_counts_from_its_second_look_on() -> None:
    assert after(100.0, 100.0, 10.0, 10.0) == 10.0
    assert after(10.0, 10.0, 100.0, 100.0) == 100.0


def test_a_link_that_is_down_gives_nothing_at_once() -> None:
    assert after(100.0, 100.0, 0.0) == 0.0


def test_a_link_that_is_up_again_gives_what_is_measured_then() -> None:
    assert after(100.0, 100.0, 0.0, 40.0) == 40.0


def test_links_that_are_gone_are_forgotten() -> None:
    assert looked({"gone>west": (1.0,)}, {}) == {}
