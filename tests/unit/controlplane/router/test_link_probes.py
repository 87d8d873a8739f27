"""Links are probed from both ends: a cut is found without losing a request to it, and so is its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import pytest
from router_builders import (
    DECODE_1,
    DECODE_2,
    EAST_1,
    EAST_2,
    WEST_1,
    LogBook,
    LoopClock,
    a_busy_beat,
    a_few_turns,
    a_link_config,
    url_of,
)

from controlplane.config_health import HealthConfig
from controlplane.observe.metrics import RouterMetrics
from controlplane.router import link_probes as link_probes_module
from controlplane.router.claims import Claim
from controlplane.router.link_probes import LinkProbes, WaySign, verdict_of
from controlplane.router.memory_link_probes import MemoryLinkProber
from controlplane.router.view import ViewTracker
from controlplane.store.api import WorkerSeen
from controlplane.wire import KvAddress, WorkerBeat


def a_prefill_beat(worker_id: str, **overrides: Any) -> WorkerBeat:
    """Of a worker whose KV port is known."""
    return a_busy_beat(worker_id, kv=KvAddress(host=worker_id, port=9), **overrides)


class World:
    """Two workers of each role on either side of a link, and a router in west that probes it."""

    def __init__(self) -> None:
        self.clock = LoopClock()
        self.tracker = ViewTracker(
            home_datacenter="west",
            links=(
                a_link_config(),
                a_link_config(from_datacenter="west", to_datacenter="east"),
            ),
            ttl_s=60.0,
            clock=self.clock,
        )
        self.metrics = RouterMetrics()
        self.prober = MemoryLinkProber()
        self.probes = LinkProbes(
            self.prober, self.tracker, self.metrics, HealthConfig(), Random(0), self.clock
        )
        self.see(*(a_prefill_beat(name) for name in (EAST_1, EAST_2, WEST_1)))
        self.see(a_busy_beat(DECODE_1), a_busy_beat(DECODE_2), a_busy_beat("east/d1"))

    def see(self, *beats: WorkerBeat) -> None:
        self.tracker.apply_events([WorkerSeen(beat) for beat in beats])

    def link_is(self, sign: WaySign) -> None:
        for name in (EAST_1, EAST_2):
            self.prober.signs[url_of(name)] = sign

    async def wait(self, seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            self.clock.advance(0.1)
            await a_few_turns()

    @property
    def is_down(self) -> bool:
        link = self.tracker.view().link("east", "west")
        assert link is not None
        return link.is_down


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """Probes at work."""
    world = World()
    task = asyncio.ensure_future(world.probes.run())
    yield world
    assert not task.done()
    task.cancel()


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> LogBook:
    book = LogBook()
    monkeypatch.setattr(link_probes_module, "_log", book)
    return book


async def test_a_cut_link_is_down_within_one_interval_though_no_request_used_it(
    world: World,
) -> None:
    await world.wait(5.0)
    before = world.is_down

    world.link_is("silent")
    await world.wait(0.7)

    assert (before, world.is_down) == (False, True)


async def test_it_stays_down_while_probes_are_not_answered_and_opens_when_one_is(
    world: World,
) -> None:
    world.link_is("silent")
    await world.wait(0.7)
    was_down = []
    for _ in range(60):
        await world.wait(1.0)
        was_down.append(world.is_down)

    world.prober.signs[url_of(EAST_2)] = "answered"
    await world.wait(0.7)

    assert all(was_down)
    assert not world.is_down


async def test_a_link_whose_workers_cannot_be_asked_is_tried_after_a_while(world: World) -> None:
    """As before there were probes."""
    world.link_is("unknown")
    for source in (EAST_1, EAST_2):
        world.tracker.link_outcome("east>west", source, is_ok=False)

    await world.wait(4.5)
    before = world.is_down
    await world.wait(1.0)

    assert (before, world.is_down) == (True, False)


async def test_one_silent_worker_of_two_is_its_own_trouble(world: World) -> None:
    world.prober.signs[url_of(EAST_1)] = "silent"

    await world.wait(5.0)

    assert not world.is_down


async def test_each_round_asks_two_prefill_workers_through_two_decode_workers(
    world: World,
) -> None:
    await world.wait(0.7)

    first, second = world.prober.crossed[:2]
    assert {first.owner_url, second.owner_url} == {url_of(EAST_1), url_of(EAST_2)}
    assert {first.reader_url, second.reader_url} == {url_of(DECODE_1), url_of(DECODE_2)}
    assert {first.owner_kv.host, second.owner_kv.host} == {EAST_1, EAST_2}


async def test_doubtful_workers_are_asked_only_where_there_are_too_few_others(
    world: World,
) -> None:
    """Two that have died without a word must not pass for a cut."""
    world.see(a_prefill_beat("east/p3"), a_prefill_beat("east/p4"))
    world.link_is("silent")
    for name in (EAST_1, EAST_2):
        world.tracker.suspect(name)

    await world.wait(0.7)

    assert not world.is_down


async def test_a_worker_that_tells_no_address_for_kv_is_not_asked(world: World) -> None:
    """One from before there were probes."""
    world.see(a_prefill_beat(EAST_1, sequence=2), a_busy_beat(EAST_2, sequence=2))

    await world.wait(5.0)
    world.prober.crossed.clear()
    await world.wait(5.0)

    assert {way.owner_url for way in world.prober.crossed} == {url_of(EAST_1)}


async def test_a_link_that_leads_elsewhere_is_probed_while_it_is_used(world: World) -> None:
    await world.wait(2.0)
    before = [way for way in world.prober.crossed if way.owner_url == url_of(WEST_1)]

    world.tracker.claim(
        Claim(
            prefill_worker=WEST_1,
            prefill_incarnation="i1",
            prefill_tokens=1,
            decode_worker="east/d1",
            decode_incarnation="i1",
            link="west>east",
        )
    )
    await world.wait(2.0)
    used = [way for way in world.prober.crossed if way.owner_url == url_of(WEST_1)]
    await world.wait(60.0)
    world.prober.crossed.clear()
    await world.wait(2.0)
    after = [way for way in world.prober.crossed if way.owner_url == url_of(WEST_1)]

    assert (before, after) == ([], [])
    assert used


async def test_what_becomes_of_a_link_is_logged_once(world: World, log: LogBook) -> None:
    world.link_is("silent")
    await world.wait(5.0)
    world.link_is("answered")
    await world.wait(5.0)

    assert log.events == [
        ("warning", "link.degraded", {"link": "east>west"}),
        ("info", "link.restored", {"link": "east>west"}),
    ]


async def test_probes_are_counted_by_what_they_found(world: World) -> None:
    world.prober.signs[url_of(EAST_1)] = "silent"
    await world.wait(0.7)

    labels = {"from_dc": "east", "to_dc": "west"}
    counts = [
        world.metrics.registry.get_sample_value(
            "prfaas_link_probes_total", {**labels, "result": result}
        )
        for result in ("answered", "silent")
    ]
    assert counts == [1, 1]


@pytest.mark.parametrize(
    ("signs", "verdict"),
    [
        (("answered", "silent"), "answered"),
        (("silent", "silent"), "silent"),
        (("silent",), "silent"),
        (("silent", "unknown"), "unknown"),
        (("unknown", "answered"), "answered"),
    ],
)
def test_one_answer_shows_that_a_link_is_open_and_all_ways_must_be_silent_to_close_it(
    signs: tuple[WaySign, ...], verdict: WaySign
) -> None:
    assert verdict_of(signs) == verdict
