"""Runs a scenario on a plant and leaves a directory that a judge can read at any time."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any, Final, Self

from chaos.collect import collect_end, collect_records, cut_logs, log_offsets
from chaos.injector import Injector
from chaos.judge import Verdict, judge
from chaos.load import Spec
from chaos.plant import Plant, Topology
from chaos.pool import LONG_OUTPUTS, Item, write_pool
from chaos.probes import PROBES
from chaos.processes import Helper
from chaos.scenario import Scenario, write_scenario

#: Between the command to the load and its first request.
_LEAD_S: Final = 0.5
_CAPACITY_CONNECTIONS: Final = 16
#: After a load everything must be whole again within this.
_HEAL_S: Final = 60.0
_PATIENCE_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A plant, the load beside it, and what the plant can bear."""

    plant: Plant
    load: Helper
    pool: Path
    items: list[Item]
    capacity_per_s: float

    @classmethod
    @contextlib.asynccontextmanager
    async def running(
        cls,
        topology: Topology,
        directory: Path,
        items: list[Item],
        *,
        seed: int,
        capacity_s: float,
    ) -> AsyncIterator[Self]:
        """Start a plant and measure its capacity."""
        pool = _pool_in(directory, items)
        load = Helper("chaos.load")
        async with Plant.running(topology, directory, seed=seed) as plant:
            await load.start()
            try:
                question = {
                    "op": "capacity",
                    "target": _target(plant, pool),
                    "seconds": capacity_s,
                    "connections": _CAPACITY_CONNECTIONS,
                }
                answer = await load.ask(question, within_s=capacity_s + _PATIENCE_S + 10)
                yield cls(
                    plant=plant,
                    load=load,
                    pool=pool,
                    items=items,
                    capacity_per_s=answer["rate_per_s"],
                )
            finally:
                await load.stop()

    async def run(self, scenario: Scenario, directory: Path, *, seed: int) -> list[Verdict]:
        """Load, faults, healing, and the judge's verdicts; everything is left in the directory."""
        plant = self.plant
        # What an earlier run has left there would be judged with this one.
        shutil.rmtree(directory, ignore_errors=True)
        _pool_in(directory, self.items)
        offsets = log_offsets(plant)
        plant.events.write_to(directory / "events.jsonl")
        spec = self._spec(scenario, seed)
        seconds = spec.count / spec.rate_per_s if scenario.load_share else scenario.seconds
        facts = {
            "seed": seed,
            "capacity_per_s": self.capacity_per_s,
            "load": asdict(spec),
            "seconds": seconds,
            "routers": sorted(plant.routers),
            "workers": sorted(plant.workers),
            "version": "old" if plant.topology.is_old else "new",
        }
        write_scenario(directory / "scenario.json", scenario, facts=facts)
        if scenario.load_share:
            print(
                f"{scenario.name}: {spec.count} requests, {spec.rate_per_s:.1f}/s of a capacity of "
                f"{self.capacity_per_s:.1f}/s, in {directory}",
                flush=True,
            )
        await self._perform(scenario, directory, spec, seconds)
        ttl_s = _longest_ttl_s(plant) if scenario.counts_leaks else 0.0
        await asyncio.sleep(ttl_s)
        await collect_end(plant, directory / "end.json", ttl_s=ttl_s)
        if scenario.reads_records:
            await collect_records(plant, directory / "records.jsonl")
        plant.events.write_to(None)
        cut_logs(plant, directory / "logs", offsets)
        return judge(directory)

    def _spec(self, scenario: Scenario, seed: int) -> Spec:
        rate = max(1.0, self.capacity_per_s * scenario.load_share)
        ordinary = sum(item.output_tokens_max < LONG_OUTPUTS[0] for item in self.items)
        return Spec(
            seed=seed,
            first=ordinary if scenario.has_long_answers else 0,
            items=len(self.items) - ordinary if scenario.has_long_answers else ordinary,
            count=scenario.requests or max(1, round(rate * scenario.seconds)),
            rate_per_s=rate,
            leave_share=scenario.leave_share,
            patience_s=_PATIENCE_S,
        )

    async def _perform(
        self, scenario: Scenario, directory: Path, spec: Spec, seconds: float
    ) -> None:
        injector = Injector(self.plant, Random(spec.seed))
        start_s = time.monotonic() + _LEAD_S
        command = {
            "op": "run",
            "target": _target(self.plant, self.pool),
            "spec": asdict(spec),
            "history": str(directory / "history.jsonl"),
            "start_s": start_s,
        }
        events = scenario.plan(seconds, Random(spec.seed))
        self.plant.events.tell("load_began", start_s=start_s)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(injector.run(events, start_s=start_s))
                within_s = seconds + 2 * _PATIENCE_S
                if scenario.load_share:
                    group.create_task(self.load.ask(command, within_s=within_s))
                if scenario.probe:
                    probe = PROBES[scenario.probe]
                    group.create_task(probe(self.plant, self.items, directory, seconds))
        finally:
            await injector.undo_all()
        self.plant.events.tell("load_ended")
        took_s = await self.plant.until_whole(_HEAL_S)
        self.plant.events.tell("whole", after_s=took_s)


def _pool_in(directory: Path, items: list[Item]) -> Path:
    """Make the directory and put the pool there, so that it can be judged by itself."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "pool.jsonl"
    write_pool(path, items)
    return path


def _target(plant: Plant, pool: Path) -> dict[str, Any]:
    return {
        "routers": [(name, address.url) for name, address in plant.routers.items()],
        "model": plant.fleet.model.name,
        "pool": str(pool),
    }


def _longest_ttl_s(plant: Plant) -> float:
    """After this everything that nobody renews has expired: leases, and claims of a request."""
    fleet = plant.fleet
    return max(fleet.kv.lease_s, fleet.limits.reservation_ttl_s) + 1.0
