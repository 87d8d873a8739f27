"""How workers are asked to change, and what their answers come to."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from planner_builders import a_worker_beat, rules

from controlplane.domain.plan import SiteRoles
from controlplane.errors import (
    PeerError,
    RoleRefused,
    WorkerLost,
    WorkerRefused,
    WorkerTimeout,
    WorkerUnreached,
)
from controlplane.observe.metrics import RouterMetrics
from controlplane.observe.planner_metrics import PlannerMetrics
from controlplane.planner.role_changes import RoleChanges
from controlplane.router.memory_workers import MemoryWorkerClient
from controlplane.wire import RoleChange

WEST = [a_worker_beat(name) for name in ("west/d1", "west/d2", "west/d3", "west/p1")]
#: One more prefill worker than there is.
WANTED = {"west": SiteRoles(prefill_workers=2, decode_workers=2)}


@dataclass
class Scene:
    """A leader and its workers; time stands until it is moved."""

    def __post_init__(self) -> None:
        self.now_s = 0.0
        self.client = MemoryWorkerClient()
        self.metrics = RouterMetrics()
        self.changes = RoleChanges(
            self.client, PlannerMetrics(self.metrics.registry), rules(), lambda: self.now_s
        )

    async def ask(self, *, leads: bool = True) -> None:
        await self.changes.ask(WANTED, WEST, may_ask=lambda: leads)

    def asked(self) -> list[str]:
        return [call.url for call in self.client.calls]

    def count(self, result: str) -> float:
        labels = {"kind": "role", "result": result}
        return self.metrics.registry.get_sample_value("prfaas_role_changes_total", labels) or 0.0


@pytest.fixture
def scene() -> Scene:
    return Scene()


async def test_a_worker_is_asked_for_its_life_and_told_how_long_to_stay(scene: Scene) -> None:
    await scene.ask()

    (call,) = scene.client.calls
    assert call.job == RoleChange(incarnation="i1", role="prefill", dwell_s=rules().role_dwell_s)
    assert scene.count("accepted") == 1


async def test_nobody_else_is_asked_until_it_is_done(scene: Scene) -> None:
    await scene.ask()
    await scene.ask()

    assert scene.asked() == ["http://west/d1"]
    assert scene.changes.expected(WEST) == {"west/d1": ("west", "prefill")}


@pytest.mark.parametrize("lost", [WorkerLost("broke"), WorkerTimeout("no answer")])
async def test_a_worker_that_may_have_heard_us_is_waited_for(scene: Scene, lost: PeerError) -> None:
    scene.client.on_role("http://west/d1", lost)

    await scene.ask()
    await scene.ask()

    assert scene.asked() == ["http://west/d1"]
    assert scene.count("unknown") == 1


@pytest.mark.parametrize(
    "no",
    [
        RoleRefused("too early", reason="role_dwell"),
        RoleRefused("it cannot", reason="role_unsupported"),
        WorkerRefused("what is a role?"),
        WorkerUnreached("nobody there"),
    ],
)
async def test_after_a_no_the_next_one_is_asked(scene: Scene, no: PeerError) -> None:
    scene.client.on_role("http://west/d1", no)

    await scene.ask()
    await scene.ask()

    assert scene.asked() == ["http://west/d1", "http://west/d2"]


async def test_who_was_too_early_is_asked_again_later(scene: Scene) -> None:
    for name in ("d1", "d2", "d3"):
        scene.client.on_role(f"http://west/{name}", RoleRefused("too early", reason="role_dwell"))
        await scene.ask()
    await scene.ask()
    assert len(scene.asked()) == 3

    scene.now_s = rules().role_dwell_s + 1
    await scene.ask()

    assert scene.asked()[3:] == ["http://west/d1"]


async def test_who_leads_no_more_asks_nobody(scene: Scene) -> None:
    await scene.ask(leads=False)

    assert scene.asked() == []


async def test_a_new_leader_knows_of_nothing(scene: Scene) -> None:
    await scene.ask()

    scene.changes.forget()

    assert scene.changes.expected(WEST) == {}
