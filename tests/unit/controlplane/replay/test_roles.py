"""Emulated workers change roles by drain, and lend a share of their time, as real ones do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from replay_builders import a_hardware, a_world

from controlplane.config import StoreConfig
from controlplane.errors import RoleRefused
from controlplane.replay.loop import VirtualLoop, run_virtual
from controlplane.replay.roles import Registry
from controlplane.replay.worker import EmulatedWorker
from controlplane.store.memory_store import MemoryStore
from controlplane.wire import Role, RoleChange, WorkerBeat


class Site:
    """One worker that can do both, in its store."""

    def __init__(self, role: Role) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        hardware = a_hardware(roles=("prefill", "decode"))
        world = a_world(f"west/{role[0]}1", hardware=hardware)
        self.worker = EmulatedWorker(world.workers[0], world, loop, lambda _, __: None)
        self.store = MemoryStore(config=StoreConfig(), clock=loop.time)
        self.tasks: list[asyncio.Task[None]] = []
        self.registry = Registry(
            self.store,
            ttl_s=10.0,
            spawn=lambda work, _: self.tasks.append(loop.create_task(work)),
        )
        self.registry.add(self.worker)

    def ask(self, role: Role, lend_share: float = 0.0, dwell_s: float = 60.0) -> None:
        incarnation = self.worker.main.incarnation
        change = RoleChange(
            incarnation=incarnation, role=role, lend_share=lend_share, dwell_s=dwell_s
        )
        self.registry.change(self.worker, change)

    async def known(self) -> dict[str, WorkerBeat]:
        return {beat.worker_id: beat for beat in (await self.store.snapshot()).beats}


def at_a_site(role: Role, story: Callable[[Site], Awaitable[None]]) -> None:
    async def main() -> None:
        site = Site(role)
        await site.registry.beat(site.worker.main)
        await story(site)

    run_virtual(main(), seed=0)


def test_another_role_is_another_life_of_the_same_worker() -> None:
    async def story(site: Site) -> None:
        before = site.worker.main.incarnation
        site.ask("prefill")
        await asyncio.sleep(1.0)
        (beat,) = (await site.known()).values()
        assert (beat.worker_id, beat.role) == ("west/d1", "prefill")
        assert beat.incarnation != before
        assert not beat.is_draining

    at_a_site("decode", story)


def test_what_is_there_is_finished_first() -> None:
    async def story(site: Site) -> None:
        run = site.worker.main.prefill("job", site.worker.main.incarnation, 5000, ())
        site.ask("decode")
        await asyncio.sleep(4.0)
        (beat,) = (await site.known()).values()
        assert (beat.role, beat.is_draining) == ("prefill", True)
        await asyncio.sleep(1.1)
        assert run.ended_s == pytest.approx(5.0)
        site.worker.prefilling.forget("job")
        await asyncio.sleep(1.0)
        (beat,) = (await site.known()).values()
        assert beat.role == "decode"

    at_a_site("prefill", story)


def test_a_role_stays_for_its_dwell_time() -> None:
    async def story(site: Site) -> None:
        site.ask("prefill", dwell_s=30.0)
        await asyncio.sleep(5.0)
        with pytest.raises(RoleRefused):
            site.ask("decode")
        await asyncio.sleep(30.0)
        site.ask("decode")

    at_a_site("decode", story)


def test_lent_time_is_a_slower_prefill_worker_and_slower_decode() -> None:
    async def story(site: Site) -> None:
        site.ask("decode", lend_share=0.25)
        await asyncio.sleep(1.0)
        known = await site.known()
        lent = known["west/d1.lent"]
        assert (lent.role, lent.lent_by) == ("prefill", "west/d1")
        assert lent.profile.prefill_s_per_token == pytest.approx(0.004)
        assert known["west/d1"].profile.decode_step_s == pytest.approx(0.01 / 0.75)
        _, life = site.registry.find(lent.url)
        assert life is not None
        run = life.prefill("job", life.incarnation, 1000, ())
        await asyncio.sleep(4.1)
        assert run.ended_s == pytest.approx(1.0 + 4.0)
        site.worker.borrowing.forget("job")
        site.ask("decode", lend_share=0.0)
        await asyncio.sleep(1.0)
        assert set(await site.known()) == {"west/d1"}
        assert site.worker.decoding.step_s == pytest.approx(0.01)

    at_a_site("decode", story)
