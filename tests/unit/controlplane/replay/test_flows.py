"""A shared link: who gets how much, when transfers end, what receivers count."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from controlplane.replay.flows import Flow, Receiver, SharedLink
from controlplane.replay.loop import VirtualLoop, finish, virtual_loop
from workers.kv.traffic import LinkTraffic

#: 1,000 bytes a second.
_BPS = 8000.0


class World:
    """A link, and when each of its transfers has ended."""

    def __init__(self) -> None:
        self.loop: VirtualLoop = virtual_loop(0)
        self.link = SharedLink(_BPS, rtt_s=0.0, stall_timeout_s=5.0, loop=self.loop)
        self.traffic = LinkTraffic()
        self.receiver = Receiver(self.traffic)
        self.ended: dict[str, tuple[float, bool]] = {}

    def open(self, name: str, total_bytes: float) -> Flow:
        def done(is_ok: bool) -> None:  # noqa: FBT001 - a callback
            self.ended[name] = (self.loop.time(), is_ok)

        return self.link.open(total_bytes, self.receiver, done)

    def ready(self, name: str, total_bytes: float) -> Flow:
        """A transfer whose bytes are all there."""
        flow = self.open(name, total_bytes)
        flow.produce(total_bytes, 0.0, 0.0)
        flow.finish()
        return flow

    def at(self, time_s: float, work: Callable[[], object]) -> None:
        self.loop.call_at(time_s, work)

    def run(self, until_s: float = 100.0) -> None:
        async def wait() -> None:
            future = self.loop.create_future()
            self.loop.call_at(until_s, future.set_result, None)
            await future

        main: Awaitable[None] = wait()
        self.loop.run_until_complete(main)
        self.link.catch_up()
        finish(self.loop)


def test_a_transfer_alone_has_the_whole_link() -> None:
    world = World()
    world.ready("a", 3000)
    world.run()
    assert world.ended == {"a": (pytest.approx(3.0), True)}


def test_two_transfers_share_it_and_the_longer_one_has_the_rest() -> None:
    world = World()
    world.ready("short", 1000)
    world.ready("long", 3000)
    world.run()
    assert world.ended["short"] == (pytest.approx(2.0), True)
    assert world.ended["long"] == (pytest.approx(4.0), True)


def test_a_transfer_is_no_faster_than_its_source_and_leaves_the_rest_to_others() -> None:
    world = World()
    slow = world.open("slow", 1000)
    slow.produce(0.0, 1000.0, 10.0)
    world.at(10.0, slow.finish)
    world.ready("other", 9000)
    world.run()
    assert world.ended["other"] == (pytest.approx(10.0), True)
    assert world.ended["slow"] == (pytest.approx(10.0), True)


def test_what_a_prefill_has_made_too_fast_waits_for_the_link() -> None:
    world = World()
    flow = world.open("a", 5000)
    flow.produce(0.0, 5000.0, 2.0)
    world.at(2.0, flow.finish)
    world.run()
    assert world.ended["a"] == (pytest.approx(5.0), True)


def test_the_state_leaves_when_the_prefill_has_ended() -> None:
    world = World()
    flow = world.open("a", 1000 + 500)
    flow.produce(0.0, 1000.0, 4.0)
    world.at(4.0, flow.finish)
    world.run()
    assert world.ended["a"] == (pytest.approx(4.5), True)


def test_a_cached_prefix_leaves_at_once() -> None:
    world = World()
    flow = world.open("a", 3000)
    flow.produce(2000.0, 1000.0, 3.0)
    world.at(3.0, flow.finish)
    world.run()
    assert world.ended["a"] == (pytest.approx(3.0), True)


def test_a_slower_link_takes_longer_for_what_is_left() -> None:
    world = World()
    world.ready("a", 2000)
    world.at(1.0, lambda: world.link.set_capacity(_BPS / 10))
    world.run()
    assert world.ended["a"] == (pytest.approx(11.0), True)


def test_a_short_outage_delays_and_a_long_one_fails_the_transfer() -> None:
    short, long = World(), World()
    for world, until_s in ((short, 4.0), (long, 50.0)):
        world.ready("a", 2000)
        world.at(1.0, lambda link=world.link: link.set_capacity(0.0))  # type: ignore[misc]
        world.at(until_s, lambda link=world.link: link.set_capacity(_BPS))  # type: ignore[misc]
        world.run()
    assert short.ended["a"] == (pytest.approx(5.0), True)
    assert long.ended["a"] == (pytest.approx(6.0), False)


def test_a_transfer_that_is_given_up_leaves_its_share() -> None:
    world = World()
    gone = world.ready("gone", 5000)
    world.ready("stays", 3000)
    world.at(2.0, gone.cancel)
    world.run()
    assert world.ended == {"stays": (pytest.approx(4.0), True)}


def test_bytes_are_conserved() -> None:
    world = World()
    for number, size in enumerate((100, 2500, 700, 1300)):
        world.at(0.3 * number + 0.1, lambda n=number, s=size: world.ready(str(n), s))  # type: ignore[misc]
    world.run()
    assert world.link.bytes_total == pytest.approx(4600)
    assert world.traffic.arrived_bytes_total == pytest.approx(4600, abs=1)
    assert max(at_s for at_s, _ in world.ended.values()) == pytest.approx(4.9)


def test_a_receiver_counts_the_time_in_which_bytes_were_on_their_way() -> None:
    world = World()
    world.ready("a", 2000)
    world.ready("b", 2000)
    world.run()
    assert world.traffic.busy_s_total == pytest.approx(4.0)


def test_a_link_that_waits_for_its_source_is_little_used() -> None:
    world = World()
    flow = world.open("a", 1000)
    flow.produce(0.0, 1000.0, 10.0)
    world.at(10.0, flow.finish)
    world.run()
    assert world.traffic.busy_s_total == pytest.approx(1.0, rel=0.01)
