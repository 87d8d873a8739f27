"""Summaries of traffic, and their sum."""

from __future__ import annotations

import json
from typing import Any

import pytest
from planner_builders import a_demand

from controlplane.domain.throughput.profile_fit import Normals, seen
from controlplane.planner.histogram import of_lengths
from controlplane.planner.traffic import Demand, SiteTraffic, decode_demand, encode_demand, summed


def test_a_summary_arrives_as_it_was_sent() -> None:
    demand = Demand(
        sites={
            "west": SiteTraffic(
                arrival_per_s=1.5,
                burst_per_s=2.5,
                uncached=of_lengths([0, 10, 500, 500]),
                output=of_lengths([7]),
            ),
            "north": SiteTraffic(),
        },
        prefills={"east": seen(1000, 50, 0.25, expected_s=0.3)},
    )

    assert decode_demand(encode_demand(demand)) == demand


def test_an_empty_summary_is_one_too() -> None:
    assert decode_demand(encode_demand(Demand())) == Demand()


def test_the_traffic_of_all_routers_adds_up() -> None:
    both = summed([a_demand(per_s=1.0, lengths=[100] * 3), a_demand(per_s=2.0, lengths=[900])])

    assert both.arrival_per_s == both.burst_per_s == 3.0
    assert both.requests == 4
    assert both.sites["west"].uncached.mean == pytest.approx(300)


def test_datacenters_stay_apart() -> None:
    north = Demand(sites={"north": SiteTraffic(arrival_per_s=5.0)})

    both = summed([a_demand(per_s=1.0), north])

    assert {name: site.arrival_per_s for name, site in both.sites.items()} == {
        "west": 1.0,
        "north": 5.0,
    }


def test_prefills_of_a_datacenter_add_up_over_routers() -> None:
    one = Demand(prefills={"east": seen(1000, 0, 0.25)})

    assert summed([one, one]).prefills["east"].count == 2


def test_a_full_summary_is_far_smaller_than_the_store_takes() -> None:
    lengths = of_lengths([2 ** (number / 8) for number in range(160)] * 3)
    demand = Demand(
        sites={"west": SiteTraffic(arrival_per_s=1 / 3, uncached=lengths, output=lengths)}
    )

    assert len(encode_demand(demand)) < 12_000


SITE: dict[str, Any] = {"arrival_per_s": 1.0, "burst_per_s": 1.0}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        json.dumps({"sites": {"west": {}}}).encode(),
        json.dumps({"sites": {"west": SITE | {"arrival_per_s": -1}}}).encode(),
        json.dumps({"sites": {"west": SITE | {"arrival_per_s": 1e300}}}).encode(),
        b'{"sites": {"west": {"arrival_per_s": NaN, "burst_per_s": 1}}}',
        json.dumps({"sites": {"west": SITE | {"uncached": [[-1, 1, 1]]}}}).encode(),
        json.dumps({"sites": {"west": SITE | {"uncached": [[9999, 1, 1]]}}}).encode(),
        json.dumps({"sites": {"west": SITE | {"uncached": [[5, 1, 1], [5, 1, 1]]}}}).encode(),
        json.dumps({"sites": {"west": SITE | {"uncached": [[5, -1, 1]]}}}).encode(),
        json.dumps({"sites": {"west": SITE | {"uncached": [[5, 1, 1e30]]}}}).encode(),
        json.dumps({"sites": {}, "prefills": {"east": [1.0] * 10}}).encode(),
        json.dumps({"sites": {}, "prefills": {"east": [1e200] * 11}}).encode(),
        json.dumps({"sites": {f"s{number}": SITE for number in range(65)}}).encode(),
    ],
)
def test_what_cannot_be_is_refused_as_a_whole(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"traffic|expected|bin|numbers"):
        decode_demand(body)


def test_fields_of_a_version_to_come_are_passed_over() -> None:
    body = json.dumps({"sites": {"west": SITE | {"later": 1}}, "later": []}).encode()

    assert decode_demand(body).sites["west"].arrival_per_s == 1.0


def test_normal_equations_keep_all_their_digits() -> None:
    normals = Normals(3.0, (1 / 3,) * 6, (2 / 3,) * 3, 1e-17)

    sent = decode_demand(encode_demand(Demand(prefills={"east": normals})))

    assert sent.prefills["east"] == normals
