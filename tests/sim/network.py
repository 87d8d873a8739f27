"""Processes, and the messages between them: every byte that leaves a process goes through here."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from dataclasses import dataclass
from random import Random
from typing import Any, Generic, TypeVar

from controlplane.replay.loop import Host, VirtualLoop, current_host
from controlplane.wire import KvLocation

T = TypeVar("T")

#: Between two messages of one channel: at the very same time, the loop might turn them round.
_GAP_S = 1e-6

#: What a message does when it arrives.
Arrival = Callable[[], None]


class Refused(ConnectionError):
    """Nobody listens there."""


class Process:
    """One life of a process: it has a clock, tasks and connections, and may be killed."""

    def __init__(self, network: Network, name: str, datacenter: str, host: Host, life: int) -> None:
        self.network = network
        self.name = name
        self.datacenter = datacenter
        self.host = host
        self.life = life
        self.is_alive = True
        #: Called when it dies, by whoever has to be told; in order.
        self.mourners: dict[object, Callable[[], None]] = {}
        #: Answers to connections, by service.
        self.services: dict[str, Callable[[Socket, Any], Coroutine[Any, Any, None]]] = {}
        #: What calls do here, by name.
        self.doors: dict[str, Callable[..., Any]] = {}
        #: Decode jobs that run here, by id.
        self.jobs: dict[str, None] = {}
        self._tasks: dict[asyncio.Task[Any], None] = {}

    def __repr__(self) -> str:
        return f"<Process {self.name} life {self.life}{'' if self.is_alive else ', dead'}>"

    def spawn(self, coro: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Run something as this process."""
        task = self.network.loop.create_task(coro, name=name, context=self.host.context)
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop, context=self.network.context)
        if not self.is_alive:
            task.cancel()
        return task

    def kill(self) -> None:
        """End it at once: peers are told by the network, and nothing it does leaves it any more."""
        if not self.is_alive:
            return
        self.is_alive = False
        self.network.loop.resume(self.host)
        mourners, self.mourners = self.mourners, {}
        for mourner in mourners.values():
            mourner()
        for task in self.network.loop.tasks(self.host):
            task.cancel()


@dataclass(slots=True)
class _Parked:
    """Messages that wait for the end of a cut, in order."""

    channel: Channel
    arrivals: deque[Arrival]


