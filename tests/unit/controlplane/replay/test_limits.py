"""The least time that any policy needs to be rid of what trouble has left."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from benchmarks.results.cells import case_study, solved, world
from benchmarks.results.limits import Disruption, out_at
from controlplane.domain.plan import SiteRoles
from controlplane.replay.spec import LinkStep, Loss
from controlplane.replay.traces.request import TraceRequest

LINK = "east>west"


def a_disruption(*, out: Collection[str] = (), lasts_s: float = 30.0) -> Disruption:
    """The case study with 3 and 5 workers, in trouble from 100 s on."""
    roles = {"west": SiteRoles(prefill_workers=3, decode_workers=5)}
    return Disruption(
        world=world(case_study(), roles={"west": (3, 5)}),
        prices=solved(case_study(), roles=roles).prices,
        out=out,
        began_s=100.0,
        ended_s=100.0 + lasts_s,
    )


def requests(
    until_s: float, *, per_s: float, burst_per_s: float | None = None
) -> list[TraceRequest]:
    """Prompts of 20,000 tokens, evenly; another rate from 100 to 130 s."""
    found, at_s = [], 0.0
    while at_s < until_s:
        found.append(TraceRequest(at_s, 20_000, 1024))
        is_burst = burst_per_s is not None and 100 <= at_s < 130
        at_s += 1 / (burst_per_s if is_burst and burst_per_s else per_s)
    return found


def test_a_whole_fleet_gives_what_the_model_says_it_serves() -> None:
    assert a_disruption().gives_per_s() == pytest.approx(3.2, rel=0.01)


def test_what_is_lost_or_behind_a_cut_link_gives_nothing() -> None:
    it = a_disruption()
    whole = it.gives_per_s()
    east, west = it.prices.prefill_per_s["east"], it.prices.prefill_per_s["west"]

    assert it.gives_per_s(out={"east/p1", "west/p1"}) == pytest.approx(whole - east - west)
    assert it.gives_per_s(out={LINK}) == pytest.approx(3 * west)


def test_a_request_takes_its_cheapest_placement_of_those_there_are() -> None:
    it = a_disruption()

    assert it.value(2_000) == it.value(2_000, out={LINK})
    assert it.value(60_000) < it.value(60_000, out={LINK})


def test_a_burst_takes_its_backlog_over_the_capacity_to_spare() -> None:
    it = a_disruption()
    each = it.value(20_000)
    left = 30 * 20 * each - 30 * it.gives_per_s()

    least_s = it.least_s(requests(1000, per_s=1.0, burst_per_s=20.0), waits_s=0.0)

    assert least_s == pytest.approx(left / (it.gives_per_s() - 1.0 * each), rel=0.02)


def test_without_trouble_nothing_is_left() -> None:
    assert a_disruption().least_s(requests(200, per_s=1.0), waits_s=3.0) == 0.0


def test_requests_that_end_too_soon_do_not_tell() -> None:
    assert a_disruption().least_s(requests(140, per_s=1.0, burst_per_s=20.0), waits_s=0.0) is None


def test_what_was_placed_at_home_while_a_link_was_cut_takes_longer_than_if_it_could_move() -> None:
    cut = a_disruption(out={LINK}, lasts_s=120.0)
    came = requests(1000, per_s=2.0)
    least_s = cut.least_s(came, waits_s=3.0)

    assert least_s is not None
    home_s = 240 * cut.value(20_000, out={LINK}) / cut.gives_per_s(out={LINK}) - 120
    assert cut.placed_s(came) == pytest.approx(home_s, rel=0.01)
    assert cut.placed_s(came) > 1.5 * least_s


def test_what_is_out_is_told_by_the_changes_of_a_moment() -> None:
    changes = (
        Loss(at_s=5.0, workers=("east/p1",)),
        LinkStep(at_s=5.0, link=LINK, capacity_bps=0.0),
        LinkStep(at_s=9.0, link=LINK, capacity_bps=1e9),
    )

    assert out_at(changes, 5.0) == {"east/p1", LINK}
    assert out_at(changes, 9.0) == frozenset()
