"""The planner's question to the throughput model: the paper's case study from observed lengths."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

import pytest

from controlplane.domain.plan import NEVER_TOKENS, SiteRoles
from controlplane.domain.throughput.profile import DecodeProfile, KvSize, QuadraticPrefill
from controlplane.planner.facts import FleetFacts, SiteFacts
from controlplane.planner.histogram import of_lengths
from controlplane.planner.solving import Problem, Unsolvable, solve
from controlplane.planner.traffic import Demand, SiteTraffic

LINK = "east>west"
#: 8xH200 and 8xH20 of the paper's section 4, as recovered from its Table 6.
FAST = QuadraticPrefill(fixed_s=0.371, s_per_token=4.29e-5, s_per_token_squared=9.38e-11)
SLOW = QuadraticPrefill(fixed_s=0.453, s_per_token=1.316e-4, s_per_token_squared=2.92e-10)
KV = KvSize(state_bytes=172 * 2**20, bytes_per_token=17_553.0)


def some_lengths(count: int = 4000) -> list[float]:
    """Log-normal, truncated by drawing anew."""
    rng, lengths = Random(1), list[float]()
    while len(lengths) < count:
        length = math.exp(rng.gauss(9.90, 1.0))
        if 128 <= length <= 131_072:
            lengths.append(length)
    return lengths


WEST = SiteFacts(
    name="west",
    prefill_workers=3,
    decode_workers=5,
    movable_prefill=3,
    movable_decode=5,
    prefill=SLOW,
    decode=DecodeProfile(slots=20, step_s=0.025),
    kv=KV,
)
EAST = SiteFacts(name="east", prefill_workers=4, prefill=FAST, kv=KV)
LENGTHS = of_lengths(some_lengths())


def a_problem(
    *, west: SiteFacts = WEST, gbit_per_s: float = 100.0, lend_share_max: float = 0.0
) -> Problem:
    return Problem(
        facts=FleetFacts(sites={"east": EAST, "west": west}, link_bps={LINK: gbit_per_s * 1e9}),
        demand=Demand(
            sites={
                "west": SiteTraffic(
                    arrival_per_s=2.0, uncached=LENGTHS, output=of_lengths([1024.0] * 10)
                )
            }
        ),
        profiles={"east": FAST, "west": SLOW},
        arrival_per_s=2.0,
        lend_share_max=lend_share_max,
    )


def roles(prefill: int, decode: int) -> SiteRoles:
    return SiteRoles(prefill_workers=prefill, decode_workers=decode)


def test_the_paper_s_case_study_is_found_from_what_was_observed() -> None:
    """Exact expectations: 19.4K tokens, 3 and 5 workers, 3.20 requests a second."""
    found = solve(a_problem())

    assert found.now.threshold_tokens[LINK] == pytest.approx(19_400, rel=0.06)
    assert found.now.throughput_per_s == pytest.approx(3.20, rel=0.03)
    assert found.best.roles == {"west": roles(3, 5)}


@pytest.mark.parametrize(("gbit_per_s", "prefill"), [(5, 5), (2, 5), (1, 6)])
def test_a_slower_link_wants_more_prefill_at_home(gbit_per_s: float, prefill: int) -> None:
    found = solve(a_problem(gbit_per_s=gbit_per_s))

    assert found.best.roles["west"].prefill_workers == prefill
    assert found.best.throughput_per_s > 1.2 * found.now.throughput_per_s
    assert found.now.bottleneck == "link"


def test_lent_time_is_worth_five_percent() -> None:
    whole, shared = solve(a_problem()), solve(a_problem(lend_share_max=0.25))

    gain = shared.now.throughput_per_s / whole.now.throughput_per_s - 1
    assert gain == pytest.approx(0.05, abs=0.02)
    assert shared.now.roles["west"].lent_workers == pytest.approx(0.7, abs=0.2)


def test_over_a_link_that_is_down_nothing_is_sent() -> None:
    assert solve(a_problem(gbit_per_s=0)).now.threshold_tokens == {LINK: NEVER_TOKENS}


def test_where_nobody_can_change_the_roles_are_as_they_are() -> None:
    fixed = replace(WEST, movable_prefill=0, movable_decode=0)

    found = solve(a_problem(west=fixed))

    assert found.best == found.now
    assert found.now.roles == {}


def test_prices_are_for_what_is_scarce() -> None:
    prices = solve(a_problem(gbit_per_s=2)).now.prices

    assert prices.link_per_byte[LINK] > 0
    assert prices.prefill_per_s["west"] > 0


def test_without_decode_there_is_no_plan_and_it_says_why() -> None:
    silent = replace(WEST, decode=None)

    with pytest.raises(Unsolvable, match="decode"):
        solve(a_problem(west=silent))


def test_without_an_answer_yet_there_is_no_plan() -> None:
    problem = a_problem()
    unanswered = Demand(sites={"west": SiteTraffic(arrival_per_s=2.0, uncached=LENGTHS)})

    with pytest.raises(Unsolvable, match="no request has been answered yet"):
        solve(replace(problem, demand=unanswered))


def test_without_the_size_of_kv_there_is_no_plan() -> None:
    facts = FleetFacts(
        sites={"east": replace(EAST, kv=None), "west": replace(WEST, kv=None)},
        link_bps={LINK: 1e9},
    )

    with pytest.raises(Unsolvable, match="how large its KV is"):
        solve(replace(a_problem(), facts=facts))


def test_a_link_to_nowhere_is_in_the_plan_and_never_used() -> None:
    problem = a_problem()
    links = {**problem.facts.link_bps, "north>west": 1e9}

    found = solve(replace(problem, facts=replace(problem.facts, link_bps=links)))

    assert found.now.threshold_tokens["north>west"] == NEVER_TOKENS