class Network:
    """Delays, cuts and troubles between named processes."""

    def __init__(self, loop: VirtualLoop, random: Random, context: Context) -> None:
        self.loop = loop
        self.random = random
        #: Of the world: what runs in it belongs to no host.
        self.context = context
        self.processes: dict[str, Process] = {}
        #: Ways that are cut, by names of processes.
        self.cut: set[tuple[str, str]] = set()
        #: Further delay of a way, most seconds.
        self.slow: dict[tuple[str, str], float] = {}
        #: Part of calls that are done twice, of KV writes that are spoilt, by process that serves.
        self.twice: dict[str, float] = {}
        self.spoilt: dict[str, float] = {}
        self.spoil: Callable[[bytes, Random], list[bytes]] = lambda data, _: [data]
        self.counts: Counter[str] = Counter()
        #: Routers probe links until what is left of requests is looked for.
        self.is_probing = True
        self.owners: dict[Host, Process] = {}
        #: Where KV was, by owner: what a stale reader still believes.
        self.locations: dict[str, deque[KvLocation]] = {}
        self._parked: dict[tuple[str, str], list[_Parked]] = {}

    def start(self, process: Process) -> None:
        """A process can be reached from now on."""
        self.processes[process.name] = process
        self.owners[process.host] = process

    def running(self) -> Process:
        """The process whose code is running."""
        host = current_host()
        assert host is not None, "the world itself has no connections"
        return self.owners[host]

    def spoils(self, source: Process, data: bytes) -> list[bytes]:
        """What arrives of a write of KV."""
        part = self.spoilt.get(source.name, 0.0)
        if part and self.random.random() < part:
            self.counts["corrupt"] += 1
            return self.spoil(data, self.random)
        return [data]

    def delay_s(self, source: Process, target: Process) -> float:
        """How long one message takes."""
        base_s = 0.0003 if source.datacenter == target.datacenter else 0.01
        spread = self.slow.get((source.name, target.name), 0.0)
        return base_s * (1 + self.random.random()) + spread * self.random.random()

    def block(self, source: str, target: str) -> None:
        """Nothing arrives from one at the other any more; it is kept, as TCP keeps it."""
        self.cut.add((source, target))

    def heal(self, source: str, target: str) -> None:
        """What was kept arrives, in order."""
        self.cut.discard((source, target))
        for parked in self._parked.pop((source, target), []):
            for arrival in parked.arrivals:
                parked.channel.send(arrival)

    def park(self, channel: Channel, arrival: Arrival) -> None:
        """Keep a message until the way is open."""
        lane = self._parked.setdefault((channel.source.name, channel.target.name), [])
        for parked in lane:
            if parked.channel is channel:
                parked.arrivals.append(arrival)
                return
        lane.append(_Parked(channel, deque([arrival])))

    # --- Calls --------------------------------------------------------------------------------

    async def call(
        self,
        source: Process,
        target_name: str,
        work: Callable[[Process], Awaitable[T]],
        *,
        name: str,
    ) -> T:
        """
        Have another process do something, and get what it returns or raises.

        Raises:
            Refused: Nobody is there, or it died before it answered. A cut says nothing at all.
        """
        target = self.processes.get(target_name)
        if target is None:
            raise Refused(f"there is no {target_name}")
        call = _Call(self, source, target, work, name)
        if source.is_alive:
            Channel(self, source, target).send(call.arrive)
        return await call.answer

    # --- Connections --------------------------------------------------------------------------

    def connect(self, source: Process, target_name: str, service: str, hello: Any) -> Socket:
        """Open a connection; `Socket.opened` says when, and whether, the other side took it."""
        target = self.processes[target_name]
        near, far = Socket(self, source), Socket(self, target)
        near.attach(Channel(self, source, target), far)
        far.attach(Channel(self, target, source), near)

        def arrive() -> None:
            now = self.processes.get(target_name)
            far.process = now or target
            serve = now.services.get(service) if now is not None and now.is_alive else None
            if now is None or serve is None:
                near.channel_back(far).send(lambda: near.break_off(is_refused=True))
                return
            far.listen_for_death()
            near.channel_back(far).send(near.accept)
            serving = now.spawn(_served(serve, far, hello), f"{service} for {source.name}")
            far.on_break = serving.cancel

        near.listen_for_death()
        near.send_raw(arrive)
        return near


class _Call(Generic[T]):
    """One call on its way there and back."""

    def __init__(
        self,
        network: Network,
        source: Process,
        target: Process,
        work: Callable[[Process], Awaitable[T]],
        name: str,
    ) -> None:
        self.answer: asyncio.Future[T] = network.loop.create_future()
        self._network = network
        self._target = target.name
        self._work = work
        self._name = name
        self._back = Channel(network, target, source)

    def arrive(self) -> None:
        """The request is there."""
        network, target = self._network, self._network.processes[self._target]
        if not target.is_alive:
            self._fail(Refused(f"{self._target} is not there"))
            return
        target.spawn(self._serve(target), self._name)
        if network.random.random() < network.twice.get(self._target, 0.0):
            network.counts["duplicate"] += 1
            self._again(target)

    def _again(self, target: Process) -> None:
        """The same request comes once more, up to half a second later."""
        network = self._network

        def arrive() -> None:
            if target.is_alive:
                target.spawn(_quietly(self._work(target)), self._name)

        network.context.run(network.loop.call_later, 0.5 * network.random.random(), arrive)

    async def _serve(self, process: Process) -> None:
        process.mourners[self] = lambda: self._fail(ConnectionResetError(f"{self._target} died"))
        try:
            result = await self._work(process)
        except Exception as error:  # noqa: BLE001 - the answer of a call, whatever it is
            if process.is_alive:
                self._fail(error)
        else:
            if process.is_alive:
                self._back.send(lambda: self._succeed(result))
        finally:
            process.mourners.pop(self, None)

    def _succeed(self, result: T) -> None:
        if not self.answer.done():
            self.answer.set_result(result)

    def _fail(self, error: Exception) -> None:
        def arrive() -> None:
            if not self.answer.done():
                self.answer.set_exception(error)
                self.answer.exception()

        self._back.send(arrive)


class Channel:
    """One direction of one connection: first in, first out."""

    __slots__ = ("_due_s", "_network", "source", "target")

    def __init__(self, network: Network, source: Process, target: Process) -> None:
        self._network = network
        self._due_s = 0.0
        self.source = source
        self.target = target

    def send(self, arrival: Arrival) -> None:
        """Let something happen at the other end, after the delay of the way."""
        network = self._network
        loop = network.loop
        due_s = max(self._due_s + _GAP_S, loop.now_s + network.delay_s(self.source, self.target))
        self._due_s = due_s
        network.context.run(loop.call_at, due_s, self._arrive, arrival)

    def _arrive(self, arrival: Arrival) -> None:
        if (self.source.name, self.target.name) in self._network.cut:
            self._network.park(self, arrival)
        else:
            arrival()


