"""The compute thread: units of work in turn, on a thread that no exit has to wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import ParamSpec, TypeVar

ResultT = TypeVar("ResultT")
ParamsT = ParamSpec("ParamsT")


class ComputeThread(Executor):
    """
    One thread that runs what is submitted, first come, first served.

    The standard library's pool would be the same, but for its end: an interpreter waits for all
    threads of a pool, so a unit that hangs would keep a worker from exiting when it is told to.
    """

    def __init__(self, name: str) -> None:
        self._units: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<ComputeThread {self._thread.name}, {self._units.qsize()} units>"

    def submit(
        self, fn: Callable[ParamsT, ResultT], /, *args: ParamsT.args, **kwargs: ParamsT.kwargs
    ) -> Future[ResultT]:
        """Queue a unit of work."""
        future: Future[ResultT] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001 - a unit's error belongs to who waits for it
                future.set_exception(error)

        self._units.put(run)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - as the base class
        """End the thread after the units that are queued."""
        del cancel_futures
        self._units.put(None)
        if wait:
            self._thread.join()

    def _work(self) -> None:
        while (unit := self._units.get()) is not None:
            unit()
            # Nothing of a unit stays here while the next one is waited for.
            del unit
