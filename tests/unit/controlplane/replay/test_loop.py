"""The virtual loop: time without waiting, an order that a seed repeats, hosts that stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from controlplane.replay.loop import (
    Deadlock,
    Host,
    Livelock,
    VirtualLoop,
    current_host,
    finish,
    run_virtual,
    virtual_loop,
)

Main = Callable[[VirtualLoop], Coroutine[Any, Any, Any]]


def run(main: Main, seed: int | None = None) -> tuple[Any, VirtualLoop]:
    """What a main function returns, and the loop it ran on."""
    loop = virtual_loop(seed)
    try:
        return loop.run_until_complete(main(loop)), loop
    finally:
        finish(loop)


def test_an_hour_passes_in_no_time() -> None:
    """Nothing sleeps: time jumps to the next timer."""

    async def main(loop: VirtualLoop) -> float:
        await asyncio.sleep(3600)
        return loop.time()

    # It would not end within the time of a test, or of a day of them.
    found, _ = run(main)

    assert found == pytest.approx(3600)


def test_timers_run_in_the_order_of_their_times() -> None:
    """The order of making them does not matter."""
    order: list[int] = []

    async def main(loop: VirtualLoop) -> None:
        for delay in (3, 1, 2):
            loop.call_later(delay, order.append, delay)
        await asyncio.sleep(5)

    run(main, seed=1)

    assert order == [1, 2, 3]


def test_callbacks_that_are_ready_run_first_in_first_out() -> None:
    """A seed changes nothing that asyncio promises."""
    order: list[int] = []

    async def main(loop: VirtualLoop) -> None:
        for number in range(20):
            loop.call_soon(order.append, number)
        await asyncio.sleep(0)

    run(main, seed=7)

    assert order == list(range(20))


def _order_of_one_instant(seed: int | None) -> tuple[list[int], int]:
    order: list[int] = []

    async def main(loop: VirtualLoop) -> None:
        for number in range(12):
            loop.call_at(1.0, order.append, number)
        await asyncio.sleep(2)

    _, loop = run(main, seed)
    return order, loop.trace


def test_timers_of_one_instant_keep_their_order_without_a_seed() -> None:
    """First made, first run."""
    order, _ = _order_of_one_instant(None)

    assert order == list(range(12))


def test_a_seed_draws_the_order_of_one_instant_and_repeats_it() -> None:
    """One seed, one order; another seed, another order."""
    first, second, other = (_order_of_one_instant(seed)[0] for seed in (1, 1, 2))

    assert first == second
    assert first != other
    assert sorted(first) == sorted(other) == list(range(12))


def _trace(seed: int) -> int:
    async def worker(loop: VirtualLoop, number: int) -> None:
        for _ in range(5):
            await asyncio.sleep(0.5 if number % 2 else loop.now_s % 0.3 + 0.5)

    async def main(loop: VirtualLoop) -> None:
        async def racing() -> None:
            # Who comes first decides how long the others wait: the order becomes a time.
            done: list[int] = []

            async def runner(number: int) -> None:
                await asyncio.sleep(1)
                done.append(number)
                await asyncio.sleep(0.01 * number * len(done))

            await asyncio.gather(*map(runner, range(6)))

        await asyncio.gather(racing(), *(worker(loop, number) for number in range(4)))

    _, loop = run(main, seed)
    return loop.trace


def test_one_seed_leaves_one_trace_and_another_seed_another() -> None:
    """The trace is a digest of when how much has run."""
    assert _trace(3) == _trace(3)
    assert _trace(3) != _trace(4)


def test_a_cancelled_timer_does_not_run_and_moves_no_time() -> None:
    """Nor does the loop wait for it."""
    ran: list[int] = []

    async def main(loop: VirtualLoop) -> float:
        loop.call_later(1, ran.append, 1).cancel()
        await asyncio.sleep(0.5)
        return loop.now_s

    found, _ = run(main)

    assert found == pytest.approx(0.5)
    assert ran == []


def test_thousands_of_cancelled_timers_are_dropped() -> None:
    """Each wait with a deadline leaves one behind."""

    async def main(loop: VirtualLoop) -> int:
        for _ in range(5000):
            loop.call_later(1000, print).cancel()
        return len(loop._timers)

    found, _ = run(main)

    assert found < 2500


def test_a_deadline_ends_a_wait() -> None:
    """asyncio.timeout is built on the loop's own clock."""

    async def main(loop: VirtualLoop) -> float:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 2.5)
        return loop.now_s

    found, _ = run(main)

    assert found == pytest.approx(2.5)


def test_a_deadlock_is_an_error_that_names_who_waits() -> None:
    """A loop that waits for a selector would hang here for ever."""

    async def waits_for_ever() -> None:
        await asyncio.Event().wait()

    async def main(loop: VirtualLoop) -> None:
        await loop.create_task(waits_for_ever(), name="the one that waits")

    loop = virtual_loop()
    with pytest.raises(Deadlock, match=r"the one that waits on the world in .*waits_for_ever"):
        loop.run_until_complete(main(loop))
    finish(loop)


