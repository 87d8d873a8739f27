"""What is worth moving, and what stands still."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from planner_builders import LINK, a_plan, rules, solved, some_inputs

from controlplane.domain.plan import NEVER_TOKENS, Plan, SiteRoles
from controlplane.planner.publication import Memory, Solved, next_plan

THREE_FIVE = SiteRoles(prefill_workers=3, decode_workers=5)
FOUR_FOUR = SiteRoles(prefill_workers=4, decode_workers=4)
FIVE_THREE = SiteRoles(prefill_workers=5, decode_workers=3)


def follow(
    before: Plan | None,
    now: Solved,
    best: Solved | None = None,
    *,
    memory: Memory | None = None,
    now_s: float = 1000.0,
    arrival_per_s: float = 1.0,
    **overrides: Any,
) -> tuple[Plan, Memory]:
    return next_plan(
        before,
        memory or Memory(),
        now=now,
        best=best or now,
        inputs=some_inputs(arrival_per_s=arrival_per_s),
        author="west/router-1",
        cause="regular",
        rules=rules(**overrides),
        now_s=now_s,
    )


def threshold(before: Plan | None, now: Solved, **options: Any) -> float:
    plan, _ = follow(before, now, **options)
    return plan.threshold_tokens[LINK]


# --- Thresholds -------------------------------------------------------------------------------


def test_the_first_plan_says_what_was_solved() -> None:
    plan, _ = follow(None, solved(777.0))

    assert plan.version == 1
    assert plan.threshold_tokens == {LINK: 777.0}
    assert plan.reason == "regular: east>west from nothing to 777 tokens"


def test_a_threshold_stands_still_for_a_small_step() -> None:
    plan, _ = follow(a_plan(1000.0), solved(1090.0))

    assert plan.threshold_tokens == {LINK: 1000.0}
    assert plan.reason == "regular: nothing moves"


def test_a_threshold_moves_by_a_large_step_at_once() -> None:
    plan, memory = follow(a_plan(1000.0), solved(1110.0), now_s=7.0)

    assert plan.threshold_tokens == {LINK: 1110.0}
    assert plan.reason == "regular: east>west from 1000 tokens to 1110 tokens"
    assert memory.moved_s == {LINK: 7.0}


def test_a_small_step_that_lasts_is_made_after_a_while() -> None:
    memory = Memory(moved_s={LINK: 1000.0})

    assert threshold(a_plan(1000.0), solved(1050.0), memory=memory, now_s=1119.0) == 1000.0
    assert threshold(a_plan(1000.0), solved(1050.0), memory=memory, now_s=1121.0) == 1050.0


def test_a_tremor_is_never_followed() -> None:
    memory = Memory(moved_s={LINK: 0.0})

    assert threshold(a_plan(1000.0), solved(1009.0), memory=memory, now_s=1e6) == 1000.0


def test_a_new_leader_waits_anew() -> None:
    plan, memory = follow(a_plan(1000.0), solved(1050.0), now_s=50.0)

    assert plan.threshold_tokens == {LINK: 1000.0}
    assert memory.moved_s == {LINK: 50.0}


@pytest.mark.parametrize(("found", "published"), [(0.0, 32.0), (5.0, 32.0), (1e12, NEVER_TOKENS)])
def test_thresholds_stay_within_bounds(found: float, published: float) -> None:
    assert threshold(None, solved(found)) == published


def test_a_link_that_is_not_to_be_used_any_more_is_left_at_once() -> None:
    plan, _ = follow(a_plan(1000.0), solved(NEVER_TOKENS))

    assert plan.threshold_tokens == {LINK: NEVER_TOKENS}
    assert plan.reason.endswith("from 1000 tokens to never")


def test_links_that_are_gone_are_not_in_the_plan() -> None:
    before = replace(a_plan(), threshold_tokens={"gone>west": 5.0})

    assert follow(before, solved())[0].threshold_tokens.keys() == {LINK}


def test_load_is_the_arrival_rate_as_a_part_of_the_throughput() -> None:
    plan, _ = follow(None, solved(throughput_per_s=8.0), arrival_per_s=2.0)

    assert plan.load == 0.25


# --- Roles ------------------------------------------------------------------------------------


def roles_of(target: SiteRoles, throughput_per_s: float) -> Solved:
    return solved(roles={"west": target}, throughput_per_s=throughput_per_s)


NOW = roles_of(THREE_FIVE, 10.0)
BETTER = roles_of(FOUR_FOUR, 11.0)


def test_roles_stand_when_nothing_better_is_known() -> None:
    plan, _ = follow(None, NOW)

    assert plan.roles == {"west": THREE_FIVE}


def test_roles_stand_for_a_small_gain() -> None:
    plan, memory = follow(a_plan(), NOW, roles_of(FOUR_FOUR, 10.4), memory=Memory(roles_s=0.0))

    assert plan.roles == {"west": THREE_FIVE}
    assert memory.wanted_times == 0


def test_roles_move_when_two_solutions_in_a_row_gain() -> None:
    first, memory = follow(a_plan(), NOW, BETTER, memory=Memory(roles_s=0.0))
    second, memory = follow(first, NOW, BETTER, memory=memory)

    assert first.roles == {"west": THREE_FIVE}
    assert second.roles == {"west": FOUR_FOUR}
    assert "west should have 4 prefill and 4 decode workers" in second.reason
    assert memory.roles_s == 1000.0


def test_two_solutions_that_want_opposite_things_move_nothing() -> None:
    first, memory = follow(a_plan(), NOW, BETTER, memory=Memory(roles_s=0.0))
    fewer = roles_of(SiteRoles(prefill_workers=2, decode_workers=6), 11.0)
    second, memory = follow(first, NOW, fewer, memory=memory)

    assert second.roles == {"west": THREE_FIVE}
    assert memory.wanted_times == 1


def test_roles_rest_after_a_move() -> None:
    memory = Memory(roles_s=990.0, wanted={"west": FOUR_FOUR}, wanted_times=5)

    assert follow(a_plan(), NOW, BETTER, memory=memory)[0].roles == {"west": THREE_FIVE}
    assert follow(a_plan(), NOW, BETTER, memory=memory, now_s=1051.0)[0].roles == {
        "west": FOUR_FOUR
    }


def test_what_was_asked_for_is_asked_for_until_it_is_there() -> None:
    """Workers come to their roles one by one; meanwhile the solver looks at those that are there."""
    asked = a_plan(roles={"west": FIVE_THREE})

    plan, _ = follow(asked, roles_of(FOUR_FOUR, 10.0), roles_of(FIVE_THREE, 12.0))

    assert plan.roles == {"west": FIVE_THREE}


def test_what_cannot_be_any_more_is_not_asked_for() -> None:
    asked = a_plan(roles={"west": FIVE_THREE})
    one_died = SiteRoles(prefill_workers=3, decode_workers=4)

    assert follow(asked, roles_of(one_died, 10.0))[0].roles == {"west": one_died}


def test_thresholds_are_those_of_the_roles_that_are_there() -> None:
    better = replace(BETTER, threshold_tokens={LINK: 9999.0})

    plan, _ = follow(None, NOW, better)

    assert plan.threshold_tokens == {LINK: 1000.0}
    assert plan.throughput_per_s == 10.0


def test_time_that_is_lent_is_told() -> None:
    lent = replace(THREE_FIVE, lent_workers=0.7)

    plan, _ = follow(a_plan(roles={"west": THREE_FIVE}), roles_of(lent, 11.0))

    assert plan.roles == {"west": lent}
    assert "0.7 lent" in plan.reason


def test_time_that_is_lent_is_what_the_roles_that_are_there_need() -> None:
    lent_later = replace(FOUR_FOUR, lent_workers=0.9)
    memory = Memory(roles_s=0.0, wanted={"west": lent_later}, wanted_times=1)

    plan, _ = follow(a_plan(), NOW, roles_of(lent_later, 11.0), memory=memory)

    assert plan.roles == {"west": FOUR_FOUR}


def test_below_half_load_nothing_is_a_bottleneck() -> None:
    full = solved(throughput_per_s=2.0, bottleneck="link")

    assert follow(None, full, arrival_per_s=1.0)[0].bottleneck == "link"
    assert follow(None, full, arrival_per_s=0.9)[0].bottleneck == "none"


def test_a_solution_that_was_cut_short_is_told_with_its_gap() -> None:
    plan, _ = follow(None, solved(), solved(is_complete=False, gap=0.3))

    assert not plan.is_complete
    assert plan.gap == 0.3


def test_a_plan_is_as_sure_as_the_less_sure_of_its_two_solutions() -> None:
    plan, _ = follow(None, solved(gap=0.02), solved(gap=0.01))

    assert plan.is_complete
    assert plan.gap == 0.02


def test_few_requests_are_no_reason_to_change_roles() -> None:
    memory = Memory(roles_s=0.0, wanted={"west": FOUR_FOUR}, wanted_times=5)

    plan, after = follow(a_plan(), NOW, BETTER, memory=memory, role_requests_min=101)

    assert plan.roles == {"west": THREE_FIVE}
    assert after.wanted_times == 0


def test_roles_rest_from_the_time_that_workers_have_them() -> None:
    asked = a_plan(roles={"west": FOUR_FOUR})
    on_the_way, memory = follow(asked, NOW, BETTER, memory=Memory(roles_s=0.0), now_s=500.0)
    arrived, memory = follow(on_the_way, roles_of(FOUR_FOUR, 11.0), memory=memory, now_s=1000.0)

    assert on_the_way.roles == arrived.roles == {"west": FOUR_FOUR}
    assert memory.roles_s == 1000.0
