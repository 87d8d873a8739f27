"""Several routers plan together: one leads, the others take over, and nobody is harmed by two."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from planner_builders import LINK
from planner_world import PlannerWorld
from prometheus_client import CollectorRegistry
from router_builders import LogBook

from controlplane.domain.plan import NEVER_TOKENS
from controlplane.observe.logs import FIELDS
from controlplane.observe.planner_metrics import PlannerMetrics
from controlplane.planner import planner, solving
from controlplane.replay.loop import run_virtual
from controlplane.wire_plan import encode_plan

Scene = Callable[[PlannerWorld], Awaitable[None]]


def play(scene: Scene, **options: Any) -> None:
    """Act a scene in a world that has run for a minute; roles stand unless it is about them."""

    async def main() -> None:
        world = PlannerWorld(**{"changes_roles": False} | options)
        await asyncio.sleep(60.0)
        await scene(world)

    run_virtual(main())


# --- One leads --------------------------------------------------------------------------------


def test_one_of_the_routers_leads_and_publishes_a_plan() -> None:
    async def scene(world: PlannerWorld) -> None:
        plan = await world.plan()

        assert plan.author == world.leader.name
        assert 32 <= plan.threshold_tokens[LINK] < NEVER_TOKENS
        assert plan.throughput_per_s > 0

    play(scene, routers=3)


def test_the_plan_is_for_the_traffic_of_all_routers() -> None:
    async def scene(world: PlannerWorld) -> None:
        inputs = (await world.plan()).inputs

        assert inputs is not None
        assert inputs.arrival_per_s == pytest.approx(12.0, rel=0.1)
        assert inputs.uncached_tokens_mean == pytest.approx(1075, rel=0.02)
        assert inputs.workers == {
            "east/prefill": 2, "east/decode": 0, "west/prefill": 2, "west/decode": 2,
        }  # fmt: skip

    play(scene, routers=3, per_s=12.0)


def test_a_plan_whose_work_ended_early_says_so_in_the_store_the_log_and_the_metrics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = LogBook()
    monkeypatch.setattr(planner, "_log", log)
    monkeypatch.setattr(solving, "_STEPS_MAX", 0)

    async def scene(world: PlannerWorld) -> None:
        plan = await world.plan()
        assert not plan.is_complete
        assert 0 <= plan.gap <= 1

        told = [fields for _, event, fields in log.events if event == "plan.published"]
        assert told[-1].keys() <= FIELDS
        assert told[-1]["is_complete"] is False
        assert 0 < told[-1]["gap"] <= 1

        shown = PlannerMetrics(registry := CollectorRegistry())
        shown.show(plan)
        assert registry.get_sample_value("prfaas_plan_cut_short") == 1
        assert registry.get_sample_value("prfaas_plan_gap_ratio") == plan.gap
        shown.show(None)
        assert registry.get_sample_value("prfaas_plan_cut_short") == 0

    play(scene)


def test_a_plan_follows_each_interval_and_says_why() -> None:
    async def scene(world: PlannerWorld) -> None:
        before = await world.plan()

        await asyncio.sleep(41.0)

        after = await world.plan()
        assert after.version == before.version + 2
        assert after.reason == "regular: nothing moves"
        assert after.threshold_tokens == before.threshold_tokens

    play(scene)


def test_without_enough_traffic_nothing_is_published() -> None:
    async def scene(world: PlannerWorld) -> None:
        assert await world.store.document("plan") is None
        assert world.leader.count("too_little_traffic") > 0

    play(scene, per_s=0.1)


def test_a_plan_lives_on_when_traffic_ceases() -> None:
    """Nothing is known that would be better, and routers do not believe what nobody renews."""

    async def scene(world: PlannerWorld) -> None:
        before = await world.plan()
        world.per_s = 1e-6

        await asyncio.sleep(3600.0)

        after = await world.plan()
        assert after.version > before.version + 100
        assert after.threshold_tokens == pytest.approx(before.threshold_tokens, rel=0.05)
        assert after.reason == "too little traffic to plan anew"

    play(scene)


# --- Leaders come and go ----------------------------------------------------------------------


def test_another_router_takes_over_when_the_leader_dies() -> None:
    async def scene(world: PlannerWorld) -> None:
        dead = world.leader
        before = await world.plan()
        dead.kill()

        await asyncio.sleep(world.rules.lease_s + world.rules.report_interval_s + 1)

        assert world.leader is not dead
        after = await world.plan()
        assert after.author == world.leader.name
        assert after.version > before.version

    play(scene)


def test_a_leader_that_leaves_is_followed_at_once() -> None:
    async def scene(world: PlannerWorld) -> None:
        leaving = world.leader
        leaving.task.cancel()

        await asyncio.sleep(world.rules.report_interval_s + 0.1)

        assert world.leader is not leaving

    play(scene)


def test_a_leader_that_cannot_reach_the_store_stops_before_another_one_begins() -> None:
    async def scene(world: PlannerWorld) -> None:
        cut_off = world.leader
        cut_off.door.is_shut = True

        for _ in range(300):
            await asyncio.sleep(0.1)
            assert len(world.leaders()) <= 1

        assert world.leader is not cut_off
        cut_off.door.is_shut = False
        await asyncio.sleep(20.0)
        assert not cut_off.planner.leads

    play(scene)


def test_two_leaders_do_no_harm() -> None:
    """A store that fails over may forget who leads; both then think that they do."""

    async def scene(world: PlannerWorld) -> None:
        thresholds: set[float] = set()
        versions: list[int] = []
        for _ in range(10):
            first = world.leader
            world.store._leaders.clear()
            (other,) = [router for router in world.routers if router is not first]
            # Both turn at the same time, the one from its lease, the other from its own.
            await asyncio.gather(other.planner.turn(), first.planner.turn())
            await asyncio.sleep(7.0)
            plan = await world.plan()
            thresholds.add(plan.threshold_tokens[LINK])
            versions.append(plan.version)

        assert len(world.leaders()) == 1
        assert versions == sorted(versions)
        assert len(thresholds) == 1

    play(scene)


def test_who_was_overtaken_steps_down_and_leaves_what_stands() -> None:
    async def scene(world: PlannerWorld) -> None:
        leader = world.leader
        standing = await world.plan()
        ahead = await world.store.publish("plan", encode_plan(standing) + b" ")
        assert ahead is not None

        # It read the document before, and publishes against that.
        assert not await leader.planner._publish(standing, standing.version)

        assert not leader.planner.leads
        assert leader.count("overtaken") == 1
        assert await world.store.document("plan") == ahead

    play(scene)


def test_a_lease_that_ends_during_a_solve_publishes_nothing() -> None:
    async def scene(world: PlannerWorld) -> None:
        leader = world.leader
        standing = await world.plan()
        leader.planner._lead_until_s = asyncio.get_running_loop().time()

        assert not await leader.planner._publish(standing, standing.version)

        assert leader.count("lead_lost") == 1
        assert await world.plan() == standing

    play(scene)


def test_a_solve_that_outlasts_the_lease_is_published_if_nobody_else_leads() -> None:
    async def scene(world: PlannerWorld) -> None:
        leader = world.leader

        async def slow(work: Callable[[], Any]) -> Any:
            await asyncio.sleep(world.rules.lease_s + 1)
            return work()

        leader.planner._work = slow  # type: ignore[assignment]
        before = await world.plan()
        await asyncio.sleep(60.0)

        assert (await world.plan()).version > before.version
        assert leader.count("lead_lost") == 0

    play(scene, routers=1)


def test_a_document_that_is_no_plan_is_replaced_by_one() -> None:
    async def scene(world: PlannerWorld) -> None:
        await world.store.publish("plan", b'{"from": "somebody"}')

        await asyncio.sleep(world.rules.plan_interval_s + 1)

        assert (await world.plan()).author == world.leader.name

    play(scene)


def test_a_router_that_tells_nonsense_is_left_out_and_counted() -> None:
    async def scene(world: PlannerWorld) -> None:
        before = await world.plan()
        await world.store.put_traffic("mad", b'{"sites": {"west": {"uncached": 5}}}', ttl_s=1e6)

        await asyncio.sleep(world.rules.plan_interval_s + 1)

        assert world.leader.count("traffic_refused") > 0
        after = await world.plan()
        assert after.version > before.version
        assert after.threshold_tokens == pytest.approx(before.threshold_tokens, rel=0.05)

    play(scene)


def test_a_bug_in_one_planner_costs_its_router_nothing_and_another_one_leads() -> None:
    async def scene(world: PlannerWorld) -> None:
        broken = world.leader

        def fault() -> list[Any]:
            raise ZeroDivisionError

        broken.beats = fault  # type: ignore[method-assign]
        await asyncio.sleep(2 * world.rules.plan_interval_s)

        assert not broken.task.done()
        assert broken.count("failed") >= 1
        assert (await world.plan()).author != broken.name

    play(scene)


# --- What cannot wait -------------------------------------------------------------------------


def test_a_threshold_follows_a_step_of_its_link_within_an_interval() -> None:
    async def scene(world: PlannerWorld) -> None:
        before = await world.threshold()
        world.link_bps = 5e6

        await asyncio.sleep(world.rules.plan_interval_s)

        slow = await world.threshold()
        assert slow > 1.5 * before
        world.link_bps = 1e9
        await asyncio.sleep(world.rules.plan_interval_s)
        assert await world.threshold() == pytest.approx(before, rel=0.1)

    play(scene)


def test_a_link_that_is_lost_is_not_offloaded_over() -> None:
    async def scene(world: PlannerWorld) -> None:
        world.link_bps = 0.0

        await asyncio.sleep(world.rules.report_interval_s + 1)

        plan = await world.plan()
        assert plan.threshold_tokens == {LINK: NEVER_TOKENS}
        assert plan.reason.startswith(f"link {LINK} gives 0 Mbit/s, was 1000")

    play(scene)


def test_a_burst_is_solved_for_at_once() -> None:
    async def scene(world: PlannerWorld) -> None:
        before = await world.plan()
        world.per_s = 40.0

        await asyncio.sleep(world.rules.plan_interval_s - 4)

        after = await world.plan()
        assert "requests arrive per second" in after.reason
        assert after.load > 2 * before.load

    play(scene)


# --- Roles ------------------------------------------------------------------------------------


#: Long prompts, short answers: five decode workers are far too many.
MANY_DECODE: dict[str, Any] = {
    "changes_roles": True,
    "west": {"prefill": 1, "decode": 5},
    "lend_share_max": 0.0,
}


def test_roles_follow_the_traffic_one_worker_at_a_time() -> None:
    async def scene(world: PlannerWorld) -> None:
        await asyncio.sleep(300.0)

        workers = world.workers
        assert workers.counts()["prefill"] >= 3
        assert sum(workers.counts().values()) == 6
        assert workers.busy_max == 1
        assert {role for _, role, _ in workers.asked} == {"prefill"}

    play(scene, **MANY_DECODE)


def test_roles_do_not_move_to_and_fro() -> None:
    async def scene(world: PlannerWorld) -> None:
        await asyncio.sleep(600.0)
        settled = list(world.workers.asked)

        await asyncio.sleep(3000.0)

        assert world.workers.asked == settled

    play(scene, **MANY_DECODE)


def test_where_roles_may_not_change_nobody_is_asked() -> None:
    async def scene(world: PlannerWorld) -> None:
        await asyncio.sleep(300.0)

        assert world.workers.asked == []
        assert (await world.plan()).roles["west"].prefill_workers > 1

    play(scene, west={"prefill": 1, "decode": 5})


def test_a_worker_that_says_no_is_passed_over() -> None:
    async def scene(world: PlannerWorld) -> None:
        world.workers.stubborn = frozenset({"west/d0"})

        await asyncio.sleep(400.0)

        assert world.workers.beats["west/d0"].role == "decode"
        assert world.workers.counts()["prefill"] >= 3

    play(scene, **MANY_DECODE)


def test_spare_decode_time_is_lent() -> None:
    async def scene(world: PlannerWorld) -> None:
        await asyncio.sleep(60.0)

        shares = {
            beat.lend_share for beat in world.workers.beats.values() if beat.role == "decode"
        } - {0.0}
        assert shares
        assert max(shares) <= world.rules.lend_share_max

    play(scene, changes_roles=True, west={"prefill": 1, "decode": 2}, role_gain_min=1.0)


def test_a_new_leader_goes_on_with_the_roles_of_the_old_one() -> None:
    async def scene(world: PlannerWorld) -> None:
        await world.workers.first_asked.wait()
        asked_for = (await world.plan()).roles
        world.leader.kill()

        await asyncio.sleep(600.0)

        assert world.workers.busy_max == 1
        assert world.workers.counts()["prefill"] == asked_for["west"].prefill_workers

    play(scene, **MANY_DECODE)
