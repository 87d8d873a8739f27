"""
Where the router's time goes: CPU of each step of a request, measured alone in this process.

The router is a whole one, but nobody listens to it through HTTP: each step is called by itself.
Workers and store are the real processes of a deployment, so that of a round trip only our side is
counted. Prints one line of JSON: microseconds of CPU by step.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from statistics import median
from typing import Final, TypeAlias

import uvloop

from benchmarks.cells import SIZES, Size, bodies
from benchmarks.fleet import WORKERS, bench_fleet, facts_of
from controlplane.app import RunningRouter, run_router
from controlplane.domain.decision import RequestFeatures
from controlplane.edge.requests import ParsedRequest, parse_request
from controlplane.edge.sink import WholeSink
from controlplane.observe.logs import configure_logs
from controlplane.router.claims import Claim
from controlplane.router.incoming import Incoming
from controlplane.router.records import DecisionRecord
from controlplane.store.redis_store import RedisStore
from controlplane.wire import DecodeJob, KvLocation, OutputShape, PrefillJob, Reservation

Step: TypeAlias = Callable[[int], Awaitable[None]]

#: Calls of a step under way at the same time, as in the cells with many connections.
_CONCURRENCY: Final = 32
_REPEATS: Final = 5
_READY_S: Final = 10.0


class Steps:
    """The steps of a request, each to be called alone."""

    def __init__(self, router: RunningRouter, size: Size) -> None:
        fleet = bench_fleet(size)
        self._router = router
        self._services = router.services
        self._facts = facts_of(size, fleet)
        self._model = fleet.model.name
        self._bodies = bodies(size, self._model, is_stream=False)
        self._parsed = [parse_request("chat", body, self._facts) for body in self._bodies]
        view = router.tracker.view()
        site = "west" if size.name == "short" else "east"
        prefill, decode = view.worker(f"{site}/prefill-0"), view.worker("west/decode-0")
        assert prefill is not None
        assert decode is not None
        self._prefill, self._decode = prefill, decode
        self._link = None if site == "west" else f"{site}>west"
        self._location: KvLocation | None = None
        self._record: DecisionRecord | None = None

    def all(self) -> dict[str, Step]:
        """By name, in the order of a request's life."""
        return {
            "parse, tokenize, hash": self.parse,
            "match prefixes, decide, claim": self.decide,
            "reserve (round trip)": self.reserve,
            "prefill job (round trip)": self.start_prefill,
            "decode job, relay": self.decode,
            "record, log, measure, finish (batched)": self.finish,
            "whole flight": self.fly,
            "whole flight, streamed": self.fly_streamed,
        }

    async def parse(self, number: int) -> None:
        """Body to tokens and hashes."""
        parse_request("chat", self._bodies[number % len(self._bodies)], self._facts)

    async def decide(self, number: int) -> None:
        """Hits, view, policy, and the claims that make the next view another one."""
        tracker = self._router.tracker
        parsed = self._pick(number)
        hits = tracker.match(parsed.hashes, block_tokens=self._facts[self._model].block_tokens)
        features = RequestFeatures(
            request_id="req-bench",
            model=self._model,
            input_tokens=len(parsed.tokens),
            output_tokens_max=parsed.sampling.output_tokens_max,
            sequence=number,
            prefix_hits=hits,
        )
        self._services.decide(features)
        claim = Claim(
            prefill_worker=self._prefill.worker_id,
            prefill_incarnation=self._prefill.incarnation,
            prefill_tokens=100,
            decode_worker=self._decode.worker_id,
            decode_incarnation=self._decode.incarnation,
            link=self._link,
            link_bytes=1000 if self._link else 0,
        )
        tracker.claim(claim)
        tracker.prefill_done(claim)
        tracker.decode_done(claim)

    async def reserve(self, number: int) -> None:
        """One claim in the store."""
        await self._services.store.reserve(self._reservation(number))

    async def start_prefill(self, number: int) -> None:
        """A prefill job to its location."""
        parsed = self._pick(number)
        job = PrefillJob(
            request_id=f"req-bench.{number}",
            incarnation=self._prefill.incarnation,
            fingerprint=self._prefill.fingerprint,
            scope=self._facts[self._model].scope,
            token_width_bytes=parsed.tokens.width_bytes,
            destination=self._decode.datacenter,
            deadline_s=300.0,
        )
        self._location = await self._services.workers.prefill(self._prefill.url, job, parsed.tokens)

    async def decode(self, number: int) -> None:
        """A decode job to the end of its frames."""
        assert self._location is not None
        parsed = self._pick(number)
        job = DecodeJob(
            request_id=f"req-bench.{number}",
            incarnation=self._decode.incarnation,
            scope=self._facts[self._model].scope,
            token_width_bytes=parsed.tokens.width_bytes,
            location=self._location,
            sampling=parsed.sampling,
            output=self._shape(is_stream=False),
            deadline_s=300.0,
        )
        stream = await self._services.workers.decode(self._decode.url, job, parsed.tokens)
        while await stream.frames():
            pass
        stream.close()

    async def finish(self, number: int) -> None:
        """A finished record: kept, logged, measured, written with its reservation's release."""
        if self._record is None:
            self._record = self._router.recorder.recent()[0]
        record = replace(self._record, decision_id=f"dec-{number}-{time.time_ns()}")
        self._services.finished(record, self._reservation(number))

    async def fly(self, number: int) -> None:
        """All of it but HTTP towards the client and parsing."""
        await self._fly(number, is_stream=False)

    async def fly_streamed(self, number: int) -> None:
        """The same with a streamed answer."""
        await self._fly(number, is_stream=True)

    async def _fly(self, number: int, *, is_stream: bool) -> None:
        now_s = self._services.clock()
        parsed, facts = self._pick(number), self._facts[self._model]
        unique = f"{number}-{time.time_ns()}"
        incoming = Incoming(
            request_id=f"req-{unique}",
            decision_id=f"dec-{unique}",
            client_request_id=None,
            tokens=parsed.tokens,
            hashes=parsed.hashes,
            block_tokens=facts.block_tokens,
            scope=facts.scope,
            sampling=parsed.sampling,
            output=self._shape(is_stream=is_stream),
            accepted_s=now_s,
            parsed_s=now_s,
            at=time.time(),
            deadline_s=asyncio.get_running_loop().time() + 300.0,
        )
        flight = await self._router.dispatcher.dispatch(incoming, WholeSink())
        assert flight.error is None, flight.error

    def _pick(self, number: int) -> ParsedRequest:
        return self._parsed[number % len(self._parsed)]

    def _reservation(self, number: int) -> Reservation:
        return Reservation(
            reservation_id=f"req-bench.{number}",
            owner=self._services.router_id,
            ttl_s=10.0,
            prefill_ttl_s=10.0,
            prefill_worker=self._prefill.worker_id,
            prefill_incarnation=self._prefill.incarnation,
            prefill_tokens=100,
            prefill_requests_max=self._prefill.requests_max,
            decode_worker=self._decode.worker_id,
            decode_incarnation=self._decode.incarnation,
            decode_requests_max=self._decode.requests_max,
            link=self._link,
            link_bytes=1000 if self._link else 0,
        )

    def _shape(self, *, is_stream: bool) -> OutputShape:
        return OutputShape(
            kind="chat",
            response_id="chatcmpl-bench",
            model=self._model,
            created=0,
            is_stream=is_stream,
        )


