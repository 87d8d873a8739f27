"""The deadline around every call."""

from __future__ import annotations

import asyncio
import time

import pytest

from controlplane.store.connections import deadline


async def test_what_takes_too_long_is_cut_off_in_time() -> None:
    started_s = time.monotonic()

    with pytest.raises(TimeoutError):
        async with deadline(0.02):
            await asyncio.sleep(60)

    assert 0.02 <= time.monotonic() - started_s < 30


async def test_what_is_fast_enough_is_left_alone() -> None:
    async with deadline(60):
        await asyncio.sleep(0)


async def test_an_answer_that_came_while_the_loop_was_busy_counts() -> None:
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[str] = loop.create_future()

    async with deadline(0.02):
        loop.call_later(0.03, answer.set_result, "here")
        time.sleep(0.1)  # noqa: ASYNC251  blocking the loop is what this is about
        assert await answer == "here"


async def test_a_busy_loop_does_not_wait_for_ever() -> None:
    async def wait() -> None:
        async with deadline(0.02):
            time.sleep(0.1)  # noqa: ASYNC251  blocking the loop is what this is about
            await asyncio.sleep(60)

    with pytest.raises(TimeoutError):
        await wait()


async def test_a_cancellation_from_outside_stays_one() -> None:
    async def wait() -> None:
        async with deadline(60):
            await asyncio.sleep(60)

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
