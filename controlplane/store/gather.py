"""Commands of many requests in one round trip, when there are many."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

from controlplane.errors import StoreUnavailable
from controlplane.store.calls import Calls
from controlplane.store.dialing import Reply
from controlplane.store.scripts import Command

#: Commands of one round trip; it has to stay far below its timeout.
_BATCH_MAX: Final = 64


class Gatherer:
    """
    Sends commands of one kind, those that come in the same turn of the loop together.

    A command that meets no other one goes out at once: alone, nobody waits. A busy loop has many
    requests ready in each turn, and there a round trip for each would cost more than the rest of
    their routing.
    """

    def __init__(self, calls: Calls, what: str, *, timeout_s: float) -> None:
        """
        Nothing is sent yet.

        Args:
            calls: How to ask.
            what: Name of the operation, for messages.
            timeout_s: Seconds of one round trip.
        """
        self._calls = calls
        self._what = what
        self._timeout_s = timeout_s
        self._alone = 0
        self._waiting: list[tuple[Command, asyncio.Future[Reply]]] = []
        self._tasks: set[asyncio.Task[list[Reply]]] = set()

    def __repr__(self) -> str:
        return f"<Gatherer of {self._what}, {len(self._waiting)} waiting>"

    async def ask(self, command: Command) -> Reply:
        """
        The reply to one command; as `Calls.ask_one`.

        A caller that is cancelled does not call its command back.
        """
        if not self._alone and not self._tasks:
            self._alone += 1
            try:
                return await self._calls.ask_one(self._what, command, timeout_s=self._timeout_s)
            finally:
                self._alone -= 1
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[Reply] = loop.create_future()
        self._waiting.append((command, reply))
        if len(self._waiting) == 1:
            loop.call_soon(self._send)
        elif len(self._waiting) == _BATCH_MAX:
            self._send()
        return await reply

    def _send(self) -> None:
        """Let go what has come together."""
        batch, self._waiting = self._waiting, []
        if not batch:
            return
        commands = [command for command, _ in batch]
        task = asyncio.get_running_loop().create_task(
            self._calls.ask_all(self._what, commands, timeout_s=self._timeout_s)
        )
        self._tasks.add(task)
        task.add_done_callback(partial(self._answer, [waiter for _, waiter in batch]))

    def _answer(
        self, waiters: list[asyncio.Future[Reply]], task: asyncio.Task[list[Reply]]
    ) -> None:
        """Give every caller that is still there its reply, or the error of all."""
        self._tasks.discard(task)
        error = (
            StoreUnavailable(f"{self._what}: it was given up")
            if task.cancelled()
            else task.exception()
        )
        replies = [] if error else task.result()
        for index, waiter in enumerate(waiters):
            if waiter.done():
                continue
            if error is None:
                waiter.set_result(replies[index])
            else:
                waiter.set_exception(error)
