"""A router in memory: its own code, with the twins of store and workers around it."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import count
from random import Random
from typing import Any

from builders import a_beat, an_output

from controlplane.config import LimitsConfig, LinkConfig, StoreConfig
from controlplane.domain.byte_tokenizer import encode_text
from controlplane.domain.prefix import block_hashes
from controlplane.errors import PrfaasError, StoreUnavailable
from controlplane.observe.metrics import RouterMetrics
from controlplane.router.assembly import assemble
from controlplane.router.flight import Flight
from controlplane.router.incoming import Incoming
from controlplane.router.memory_workers import Gate, MemoryWorkerClient, Step
from controlplane.router.recorder import Recorder
from controlplane.router.records import DecisionRecord, decode_record
from controlplane.router.sink import ClientSink
from controlplane.router.view import ViewTracker
from controlplane.store.api import Blamed, Cursor, KeyClaim, StoreEvent, StoreSnapshot
from controlplane.store.memory_store import MemoryStore
from controlplane.wire import (
    BeatReply,
    KvLocation,
    Load,
    Profile,
    Reservation,
    ReserveReply,
    Sampling,
    WorkerBeat,
)
from policies.api import Policy
from policies.prfaas import PrfaasParameters, PrfaasPolicy

#: The bare rule, so that a test knows where a request goes whatever waits there.
THRESHOLD_ALONE: Mapping[str, Any] = {
    "threshold_tokens": 64,
    "spills_home": False,
    "spills_away": False,
}

SCOPE = "scope"
BLOCK = 16

#: In the order in which a long prompt prefers them, for prefill and for decode.
EAST_1, EAST_2, WEST_1 = "east/p1", "east/p2", "west/p1"
DECODE_1, DECODE_2 = "west/d1", "west/d2"


def url_of(worker_id: str) -> str:
    """Where the twin has a worker."""
    return f"http://{worker_id}"


class LoopClock:
    """The time of the running event loop, which a test may put forward."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._real_time = loop.time
        self._ahead_s = 0.0
        loop.time = self  # type: ignore[method-assign]

    def __call__(self) -> float:
        return self._real_time() + self._ahead_s

    def advance(self, seconds: float) -> None:
        """Everything that is due within so many seconds happens at once."""
        self._ahead_s += seconds


async def a_few_turns(count: int = 20) -> None:
    """Let everything on the event loop happen that waits for nothing but its turn."""
    for _ in range(count):
        await asyncio.sleep(0)


async def follow(steps: deque[Step]) -> None:
    """Meet the next steps of a script, up to its end or its first error."""
    while steps:
        step = steps.popleft()
        if isinstance(step, Gate):
            await step.wait()
        else:
            raise step


class ScriptedStore(MemoryStore):
    """The twin of the store, with troubles on the way to an operation and on the way back."""

    def __init__(self, config: StoreConfig | None = None, **overrides: Any) -> None:
        super().__init__(config=config or StoreConfig(), **overrides)
        #: Steps on the way to an operation, by its name.
        self.before: defaultdict[str, deque[Step]] = defaultdict(deque)
        #: Steps after it was done: the caller never learns that it was.
        self.after: defaultdict[str, deque[Step]] = defaultdict(deque)
        self.is_away = False
        self.calls: list[str] = []

    async def _do(self, name: str, work: Callable[[], Any]) -> Any:
        self.calls.append(name)
        if self.is_away:
            raise StoreUnavailable("the store is away")
        await follow(self.before[name])
        result = await work()
        await follow(self.after[name])
        return result

    async def heartbeat(self, beat: WorkerBeat, *, ttl_s: float) -> BeatReply:
        work = super().heartbeat
        return await self._do("heartbeat", lambda: work(beat, ttl_s=ttl_s))  # type: ignore[no-any-return]

    async def deregister(self, worker_id: str, incarnation: str) -> None:
        work = super().deregister
        await self._do("deregister", lambda: work(worker_id, incarnation))

    async def snapshot(self) -> StoreSnapshot:
        return await self._do("snapshot", super().snapshot)  # type: ignore[no-any-return]

    async def events(self, cursor: Cursor, *, wait_s: float) -> tuple[Cursor, Sequence[StoreEvent]]:
        work = super().events
        return await self._do("events", lambda: work(cursor, wait_s=wait_s))  # type: ignore[no-any-return]

    async def reserve(self, reservation: Reservation) -> ReserveReply:
        work = super().reserve
        return await self._do("reserve", lambda: work(reservation))  # type: ignore[no-any-return]

    async def finish(self, finished: Sequence[tuple[Reservation | None, str, bytes]]) -> None:
        work = super().finish
        await self._do("finish", lambda: work(finished))

    async def release(self, reservation: Reservation) -> None:
        work = super().release
        await self._do("release", lambda: work(reservation))

    async def claim_key(
        self, key: str, *, owner: str, digest: str, ttl_s: float, is_renewal: bool = False
    ) -> KeyClaim:
        work = super().claim_key
        return await self._do(  # type: ignore[no-any-return]
            "claim_key",
            lambda: work(key, owner=owner, digest=digest, ttl_s=ttl_s, is_renewal=is_renewal),
        )

    async def release_key(self, key: str, *, owner: str, keep_s: float) -> None:
        work = super().release_key
        await self._do("release_key", lambda: work(key, owner=owner, keep_s=keep_s))

    async def blame(self, blamed: Blamed) -> None:
        work = super().blame
        await self._do("blame", lambda: work(blamed))

    async def put_segment(self, location: KvLocation) -> None:
        work = super().put_segment
        await self._do("put_segment", lambda: work(location))

    async def drop_segment(self, segment_id: str) -> None:
        work = super().drop_segment
        await self._do("drop_segment", lambda: work(segment_id))