async def _cpu_us(router: RunningRouter, step: Step, count: int) -> float:
    """Microseconds of CPU for one call; what a call leaves to the recorder is counted too."""
    taken: list[float] = []
    for _ in range(_REPEATS):
        began_s = time.process_time()
        numbers = iter(range(count))
        await asyncio.gather(*(_each(step, numbers) for _ in range(_CONCURRENCY)))
        await router.recorder.flush()
        taken.append((time.process_time() - began_s) / count * 1e6)
    return median(taken)


async def _each(step: Step, numbers: Iterator[int]) -> None:
    """Call a step for the next number until there are none; others take from the same numbers."""
    for number in numbers:
        await step(number)


async def _ready(router: RunningRouter) -> None:
    async with asyncio.timeout(_READY_S):
        while len(router.tracker.view().workers) < len(WORKERS):  # noqa: ASYNC110 - nothing to wait on
            await asyncio.sleep(0.02)


async def _measure(size_name: str, redis_url: str, count: int) -> None:
    size = next(size for size in SIZES if size.name == size_name)
    fleet = bench_fleet(size)
    store = RedisStore(redis_url, fleet=fleet.name, config=fleet.store)
    async with run_router(fleet, store) as router:
        await _ready(router)
        steps = Steps(router, size)
        await steps.fly(0)
        result = {name: await _cpu_us(router, step, count) for name, step in steps.all().items()}
    await store.close()
    print(json.dumps(result), flush=True)


def main() -> None:
    """Measure the steps of one size: `SIZE REDIS_URL COUNT`."""
    size_name, redis_url, count = sys.argv[1:]
    configure_logs("json", "info")
    uvloop.run(_measure(size_name, redis_url, int(count)))


if __name__ == "__main__":
    main()
