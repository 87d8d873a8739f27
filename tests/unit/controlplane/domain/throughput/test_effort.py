from __future__ import annotations

from random import Random

import pytest
from throughput_builders import a_fleet_by_chance, a_traffic

from controlplane.domain.throughput.effort import Effort
from controlplane.domain.throughput.fleet import FleetModel, TrafficModel
from controlplane.domain.throughput.solve import solve


def a_question() -> tuple[FleetModel, TrafficModel]:
    fleet, demands = a_fleet_by_chance(Random(3), prefilling=6, serving=5, is_uniform=False)
    return fleet, a_traffic(demands=demands, output_tokens=400)


def test_effort_stops_when_only_what_is_kept_is_left() -> None:
    effort = Effort(left=10, kept=4)
    effort.spend(5)
    assert not effort.stops()
    effort.spend(1)
    assert effort.stops()
    assert effort.is_cut_short


def test_a_solution_that_has_all_its_steps_is_complete() -> None:
    found = solve(*a_question())

    assert found.is_complete
    assert found.gap == pytest.approx(1 - found.throughput_per_s / found.bound_per_s)
    assert found.gap < 0.05


@pytest.mark.parametrize("steps_max", [0, 30_000, 100_000])
def test_a_solution_that_runs_out_of_steps_is_marked_and_can_be_followed(steps_max: float) -> None:
    found = solve(*a_question(), steps_max=steps_max)

    assert not found.is_complete
    assert 0 < found.throughput_per_s <= found.bound_per_s
    assert max(found.utilisation.values()) == pytest.approx(1, rel=1e-6)
    for bands in found.bands.values():
        assert all(sum(band.parts.values()) == pytest.approx(1) for band in bands)


def test_steps_bound_the_work_and_not_the_clock_so_that_answers_repeat() -> None:
    first, second = (solve(*a_question(), steps_max=100_000) for _ in range(2))

    assert first == second


def test_more_steps_find_as_much_or_more() -> None:
    few, all_steps = solve(*a_question(), steps_max=0), solve(*a_question())

    assert few.throughput_per_s < all_steps.throughput_per_s


@pytest.mark.parametrize("steps_max", [0, 30_000, 100_000])
def test_what_is_said_of_the_best_holds_for_all_roles_also_when_time_was_short(
    steps_max: float,
) -> None:
    best = solve(*a_question())

    assert solve(*a_question(), steps_max=steps_max).bound_per_s >= best.throughput_per_s