class MemorySink:
    """A client that keeps what it is sent; scripts say where it is slow, gone or broken."""

    def __init__(self) -> None:
        self.headers: Mapping[str, str] | None = None
        self.body = b""
        self.errors: list[PrfaasError] = []
        #: Steps by the name of the method.
        self.steps: defaultdict[str, deque[Step]] = defaultdict(deque)

    @property
    def is_begun(self) -> bool:
        return self.headers is not None

    async def begin(self, headers: Mapping[str, str]) -> None:
        await follow(self.steps["begin"])
        assert self.headers is None, "begun twice"
        self.headers = headers

    async def write(self, data: bytes) -> None:
        await follow(self.steps["write"])
        assert self.is_begun
        assert not self.errors, "nothing may follow an error event"
        self.body += data

    async def fail(self, error: PrfaasError) -> None:
        assert self.is_begun
        self.errors.append(error)
        await follow(self.steps["fail"])


class MemoryRouter:
    """A router with its twins, and the books of what a test has sent through it."""

    def __init__(
        self,
        *,
        limits: LimitsConfig | None = None,
        policy: Policy | None = None,
        workers: MemoryWorkerClient | None = None,
    ) -> None:
        self.clock = LoopClock()
        self.store = ScriptedStore(clock=self.clock)
        self.workers = workers or MemoryWorkerClient()
        self.limits = limits or LimitsConfig()
        self.metrics = RouterMetrics()
        self.tracker = ViewTracker(
            home_datacenter="west",
            links=(a_link_config(),),
            ttl_s=5.0,
            suspect_s=self.limits.suspect_s,
            clock=self.clock,
        )
        self.recorder = Recorder(self.store, self.metrics, recent_max=1000, pending_max=1000)
        self.dispatcher = assemble(
            router_id="west/router-1",
            limits=self.limits,
            store=self.store,
            workers=self.workers,
            tracker=self.tracker,
            recorder=self.recorder,
            metrics=self.metrics,
            policy=policy or PrfaasPolicy(PrfaasParameters.model_validate(THRESHOLD_ALONE)),
            policy_parameters=THRESHOLD_ALONE if policy is None else {},
            clock=self.clock,
            seeds=Random(0),
        )
        self.services = self.dispatcher.services
        #: Requests that were taken, each of which owes exactly one record.
        self.taken = 0
        self._numbers = count()

    async def register(self, *beats: WorkerBeat) -> None:
        """Make workers known to the store and to the router."""
        for beat in beats:
            await self.store.heartbeat(beat, ttl_s=1e6)
        self.tracker.apply_snapshot(await self.store.snapshot())

    async def serve(self, sink: ClientSink | None = None, **overrides: Any) -> Flight:
        """Serve a request to its end."""
        incoming = self.incoming(**overrides)
        self.taken += 1
        try:
            return await self.dispatcher.dispatch(incoming, sink or MemorySink())
        except PrfaasError:
            # Refused at the door: no flight, no record.
            self.taken -= 1
            raise

    def send(self, sink: ClientSink | None = None, **overrides: Any) -> asyncio.Task[Flight]:
        """Serve a request in the background."""
        return asyncio.ensure_future(self.serve(sink, **overrides))

    def incoming(self, **overrides: Any) -> Incoming:
        """A streamed request with a prompt of 101 tokens, long enough to be offloaded."""
        number = next(self._numbers)
        text = overrides.pop("text", "x" * 101)
        tokens = encode_text(text)
        now_s = self.clock()
        values: dict[str, Any] = {
            "request_id": f"req-{number}",
            "decision_id": f"dec-{number}",
            "client_request_id": None,
            "tokens": tokens,
            "hashes": block_hashes(tokens.head(len(tokens) - 1), block_tokens=BLOCK, scope=SCOPE),
            "block_tokens": BLOCK,
            "scope": SCOPE,
            "sampling": Sampling(output_tokens_max=16),
            "output": an_output(),
            "accepted_s": now_s,
            "parsed_s": now_s,
            "at": 1_700_000_000.0,
            "deadline_s": now_s + 60.0,
        }
        return Incoming(**(values | overrides))

    # --- What is left -------------------------------------------------------------------------

    async def settled(self) -> None:
        """Aborts have ended, and everything is in the store."""
        await self.services.settle()
        assert await self.recorder.flush(), "the store does not take the records"

    async def records(self) -> list[DecisionRecord]:
        """Everything in the store, oldest first."""
        await self.settled()
        stored = await self.store.decisions(count=1000)
        return [decode_record(item.record) for item in reversed(stored)]

    async def record(self) -> DecisionRecord:
        """The only record there is."""
        (record,) = await self.records()
        return record

    async def check(self) -> None:
        """Every request has ended once, and nothing is held for any of them."""
        records = await self.records()
        assert len({record.request_id for record in records}) == len(records) == self.taken
        assert self.recorder.recent() == tuple(reversed(records))
        assert "<Ledger 0 claims>" in repr(self.store), repr(self.store)
        assert not self.workers.held, "a prefill worker still holds a segment"
        assert not self.workers.open_streams
        assert self.dispatcher.in_flight == 0
        assert self.metrics.registry.get_sample_value("prfaas_requests_in_flight") == 0
        for known in self.tracker._members:
            counted = (known.delta_requests, known.delta_tokens)
            assert counted == (0, 0), f"{known.beat.worker_id} is charged with {counted}"
        view = self.tracker.view()
        assert [link.reserved_bytes for link in view.links] == [0]
        assert self.services.retry_budget.used == self.services.retry_budget.waiting == 0
        assert self.services.coalescing.under_way == self.services.coalescing.waiters == 0
        assert repr(self.services.keys) == "<KeyKeeper 0 running>"