def test_turning_round_without_time_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop of callbacks that never waits would hang here for ever."""
    monkeypatch.setattr("controlplane.replay.loop._TURNS_MAX", 1000)

    async def main(_: VirtualLoop) -> None:
        while True:  # noqa: ASYNC110 - the very thing that is refused
            await asyncio.sleep(0)

    loop = virtual_loop()
    with pytest.raises(Livelock, match=r"callbacks at 0\.000000 s"):
        loop.run_until_complete(main(loop))
    finish(loop)


def test_threads_are_refused() -> None:
    """Nobody could repeat their order."""

    async def main(_: VirtualLoop) -> None:
        await asyncio.to_thread(print)

    with pytest.raises(RuntimeError, match="no threads"):
        run(main)


def test_sockets_are_refused() -> None:
    """There is no selector."""

    async def main(_: VirtualLoop) -> None:
        await asyncio.open_connection("127.0.0.1", 1)

    # Names are resolved by threads, which is as far as it gets.
    with pytest.raises((NotImplementedError, RuntimeError)):
        run(main)


def test_what_nobody_catches_is_kept() -> None:
    """A bug in a callback must not pass unseen."""

    async def main(loop: VirtualLoop) -> None:
        loop.call_soon(lambda: 1 / 0)
        await asyncio.sleep(1)

    _, loop = run(main)

    assert [type(one["exception"]) for one in loop.uncaught] == [ZeroDivisionError]


def test_tasks_left_behind_are_cancelled_at_the_end() -> None:
    """A world leaves nothing to the next one."""
    ended: list[str] = []

    async def stays() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            ended.append("stays")

    async def main() -> None:
        tasks.append(asyncio.ensure_future(stays()))
        await asyncio.sleep(1)

    tasks: list[asyncio.Task[None]] = []
    run_virtual(main())

    assert ended == ["stays"]
    assert tasks[0].cancelled()


def test_a_closed_loop_takes_nothing() -> None:
    """A late callback of a world that is over is a bug."""
    loop = virtual_loop()
    finish(loop)

    with pytest.raises(RuntimeError, match="closed"):
        loop.call_soon(print)


def test_task_groups_cancel_in_one_order() -> None:
    """Tasks in a set are in an order of their own, not of their addresses."""

    async def main(_: VirtualLoop) -> list[int]:
        order: list[int] = []

        async def waits(number: int) -> None:
            try:
                await asyncio.sleep(1000)
            finally:
                order.append(number)

        async def fails() -> None:
            await asyncio.sleep(1)
            raise ValueError

        async def together() -> None:
            async with asyncio.TaskGroup() as group:
                for number in range(30):
                    group.create_task(waits(number))
                group.create_task(fails())

        with pytest.raises(ExceptionGroup):
            await together()
        return order

    assert run(main)[0] == run(main)[0]


# --- Hosts ------------------------------------------------------------------------------------


def test_a_hosts_clock_is_its_own() -> None:
    """Offset and rate change what it reads and how long its timers take."""
    fast = Host("fast", offset_s=3600, rate=2.0)
    woken: list[tuple[float, float]] = []

    async def sleeps(loop: VirtualLoop) -> None:
        began_s = loop.time()
        await asyncio.sleep(10)
        woken.append((loop.time() - began_s, loop.now_s))

    async def main(loop: VirtualLoop) -> float:
        await loop.create_task(sleeps(loop), context=fast.context)
        return loop.time()

    found, _ = run(main)

    assert woken == [(pytest.approx(10), pytest.approx(5))]
    assert found == pytest.approx(5)


def test_what_a_host_starts_belongs_to_it() -> None:
    """Tasks and timers inherit it."""
    host = Host("one")
    seen: list[Host | None] = []

    async def child() -> None:
        await asyncio.sleep(1)
        seen.append(current_host())
        asyncio.get_running_loop().call_later(1, lambda: seen.append(current_host()))

    async def parent() -> None:
        await asyncio.ensure_future(child())

    async def main(loop: VirtualLoop) -> None:
        await loop.create_task(parent(), context=host.context)
        await asyncio.sleep(2)
        seen.append(current_host())

    run(main)

    assert seen == [host, host, None]


def test_a_paused_host_does_nothing_until_it_goes_on() -> None:
    """Its clock goes on, what was due meanwhile happens at once, in order."""
    host = Host("one")
    ticks: list[float] = []

    async def tick(loop: VirtualLoop) -> None:
        while True:
            await asyncio.sleep(1)
            ticks.append(round(loop.now_s, 3))

    async def main(loop: VirtualLoop) -> None:
        task = loop.create_task(tick(loop), context=host.context)
        await asyncio.sleep(2.5)
        loop.pause(host)
        await asyncio.sleep(5)
        assert ticks == [1, 2]
        loop.resume(host)
        await asyncio.sleep(1.7)
        task.cancel()

    run(main)

    assert ticks == [1, 2, 7.5, 8.5]


def test_tasks_are_found_by_host() -> None:
    """Oldest first."""
    one, two = Host("one"), Host("two")

    async def main(loop: VirtualLoop) -> list[str]:
        for name, host in (("a", one), ("b", two), ("c", one)):
            loop.create_task(asyncio.sleep(1), name=name, context=host.context)
        return [task.get_name() for task in loop.tasks(one)]

    assert run(main)[0] == ["a", "c"]


def test_rounding_cannot_stop_time() -> None:
    """A host that waits for the rest of a time always gets further."""
    host = Host("far", offset_s=1e5, rate=0.9)

    async def waits_until(loop: VirtualLoop, due_s: float) -> int:
        rounds = 0
        while (left_s := due_s - loop.time()) > 0:
            rounds += 1
            await asyncio.sleep(left_s)
        return rounds

    async def main(loop: VirtualLoop) -> int:
        due_s = host.run(loop.time) + 1 / 3
        return await loop.create_task(waits_until(loop, due_s), context=host.context)

    assert run(main)[0] <= 3
