"""Figures in bounded memory, and the cache that prefix hits come from."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from controlplane.errors import ConfigError
from controlplane.planfile import load_planning_fleet
from controlplane.replay.cache import BlockCache
from controlplane.replay.fleet import solved_roles, world_of
from controlplane.replay.quantiles import Quantiles
from controlplane.replay.series import Series
from controlplane.replay.traces.opening import open_trace

FLEET = Path(__file__).parents[4] / "benchmarks" / "results" / "case_study.toml"


def test_quantiles_are_right_within_their_bins() -> None:
    rng = Random(1)
    values = [rng.lognormvariate(0.0, 2.0) for _ in range(20_000)]
    found = Quantiles()
    for value in values:
        found.add(value)
    values.sort()
    for part in (0.01, 0.5, 0.9, 0.99, 1.0):
        exact = values[max(0, round(part * len(values)) - 1)]
        assert found.at(part) == pytest.approx(exact, rel=0.006)
    assert found.mean == pytest.approx(sum(values) / len(values))


def test_no_values_have_no_quantiles() -> None:
    assert Quantiles().at(0.5) == 0.0
    assert Quantiles().mean == 0.0


def test_quantiles_of_nothing_but_zeros_are_zero() -> None:
    found = Quantiles()
    found.add(0.0)
    assert found.at(0.99) == 0.0


def test_a_long_time_takes_no_more_steps_but_longer_ones() -> None:
    found = Series("done", step_s=1.0)
    for second in range(10_000):
        found.add(second, "done")
    assert found.step_s == 8.0
    assert len(found.of("done")) <= 2048
    assert sum(found.of("done")) == 10_000
    assert found.between("done", 80.0, 160.0) == 80


def names(*numbers: int) -> list[bytes]:
    return [number.to_bytes(16, "big") for number in numbers]


def test_the_least_recently_used_blocks_leave_first() -> None:
    cache = BlockCache(3, snapshot_blocks=0)
    cache.put(names(1, 2), has_states=True)
    cache.put(names(3), has_states=True)
    assert cache.held(names(1, 2)) == (2, 2)
    cache.put(names(4), has_states=True)
    assert cache.held(names(3)) == (0, 0)
    assert cache.held(names(1, 2)) == (2, 2)


def test_prefill_goes_on_only_where_a_state_was_kept() -> None:
    cache = BlockCache(100, snapshot_blocks=4)
    cache.put(names(*range(1, 11)), has_states=True)
    assert cache.held(names(*range(1, 8))) == (7, 4)
    assert cache.held(names(*range(1, 11))) == (10, 10)


def test_what_decode_receives_has_no_states() -> None:
    cache = BlockCache(100, snapshot_blocks=0)
    cache.put(names(1, 2), has_states=False)
    assert cache.held(names(1, 2)) == (2, 0)


def test_heartbeats_tell_of_changes_once() -> None:
    cache = BlockCache(2, snapshot_blocks=0)
    told = cache.listen()
    cache.put(names(1, 2), has_states=True)
    first = cache.take_inventory(told, is_full=False)
    assert set(first.stored) == {name.hex() for name in names(1, 2)}
    cache.put(names(3), has_states=True)
    second = cache.take_inventory(told, is_full=False)
    assert (list(second.stored), list(second.removed)) == (
        [names(3)[0].hex()],
        [names(1)[0].hex()],
    )
    assert not cache.take_inventory(told, is_full=False).stored
    assert len(cache.take_inventory(told, is_full=True).stored) == 2


def test_a_planning_file_becomes_workers_links_and_a_home() -> None:
    fleet = load_planning_fleet(FLEET)
    world = world_of(fleet, block_tokens=512, roles={"west": (3, 5)})
    roles = [(worker.datacenter, worker.role) for worker in world.workers]
    assert roles.count(("east", "prefill")) == 4
    assert roles.count(("west", "prefill")) == 3
    assert roles.count(("west", "decode")) == 5
    assert world.home == "west"
    assert world.links[0].capacity_bps == 1e11
    assert world.workers[0].hardware.roles == ()
    assert world.workers[-1].hardware.roles == ("prefill", "decode")


def test_roles_are_solved_for_the_trace() -> None:
    fleet = load_planning_fleet(FLEET)
    long = list(open_trace("synthetic:requests=500").requests(0))
    short = list(open_trace("synthetic:requests=500,mu=4,input_max=200,output=4000").requests(0))
    assert solved_roles(fleet, long) == {"west": (3, 5)}
    assert solved_roles(fleet, short)["west"][1] > 5


def test_a_fleet_that_cannot_serve_is_explained() -> None:
    fleet = load_planning_fleet(FLEET)
    unlinked = fleet.model_copy(update={"datacenters": fleet.datacenters[:1], "links": ()})
    rows = list(open_trace("synthetic:requests=5").requests(0))
    with pytest.raises(ConfigError, match="fleet case-study: "):
        solved_roles(unlinked, rows)
