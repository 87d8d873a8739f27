"""
An event loop in virtual time: one thread runs a whole fleet, and a seed repeats it exactly.

Nothing sleeps and no socket exists. When nothing is ready, time jumps to the next timer. What is
ready runs first in, first out; timers of one instant, whose order asyncio leaves open, run in an
order that the seed draws. Threads are refused, because nobody could repeat them.

Code may belong to a `Host`, a simulated process with a clock of its own that can be stopped and
continued. Tasks and timers inherit the host of whoever made them.
"""

from __future__ import annotations

import asyncio
from asyncio import events
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from contextvars import Context, ContextVar, copy_context
from heapq import heappop, heappush
from random import Random
from typing import Any, Final, NoReturn, TypeVar, TypeVarTuple

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

#: A timer in the future is at least so far away, whatever a host's clock makes of it by rounding:
#: else code that waits for the rest of a time could wait for nothing for ever.
_TICK_S: Final = 1e-8

#: Callbacks at one instant; more mean that something turns round without waiting.
_TURNS_MAX: Final = 2_000_000


class Deadlock(RuntimeError):
    """Nothing is ready, no timer is set, and the main task has not ended."""


class Livelock(RuntimeError):
    """Callbacks follow each other without end while time stands still."""


class Host:
    """A simulated process: its clock, and whether it runs."""

    def __init__(self, name: str, *, offset_s: float = 0.0, rate: float = 1.0) -> None:
        """
        A host that runs.

        Args:
            name: For people.
            offset_s: Its clock at the beginning of the world, seconds >= 0.
            rate: Seconds of its clock in one second of the world, > 0.
        """
        self.name = name
        self.offset_s = offset_s
        self.rate = rate
        self.is_paused = False
        #: What became ready while it was paused, in order.
        self.held: list[asyncio.Handle] = []
        self._context = copy_context()
        self._context.run(_HOST.set, self)

    def __repr__(self) -> str:
        return f"<Host {self.name}{', paused' if self.is_paused else ''}>"

    @property
    def context(self) -> Context:
        """A fresh context whose code belongs to this host."""
        return self._context.copy()

    def run(self, work: Callable[[*_Ts], _T], *args: *_Ts) -> _T:
        """Call something as this host."""
        return self.context.run(work, *args)


_HOST: ContextVar[Host | None] = ContextVar("host", default=None)


def current_host() -> Host | None:
    """The host whose code is running; None for the world itself."""
    return _HOST.get()


class _Task(asyncio.Task[_T]):
    """A task that has the same place in every set, run after run: task groups cancel in its order."""

    def __init__(self, coro: Coroutine[Any, Any, _T], number: int, **options: Any) -> None:  # noqa: ANN401 - asyncio's
        self._number = number  # first, because asyncio puts the task into a set while it is made
        context = options.get("context")
        self.host: Host | None = _HOST.get() if context is None else context.get(_HOST)
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class _Handle(asyncio.Handle):
    """One of asyncio's, made without asking each time whether the loop is debugged."""

    __slots__ = ()

    def __init__(
        self,
        callback: Callable[..., object],
        args: Sequence[Any],
        loop: asyncio.AbstractEventLoop,
        context: Context | None,
    ) -> None:
        self._context = copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._repr = self._source_traceback = None


class _Timer(asyncio.TimerHandle):
    """The same, at a time."""

    __slots__ = ()

    def __init__(
        self,
        when: float,
        callback: Callable[..., object],
        args: Sequence[Any],
        loop: asyncio.AbstractEventLoop,
        context: Context | None,
    ) -> None:
        self._context = copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._repr = self._source_traceback = None
        self._when = when
        # It is in the heap: asyncio tells the loop when such a timer is cancelled.
        self._scheduled = True


