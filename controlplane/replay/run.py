"""Replays a trace under one policy, from its first request to the end of its last."""

from __future__ import annotations

import asyncio
import gc
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Any, Final, TypeAlias

from controlplane.errors import PrfaasError
from controlplane.replay.loop import VirtualLoop, finish, virtual_loop
from controlplane.replay.prompts import CountedTokens, block_names
from controlplane.replay.results import PolicyResult, Slo, Tally
from controlplane.replay.spec import WorldSpec
from controlplane.replay.traces.request import Trace, TraceRequest
from controlplane.replay.world import World, WorldOptions, build_world, start
from controlplane.router.incoming import Incoming
from controlplane.router.sink import ClientSink
from controlplane.wire import OutputShape, Sampling
from policies.registry import load_policy

#: Objects between two looks for garbage: a fifth of the time goes into them by default, and what a
#: replay leaves behind is freed without them, but for a few cycles of each request.
_COLLECTED_AFTER: Final = 50_000

#: Requests between two calls of whoever shows progress.
_TELL_EVERY: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions:
    """How a trace is replayed."""

    seed: int = 0
    #: Times are divided by it: 2 is twice the load.
    speed: float = 1.0
    #: Only the first so many requests; None is all.
    requests: int | None = None
    #: So many clients, each with its next request when the last one has ended, whatever the times
    #: in the trace; None keeps to the times.
    clients: int | None = None
    slo: Slo = field(default_factory=Slo)
    world: WorldOptions = field(default_factory=WorldOptions)
    #: Length of a step of the series, seconds, at first.
    step_s: float = 1.0
    #: Throughput is counted from then on, virtual seconds.
    warmup_s: float = 0.0
    #: No new requests from then on, virtual seconds; None is until the trace ends.
    until_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedPolicy:
    """A policy to replay under, by its name in the registry."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    #: For tables; the name where two differ by parameters only.
    label: str = ""

    @property
    def shown(self) -> str:
        """For people."""
        return self.label or self.name


#: Told of progress: requests that have ended, and virtual seconds.
OnProgress: TypeAlias = Callable[[int, float], None]


def replay(
    trace: Trace,
    spec: WorldSpec,
    policy: NamedPolicy,
    options: ReplayOptions,
    *,
    on_progress: OnProgress | None = None,
) -> PolicyResult:
    """
    Replay a trace under one policy.

    Raises:
        TraceError: The trace is broken; nothing of what came before is returned.
        policies.registry.PolicyError: Of the policy's name or parameters.
    """
    loop = virtual_loop(options.seed, has_hosts=False)
    collected = gc.get_threshold()
    gc.set_threshold(_COLLECTED_AFTER, *collected[1:])
    try:
        return loop.run_until_complete(_Run(loop, trace, spec, policy, options, on_progress).run())
    finally:
        finish(loop)
        gc.set_threshold(*collected)


class _Sink(ClientSink):
    """A client that reads everything at once and keeps nothing."""

    __slots__ = ("_is_begun",)

    def __init__(self) -> None:
        self._is_begun = False

    @property
    def is_begun(self) -> bool:
        return self._is_begun

    async def begin(self, headers: Mapping[str, str]) -> None:
        del headers
        self._is_begun = True

    async def write(self, data: bytes) -> None:
        pass

    async def fail(self, error: PrfaasError) -> None:
        pass


_SHAPE: Final = OutputShape(
    kind="completion", response_id="cmpl-replay", model="replay", created=0, is_stream=True
)


@lru_cache(maxsize=4096)
def _sampling(output_tokens: int) -> Sampling:
    return Sampling(temperature=0.0, output_tokens_max=output_tokens)


class _Run:
    """One policy's replay."""

    def __init__(
        self,
        loop: VirtualLoop,
        trace: Trace,
        spec: WorldSpec,
        policy: NamedPolicy,
        options: ReplayOptions,
        on_progress: OnProgress | None,
    ) -> None:
        self._loop = loop
        self._trace = trace
        self._policy = policy
        self._options = options
        self._on_progress = on_progress
        self._tally = Tally(options.slo, step_s=options.step_s, warmup_s=options.warmup_s)
        self._world: World = build_world(
            loop,
            spec,
            policy=load_policy(policy.name, policy.parameters),
            parameters=policy.parameters,
            tally=self._tally,
            seed=options.seed,
            options=options.world,
        )
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._number = 0
        self._began_s = 0.0

    async def run(self) -> PolicyResult:
        """All of it."""
        await start(self._world)
        self._began_s = self._loop.time()
        requests = islice(self._trace.requests(self._options.seed), self._options.requests)
        if self._options.clients is None:
            await self._open(requests)
        else:
            await self._closed(requests, self._options.clients)
        result = self._tally.result(
            self._policy.shown, links=self._world.link_uses(), roles=self._world.role_uses()
        )
        await self._world.stop()
        self._check()
        return result

    def _check(self) -> None:
        """
        Whether all ended as it should.

        Raises:
            RuntimeError: A bug: something failed that nobody waited for, or a request got lost.
        """
        if self._loop.uncaught:
            raise RuntimeError(f"a replay failed behind its requests: {self._loop.uncaught[:3]}")
        tally = self._tally
        if tally.ended != tally.requests:
            raise RuntimeError(f"{tally.requests} requests came and {tally.ended} ended")

    async def _open(self, requests: Iterator[TraceRequest]) -> None:
        """Requests come when the trace says."""
        loop, speed = self._loop, self._options.speed
        until_s = self._until_s
        for request in requests:
            if request.at_s / speed >= until_s:
                break
            wait_s = self._began_s + request.at_s / speed - loop.time()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            self._in_flight += 1
            self._idle.clear()
            task = loop.create_task(self._serve(request))
            task.add_done_callback(self._one_less)
        if self._in_flight:
            await self._idle.wait()

    @property
    def _until_s(self) -> float:
        return math.inf if self._options.until_s is None else self._options.until_s

    def _one_less(self, task: asyncio.Task[None]) -> None:
        self._in_flight -= 1
        if not self._in_flight:
            self._idle.set()
        if not task.cancelled():
            task.result()

    async def _closed(self, requests: Iterator[TraceRequest], clients: int) -> None:
        """Each client has its next request when its last one has ended."""

        async def client() -> None:
            for request in requests:
                if self._loop.time() - self._began_s >= self._until_s:
                    break
                await self._serve(request)

        tasks = [self._loop.create_task(client()) for _ in range(clients)]
        try:
            await asyncio.gather(*tasks)
        finally:
            # The first error is told as it is; nobody needs what the others would have said.
            for task in tasks:
                task.cancel()

    async def _serve(self, request: TraceRequest) -> None:
        """One request, from its client's side."""
        self._number += 1
        request_id = f"r{self._number}"
        now_s, world, tally = self._loop.time(), self._world, self._tally
        hashes = block_names(
            request.blocks, tokens=request.input_tokens, block_tokens=world.spec.block_tokens
        )
        incoming = Incoming(
            request_id=request_id,
            decision_id=request_id,
            client_request_id=None,
            tokens=CountedTokens(request.input_tokens),
            hashes=hashes,
            block_tokens=world.spec.block_tokens,
            scope="replay",
            sampling=_sampling(request.output_tokens),
            output=_SHAPE,
            accepted_s=now_s,
            parsed_s=now_s,
            at=now_s,
            deadline_s=now_s + world.options.request_timeout_s,
            digest=request_id,
        )
        tally.arrived(now_s - self._began_s)
        world.hashes[request_id] = hashes
        try:
            await world.dispatcher.dispatch(incoming, _Sink())
        except PrfaasError as error:
            tally.refused(request_id, error.code, self._loop.time())
        finally:
            del world.hashes[request_id]
        if self._on_progress is not None and tally.ended % _TELL_EVERY == 0:
            self._on_progress(tally.ended, self._loop.time())
