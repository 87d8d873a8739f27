"""A minute of three times what fits, with clients that retry: no collapse, and no hangover."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from random import Random

from router_builders import LoopClock, a_few_turns

from controlplane.config import LimitsConfig
from controlplane.errors import DeadlineExceeded, Shed
from controlplane.observe.metrics import RouterMetrics
from controlplane.router.admission import Admission

PLACES = 8
SERVICE_S = 0.4
CAPACITY_PER_S = PLACES / SERVICE_S
TICK_S = 0.02
#: What an OpenAI client does by itself.
RETRIES = 2


class FrozenClock(LoopClock):
    """Stands still unless it is put forward, so that a busy machine changes nothing."""

    def __call__(self) -> float:
        return 1000.0 + self._ahead_s


@dataclass
class World:
    """Clients of two tenants before one door."""

    clock: LoopClock
    admission: Admission
    random: Random
    #: (tenant, when it was sent first, when it was done) of all that were served.
    served: list[tuple[str, float, float]] = field(default_factory=list)
    #: (when it was sent first) of all that were never served.
    given_up: list[float] = field(default_factory=list)
    refusal_s: list[float] = field(default_factory=list)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def client(self, tenant: str) -> None:
        sent_s = self.clock()
        for _ in range(1 + RETRIES):
            try:
                async with self.admission.place(tenant, deadline_s=self.clock() + 30):
                    await asyncio.sleep(SERVICE_S)
            except Shed as refusal:
                wait_s = (refusal.retry_after_s or 0.0) * (1 + self.random.random())
                self.refusal_s.append(wait_s)
                await asyncio.sleep(wait_s)
            except DeadlineExceeded:
                break
            else:
                self.served.append((tenant, sent_s, self.clock()))
                return
        self.given_up.append(sent_s)

    async def load(self, seconds: float, *, per_s: float, greedy_share: float) -> None:
        """Clients that come at random, most of them of one greedy tenant."""
        for _ in range(round(seconds / TICK_S)):
            self.clock.advance(TICK_S)
            for _ in range(arrivals(self.random, per_s * TICK_S)):
                tenant = "greedy" if self.random.random() < greedy_share else "modest"
                task = asyncio.ensure_future(self.client(tenant))
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)
            await a_few_turns(6)


def arrivals(random: Random, mean: float) -> int:
    """Poisson, for a small mean."""
    count, passed = 0, random.expovariate(1)
    while passed < mean:
        count += 1
        passed += random.expovariate(1)
    return count


async def test_after_a_minute_of_overload_everybody_is_served_again_within_ten_seconds() -> None:
    clock = FrozenClock()
    admission = Admission(
        limits=LimitsConfig(queue_requests_max=64, queue_wait_s=5),
        metrics=RouterMetrics(),
        clock=clock,
        places=lambda: PLACES,
    )
    world = World(clock, admission, Random(2))

    await world.load(10, per_s=0.7 * CAPACITY_PER_S, greedy_share=0.5)
    began_s = clock()
    await world.load(60, per_s=3 * CAPACITY_PER_S, greedy_share=0.9)
    ended_s = clock()
    await world.load(30, per_s=0.7 * CAPACITY_PER_S, greedy_share=0.5)
    await world.load(45, per_s=0, greedy_share=0.5)

    during = [tenant for tenant, _, done_s in world.served if began_s < done_s <= ended_s]
    assert len(during) >= 0.9 * CAPACITY_PER_S * (ended_s - began_s), "goodput fell"
    # It asks for 0.3 of the capacity, less than a fair half: it gets all of it.
    assert during.count("modest") >= 0.8 * 0.3 * CAPACITY_PER_S * (ended_s - began_s)
    late = [sent_s for sent_s in world.given_up if sent_s > ended_s + 10]
    assert not late, f"{len(late)} clients refused long after the overload"
    took_s = [done_s - sent_s for _, sent_s, done_s in world.served if sent_s > ended_s + 20]
    assert max(took_s) < 3, "the queue of the overload is still there"
    assert all(1 <= seconds <= 30 for seconds in world.refusal_s)
    assert not world.tasks
    assert (admission.running, admission.waiting) == (0, 0)