# --- Where a request can be held ---------------------------------------------------------------


def on_the_way_to_the_store(router: MemoryRouter, _: MemorySink) -> Gate:
    """Hold the next request before its reservation is made."""
    router.store.before["reserve"].append(gate := Gate())
    return gate


def on_the_way_from_the_store(router: MemoryRouter, _: MemorySink) -> Gate:
    """Hold the next request after its reservation was made."""
    router.store.after["reserve"].append(gate := Gate())
    return gate


def at_the_prefill_worker(router: MemoryRouter, _: MemorySink) -> Gate:
    """Hold the next request where a long prompt is prefilled."""
    router.workers.on_prefill(url_of(EAST_1), gate := Gate())
    return gate


def at_the_decode_worker(router: MemoryRouter, _: MemorySink) -> Gate:
    """Hold the next request where it is decoded."""
    router.workers.on_decode(url_of(DECODE_1), gate := Gate())
    return gate


# --- Parts of a cluster -----------------------------------------------------------------------


def a_link_config(**overrides: Any) -> LinkConfig:
    """East to west, 8 Mbit/s, 20 ms."""
    values: dict[str, Any] = {
        "from_datacenter": "east",
        "to_datacenter": "west",
        "capacity_mbit_per_s": 8,
        "emulated_delay_ms": 20,
    }
    return LinkConfig(**(values | overrides))


def a_busy_beat(
    worker_id: str, *, requests: int = 3, tokens: int = 5000, **overrides: Any
) -> WorkerBeat:
    """A worker with something to do already, so that counting below nothing would show."""
    values: dict[str, Any] = {
        "url": url_of(worker_id),
        "inventory": {"is_full": True},
        "load": Load(queue_requests=requests, queue_tokens=tokens),
        "profile": Profile(
            prefill_s_per_token=0.001,
            prefill_fixed_s=0.01,
            decode_step_s=0.02,
            kv_bytes_per_token=1000,
            kv_state_bytes=50_000,
        ),
    }
    return a_beat(worker_id, **(values | overrides))


def a_fleet_of_beats(*, can_resume: bool = False) -> tuple[WorkerBeat, ...]:
    """
    Three prefill and two decode workers, each kind in a clear order of preference.

    Decode workers that cannot resume are of a version that tells no tokens.
    """
    return (
        a_busy_beat(EAST_1, tokens=100),
        a_busy_beat(EAST_2, tokens=20_000),
        a_busy_beat(WEST_1, tokens=100),
        a_busy_beat(DECODE_1, requests=1, tokens=0, can_resume=can_resume),
        a_busy_beat(DECODE_2, requests=2, tokens=0, can_resume=can_resume),
    )


@asynccontextmanager
async def a_router(*, can_resume: bool = False, **overrides: Any) -> AsyncIterator[MemoryRouter]:
    """A router with five workers; at the end nothing may be held for anybody."""
    router = MemoryRouter(**overrides)
    await router.register(*a_fleet_of_beats(can_resume=can_resume))
    yield router
    await router.check()


class LogBook:
    """Stands in for a module's logger; keeps (level, event, fields)."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, dict[str, Any]]] = []

    def is_enabled_for(self, level: int) -> bool:
        """It keeps lines of every level."""
        del level
        return True

    def __getattr__(self, level: str) -> Callable[..., None]:
        def write(event: str, **fields: Any) -> None:
            self.events.append((level, event, fields))

        return write