class VirtualLoop(asyncio.AbstractEventLoop):
    """The loop; see the module. What asyncio offers and this does not raises `NotImplementedError`."""

    def __init__(self, seed: int | None = None) -> None:
        """
        A loop at time 0.

        Args:
            seed: Draws the order of timers of one instant; None keeps the order they were made in.
        """
        self._random = None if seed is None else Random(seed)
        self._now_s = 0.0
        self._ready: deque[asyncio.Handle] = deque()
        #: Due, what the seed drew, number of the timer.
        self._timers: list[tuple[float, float, int, asyncio.TimerHandle]] = []
        self._cancelled_timers = 0
        self._numbers = 0
        self._trace = 0
        self._is_running = self._is_closed = False
        self._paused: set[Host] = set()
        #: What no task has caught, as asyncio describes it.
        self.uncaught: list[dict[str, Any]] = []
        #: Callbacks that have run.
        self.callbacks_total = 0

    def __repr__(self) -> str:
        return f"<VirtualLoop at {self._now_s:.6f} s, {len(self._timers)} timers>"

    # --- Time ---------------------------------------------------------------------------------

    @property
    def now_s(self) -> float:
        """Seconds of the world since its beginning, whoever asks."""
        return self._now_s

    @property
    def trace(self) -> int:
        """Digest of when how much has run: equal for equal runs, on every machine."""
        return self._trace

    def time(self) -> float:
        """Monotonic seconds on the clock of the host that asks."""
        host = _HOST.get()
        return self._now_s if host is None else host.offset_s + host.rate * self._now_s

    def call_at(
        self,
        when: float,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call something at a time of the host that asks."""
        self._check_open()
        timer = _Timer(when, callback, args, self, context)
        host = _host_of(timer)
        due_s = when if host is None else (when - host.offset_s) / host.rate
        due_s = max(due_s, self._now_s + _TICK_S)
        drawn = 0.0 if self._random is None else self._random.random()
        self._numbers += 1
        heappush(self._timers, (due_s, drawn, self._numbers, timer))
        return timer

    def call_later(
        self,
        delay: float,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call something after so many seconds of the host that asks."""
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Called by asyncio; a heap that is mostly cancelled timers is built anew."""
        del handle
        self._cancelled_timers += 1
        if self._cancelled_timers > 1000 and 2 * self._cancelled_timers > len(self._timers):  # noqa: PLR2004 - no hurry below
            self._timers = [entry for entry in self._timers if not entry[3].cancelled()]
            self._timers.sort()
            self._cancelled_timers = 0

    # --- Callbacks, tasks, futures ------------------------------------------------------------

    def call_soon(
        self,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.Handle:
        """Call something after all that is ready."""
        self._check_open()
        handle = _Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        """A future of this loop."""
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Generator[Any, None, _T] | Coroutine[Any, Any, _T],
        *,
        name: str | None = None,
        context: Context | None = None,
        **options: Any,  # noqa: ANN401 - what later Pythons add
    ) -> asyncio.Task[_T]:
        """A task that belongs to the host of its context."""
        self._check_open()
        self._numbers += 1
        assert isinstance(coro, Coroutine), "generators are no coroutines any more"
        return _Task(coro, self._numbers, loop=self, name=name, context=context, **options)

    def tasks(self, host: Host | None = None) -> list[asyncio.Task[Any]]:
        """Tasks that have not ended, oldest first; of one host, or all."""
        alive = sorted(asyncio.all_tasks(self), key=hash)
        return [task for task in alive if host is None or _host_of_task(task) is host]

    # --- Hosts --------------------------------------------------------------------------------

    def pause(self, host: Host) -> None:
        """Stop a host, as SIGSTOP does: its tasks and timers do not run, its clock goes on."""
        host.is_paused = True
        self._paused.add(host)

    def resume(self, host: Host) -> None:
        """Let a host go on with everything that was due meanwhile."""
        host.is_paused = False
        self._paused.discard(host)
        held, host.held = host.held, []
        self._ready.extend(held)

    # --- Running ------------------------------------------------------------------------------

    def run_until_complete(self, future: Generator[Any, None, _T] | Awaitable[_T]) -> _T:
        """
        Run until the main task has ended, and return its result.

        Raises:
            Deadlock: It never will.
            Livelock: Time stands still.
        """
        self._check_open()
        main: asyncio.Future[_T] = asyncio.ensure_future(future, loop=self)  # type: ignore[arg-type]
        self._is_running = True
        before = events._get_running_loop()  # noqa: SLF001 - the way asyncio's own loops say it
        events._set_running_loop(self)  # noqa: SLF001
        try:
            while not main.done():
                self._run_instant(main)
        finally:
            events._set_running_loop(before)  # noqa: SLF001
            self._is_running = False
        return main.result()

    def _run_instant(self, main: asyncio.Future[Any]) -> None:
        """Everything at one time, up to the end of the main task; then go to the next."""
        turns = 0
        ready = self._ready
        while ready and not main.done():
            handle = ready.popleft()
            if handle.cancelled():
                continue
            if self._paused:
                host = _host_of(handle)
                if host is not None and host.is_paused:
                    host.held.append(handle)
                    continue
            handle._run()  # noqa: SLF001 - how asyncio's own loops run it
            turns += 1
            if turns > _TURNS_MAX:
                raise Livelock(f"{turns} callbacks at {self._now_s:.6f} s: {self._waiting()}")
        self.callbacks_total += turns
        self._trace = hash((self._trace, self._now_s, turns))
        if not main.done():
            self._jump()

    def _jump(self) -> None:
        """Go to the next timer, and make all of its instant ready."""
        timers = self._timers
        while timers and timers[0][3].cancelled():
            heappop(timers)
        if not timers:
            raise Deadlock(
                f"nothing will happen any more at {self._now_s:.6f} s: {self._waiting()}"
            )
        self._now_s = timers[0][0]
        while timers and timers[0][0] <= self._now_s:
            timer = heappop(timers)[3]
            timer._scheduled = False  # type: ignore[attr-defined]  # noqa: SLF001 - it has left the heap
            self._ready.append(timer)

    def _waiting(self) -> str:
        """Tasks that wait, and where."""
        lines = []
        for task in self.tasks():
            stack = task.get_stack(limit=1)
            where = f"{stack[-1].f_code.co_qualname}:{stack[-1].f_lineno}" if stack else "?"
            host = _host_of_task(task)
            lines.append(f"{task.get_name()} on {host.name if host else 'the world'} in {where}")
        return "; ".join(lines) or "no tasks"

    # --- The rest of a loop -------------------------------------------------------------------

    def is_running(self) -> bool:
        """Whether it runs now."""
        return self._is_running

    def is_closed(self) -> bool:
        """Whether it can never run again."""
        return self._is_closed

    def close(self) -> None:
        """Forget everything that has not run."""
        self._is_closed = True
        self._ready.clear()
        self._timers.clear()

    def get_debug(self) -> bool:
        """Never: asyncio's debug mode measures real time."""
        return False

    def set_debug(self, enabled: bool) -> None:  # noqa: FBT001 - asyncio's
        """Does nothing; see `get_debug`."""

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Keep what nobody has caught, for whoever runs the world."""
        self.uncaught.append(context)

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        """The same."""
        self.uncaught.append(context)

    async def shutdown_asyncgens(self) -> None:
        """Nothing is left: generators are closed by those who opened them."""

    def call_soon_threadsafe(self, *args: object, **options: object) -> NoReturn:
        """Refused: there is one thread."""
        del args, options
        raise RuntimeError("a virtual loop has no threads: nobody could repeat their order")

    def run_in_executor(self, *args: object, **options: object) -> NoReturn:
        """Refused: there is one thread."""
        del args, options
        raise RuntimeError("a virtual loop has no threads: nobody could repeat their order")

    def _check_open(self) -> None:
        if self._is_closed:
            raise RuntimeError("this loop is closed")


def _host_of(handle: asyncio.Handle) -> Host | None:
    return handle._context.get(_HOST)  # type: ignore[attr-defined,no-any-return]  # noqa: SLF001 - it has no other reader


def _host_of_task(task: asyncio.Task[Any]) -> Host | None:
    return task.host if isinstance(task, _Task) else None


class HostlessLoop(VirtualLoop):
    """One whose code all belongs to the world: a request asks for the time eighty times."""

    def time(self) -> float:
        """Monotonic seconds of the world."""
        return self._now_s


def virtual_loop(seed: int | None = None, *, has_hosts: bool = True) -> VirtualLoop:
    """A loop at time 0; see `VirtualLoop.__init__`. Without hosts, it looks for nobody's clock."""
    # Abstract for type checkers alone: what is not here, sockets and signals, no world needs.
    return VirtualLoop(seed) if has_hosts else HostlessLoop(seed)  # type: ignore[abstract]


def run_virtual(main: Coroutine[Any, Any, _T], *, seed: int | None = None) -> _T:
    """Run a coroutine on a loop of its own; what it leaves behind is cancelled."""
    loop = virtual_loop(seed)
    try:
        return loop.run_until_complete(main)
    finally:
        finish(loop)


def finish(loop: VirtualLoop) -> None:
    """Cancel all tasks of a loop, let them end, and close it."""
    left = loop.tasks()
    for task in left:
        host = _host_of_task(task)
        if host is not None and host.is_paused:
            loop.resume(host)
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.wait(left, timeout=60.0))
    loop.close()