class Socket:
    """One end of a connection: messages in order, an end, or a break."""

    def __init__(self, network: Network, process: Process) -> None:
        self.network = network
        self.process = process
        self.opened = network.loop.create_future()
        self.is_broken = False
        self.is_ended = False
        #: Called when the peer has gone: servers stop working for nobody.
        self.on_break: Callable[[], object] = lambda: None
        self._inbox: deque[Any] = deque()
        self._news = asyncio.Event()
        self._peer: Socket
        self._out: Channel
        self._is_closed = False

    def attach(self, out: Channel, peer: Socket) -> None:
        """Connect both ends."""
        self._out, self._peer = out, peer

    def channel_back(self, far: Socket) -> Channel:
        """The way from the far end to this one."""
        return far._out

    def send_raw(self, arrival: Arrival) -> None:
        """Send something that is not a message."""
        self._out.send(arrival)

    def listen_for_death(self) -> None:
        """When this end's process dies, the other end is told by its kernel."""
        self.process.mourners[self] = lambda: self._out.send(self._peer.break_off)

    def accept(self) -> None:
        """The other side took the connection."""
        if not self.opened.done():
            self.opened.set_result(None)

    def send(self, message: Any) -> None:
        """
        Send a message.

        Raises:
            ConnectionResetError: The connection is broken or closed.
        """
        if self.is_broken or self._is_closed:
            raise ConnectionResetError("the connection is broken")
        if self.process.is_alive:
            self._out.send(lambda: self._peer.deliver(message))

    def network_spoils(self, data: bytes) -> list[bytes]:
        """What arrives of a write of KV."""
        return self.network.spoils(self.process, data)

    async def receive(self) -> Any:
        """
        The next message; None at the end.

        Raises:
            ConnectionResetError: The connection broke.
        """
        while not self._inbox:
            if self.is_broken or self._is_closed:
                raise ConnectionResetError("the connection broke")
            if self.is_ended:
                return None
            self._news.clear()
            await self._news.wait()
        return self._inbox.popleft()

    @property
    def unread(self) -> int:
        """Messages that the other end has not read."""
        return len(self._peer._inbox)

    def receive_nowait(self) -> Any:
        """The next message, if it is there; None otherwise."""
        return self._inbox.popleft() if self._inbox else None

    def end(self) -> None:
        """Nothing more comes from this side."""
        if not (self.is_broken or self._is_closed) and self.process.is_alive:
            self._out.send(self._peer._end)
        self.process.mourners.pop(self, None)

    def close(self) -> None:
        """Drop the connection. Idempotent."""
        if not self._is_closed:
            self._is_closed = True
            self.process.mourners.pop(self, None)
            if not self.is_broken and self.process.is_alive:
                self._out.send(self._peer.break_off)
            self._news.set()

    def deliver(self, message: Any) -> None:
        """A message has arrived."""
        if not (self._is_closed or self.is_broken):
            self._inbox.append(message)
            self._news.set()

    def break_off(self, *, is_refused: bool = False) -> None:
        """The other end has gone."""
        if not self.is_broken:
            self.is_broken = True
            self.process.mourners.pop(self, None)
            if not self.opened.done():
                kind = Refused if is_refused else ConnectionResetError
                self.opened.set_exception(kind("the connection broke"))
                self.opened.exception()
            self._news.set()
            # As the process, so that one that is paused stops its work when it goes on.
            self.network.loop.call_soon(self.on_break, context=self.process.host.context)

    def _end(self) -> None:
        self.is_ended = True
        self.process.mourners.pop(self, None)
        self._news.set()


async def _served(
    serve: Callable[[Socket, Any], Coroutine[Any, Any, None]], socket: Socket, hello: Any
) -> None:
    """Serve a connection; a handler ends when its peer has gone, as aiohttp's do."""
    try:
        await serve(socket, hello)
    finally:
        if not socket.is_ended:
            socket.end()


async def _quietly(work: Awaitable[object]) -> None:
    """Do something whose answer nobody hears."""
    try:
        await work
    except Exception:  # noqa: BLE001 - the answer of a call, which is lost
        return
