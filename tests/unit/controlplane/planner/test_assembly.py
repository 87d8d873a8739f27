"""A router with a planner: what it is told of requests, and the plan that comes of them."""

from __future__ import annotations

import pytest
from planner_builders import LINK
from router_builders import EAST_1, MemoryRouter, a_router, url_of

from controlplane.config_planner import PlannerConfig
from controlplane.errors import WorkerLost
from controlplane.planner.assembly import assemble_planner
from controlplane.planner.planner import Planner
from controlplane.planner.traffic import decode_demand
from controlplane.wire_plan import decode_plan


def planner_of(router: MemoryRouter, **rules: float) -> Planner:
    return assemble_planner(
        router.services,
        PlannerConfig(changes_roles=False, **rules),  # type: ignore[arg-type]
        home="west",
        clock=router.clock,
        client=router.workers,
    )


async def test_every_request_is_told_of_when_it_comes_is_placed_and_ends() -> None:
    async with a_router() as router:
        planner = planner_of(router)
        router.clock.advance(10.0)
        for _ in range(3):
            await router.serve()

        await planner.turn()

        (body,) = await router.store.traffic()
        demand = decode_demand(body)
        assert demand.requests == pytest.approx(3, rel=0.05)
        assert demand.sites["west"].uncached.mean == pytest.approx(100)
        assert demand.sites["west"].output.weight == pytest.approx(3, rel=0.05)
        assert demand.arrival_per_s == pytest.approx(0.3, rel=0.1)
        prefills = sum(each.count for each in demand.prefills.values())
        assert prefills == pytest.approx(3, rel=0.05)


async def test_a_request_that_is_tried_again_counts_once() -> None:
    async with a_router() as router:
        planner = planner_of(router)
        router.workers.on_prefill(url_of(EAST_1), WorkerLost("gone"))
        flight = await router.serve()
        assert flight.error is None

        await planner.turn()

        (body,) = await router.store.traffic()
        assert decode_demand(body).requests == pytest.approx(1, rel=0.05)


async def test_a_plan_is_published_for_what_was_seen() -> None:
    async with a_router() as router:
        planner = planner_of(router, requests_min=3)
        router.clock.advance(10.0)
        for _ in range(5):
            await router.serve()

        await planner.turn()

        document = await router.store.document("plan")
        assert document is not None
        plan = decode_plan(document.body)
        assert plan.threshold_tokens.keys() == {LINK}
        assert plan.inputs is not None
        assert plan.inputs.observed_requests == 5
        assert plan.author == router.services.router_id


async def test_a_store_that_is_away_holds_nothing_up() -> None:
    async with a_router() as router:
        planner = planner_of(router)
        await planner.turn()
        assert planner.leads
        store = router.store
        await store.close()

        await planner.turn()

        assert planner.leads
        router.clock.advance(PlannerConfig().lease_s)
        assert not planner.leads
        store._is_closed = False
