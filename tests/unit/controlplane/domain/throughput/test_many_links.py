"""Hundreds of links that starve: solved to a small gap within bounded work."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from throughput_builders import a_fleet_by_chance, a_traffic

from controlplane.domain.throughput.fleet import FleetModel, TrafficModel
from controlplane.domain.throughput.layout import lay_out
from controlplane.domain.throughput.many_links import has_many_links
from controlplane.domain.throughput.solve import solve


def starving(
    *, gbit_per_s: float = 2.0, seed: int = 3, serving: int = 9
) -> tuple[FleetModel, TrafficModel]:
    rng = Random(seed)
    fleet, demands = a_fleet_by_chance(rng, prefilling=4, serving=serving, is_uniform=False)
    links = [
        replace(link, capacity_bps=gbit_per_s * 1e9 * rng.uniform(0.2, 1)) for link in fleet.links
    ]
    return replace(fleet, links=tuple(links)), a_traffic(demands=demands, output_tokens=400)


def test_hundreds_of_links_that_starve_are_recognised() -> None:
    assert has_many_links(lay_out(*starving()))
    assert not has_many_links(lay_out(*starving(gbit_per_s=1000)))
    assert not has_many_links(lay_out(*starving(serving=3)))


@pytest.mark.parametrize("seed", range(3))
def test_starving_links_are_solved_to_the_end_with_a_small_gap(seed: int) -> None:
    found = solve(*starving(seed=seed))

    assert found.is_complete
    assert found.gap < 0.05
    assert max(found.utilisation.values()) == pytest.approx(1, rel=1e-6)
    for bands in found.bands.values():
        assert all(sum(band.parts.values()) == pytest.approx(1) for band in bands)


def test_the_bound_is_one_also_for_what_a_longer_search_finds() -> None:
    fleet, traffic = starving()
    found = solve(fleet, traffic)

    roles = {site: replace(each, lent_workers=0.0) for site, each in found.roles.items()}
    assert solve(fleet, traffic, roles=roles).throughput_per_s <= found.bound_per_s
    wider = [replace(link, capacity_bps=2 * link.capacity_bps) for link in fleet.links]
    more = solve(replace(fleet, links=tuple(wider)), traffic)
    assert more.bound_per_s >= found.throughput_per_s


def test_answers_repeat() -> None:
    assert solve(*starving()) == solve(*starving())


def test_with_hardly_any_work_allowed_there_is_an_answer_that_says_so() -> None:
    found = solve(*starving(), steps_max=100_000)

    assert not found.is_complete
    assert 0 < found.throughput_per_s <= found.bound_per_s
