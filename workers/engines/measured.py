"""One engine server under measurement: what it is, and how long single requests to it take."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from controlplane.errors import ConfigError, PrfaasError, WorkerLost
from controlplane.wire import Sampling
from workers.engines.remote.facts import read_json
from workers.engines.remote.http import EngineHttp
from workers.engines.remote.legs import Leg, NixlHandoff, Prompt, plain_leg
from workers.engines.remote.output import VllmReader
from workers.engines.remote.snapshot import Snapshot, vllm_snapshot
from workers.profiling.server import PromptCounts, ServerFull

_LOOK_S: Final = 5.0
#: Ids below are in any vocabulary, and no special tokens of the common ones.
_IDS: Final = range(300, 2000)
#: Longest for one request.
_REQUEST_S: Final = 600.0
#: A batch of which some wait, and nobody makes progress for so long, has no room in the server.
_FULL_S: Final = 2.0
_PAUSE_S: Final = 0.2


class _Batch:
    """Streams that decode side by side: tokens from when the last one has begun."""

    def __init__(self, size: int, *, steps: int) -> None:
        """
        Args:
            size: Streams.
            steps: That are measured.
        """
        self.size = size
        self.started = 0
        self.tokens = 0
        #: When the last one had begun, and when the last token that counts had come; seconds.
        self._began_s = self._ended_s = 0.0
        self._tokens_max = steps * size
        self.is_over = asyncio.Event()

    def token(self, *, is_first: bool) -> None:
        """One more."""
        if self.is_over.is_set():
            return
        if is_first:
            self.started += 1
            self._began_s = time.perf_counter()
        elif self.started == self.size:
            self.tokens += 1
            self._ended_s = time.perf_counter()
            if self.tokens >= self._tokens_max:
                self.is_over.set()

    def step_s(self) -> float:
        """
        Seconds in which each stream gets a token, mean.

        Raises:
            ServerFull: The first ones had ended before the last one began.
        """
        if self.started < self.size or self.tokens < self.size:
            raise ServerFull
        return (self._ended_s - self._began_s) * self.size / self.tokens


class MeasuredVllm:
    """A vLLM server that does nothing else meanwhile: a `MeasurableServer`."""

    def __init__(self, http: EngineHttp, *, model: str, version: str, context_tokens: int) -> None:
        """
        Args:
            http: To it; closed by its owner.
            model: By the server's name for it.
            version: Of vLLM.
            context_tokens: Longest that it takes.
        """
        self._http = http
        self.model = model
        self.engine = f"vllm {version}"
        self.context_tokens = context_tokens
        #: Prompt tokens that were sent.
        self.sent_tokens = 0
        # Of the process: no two runs may find each other's prefixes.
        self._random = random.Random()

    @classmethod
    @asynccontextmanager
    async def at(cls, url: str, api_key: str, model: str | None) -> AsyncIterator[MeasuredVllm]:
        """
        The server at a URL; see `find` for the rest.

        Args:
            url: Base of its API, without `/v1`.
            api_key: Sent as bearer token; empty for none.
            model: Which of its models; None for its only one.
        """
        http = EngineHttp(url, api_key=api_key)
        try:
            yield await cls.find(http, model)
        finally:
            await http.close()

    @classmethod
    async def find(cls, http: EngineHttp, model: str | None) -> MeasuredVllm:
        """
        Ask a server what it is.

        Args:
            http: To it.
            model: Which of its models; None for its only one.

        Raises:
            ConfigError: It is not vLLM, serves no such model, or is busy; says what to do.
            PrfaasError: It does not answer.
        """
        where = f"the engine at {http.url}"
        version = (await read_json(http, "/version", where)).get("version")
        if not isinstance(version, str):
            raise ConfigError(f"{where} is not vLLM: GET /version says no version")
        entries = (await read_json(http, "/v1/models", where)).get("data", ())
        lengths = {
            str(entry["id"]): entry["max_model_len"]
            for entry in entries
            if isinstance(entry, dict) and isinstance(entry.get("max_model_len"), int)
        }
        if model is None and len(lengths) > 1:
            raise ConfigError(
                f"{where} serves {', '.join(sorted(lengths))}: say which with --model"
            )
        name = model or next(iter(lengths), "")
        if name not in lengths:
            raise ConfigError(
                f"{where} serves {', '.join(sorted(lengths)) or 'nothing'}, no {name!r}"
            )
        server = cls(http, model=name, version=version, context_tokens=lengths[name])
        seen = await server._look()
        if seen.running or seen.waiting:
            raise ConfigError(
                f"{where} has {seen.running} requests running and {seen.waiting} waiting: a profile "
                "is of a server that does nothing else. Take it out of service first"
            )
        return server

    async def counts(self) -> PromptCounts | None:
        """See the contract."""
        sources = (await self._look()).sources
        return None if sources is None else PromptCounts(sources.total, sources.cached)

    async def _look(self) -> Snapshot:
        return vllm_snapshot(await self._http.get("/metrics", timeout_s=_LOOK_S))

    async def prefill_s(self, tokens: int) -> float:
        """See the contract."""
        leg = plain_leg(self._prompt(tokens), _greedy(1))
        took_s: float | None = None
        async with _bounded():
            began_s = time.perf_counter()
            async for event in self._http.events(leg.path, leg.body, leg.headers):
                _check(event)
                took_s = took_s or time.perf_counter() - began_s
        if took_s is None:
            raise WorkerLost("the engine answered without a token")
        return took_s

    async def step_s(self, batch: int, *, context_tokens: int, steps: int) -> float:
        """See the contract."""
        run = _Batch(batch, steps=steps)
        output = max(2, self.context_tokens - context_tokens - 1)
        legs = [plain_leg(self._prompt(context_tokens), _greedy(output)) for _ in range(batch)]
        try:
            async with _bounded(), asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._stream(leg, run)) for leg in legs]
                await self._until_over(run)
                for task in tasks:
                    task.cancel()
        except* PrfaasError as errors:
            raise errors.exceptions[0] from None
        await self._until_idle()
        return run.step_s()

    async def kv_bytes(self, tokens: int, decode: MeasuredVllm) -> int:
        """See the contract."""
        handoff = NixlHandoff()
        prompt = self._prompt(tokens)
        before = (await decode._look()).moved_bytes_total
        leg = handoff.prefill_leg(prompt, handoff.begin())
        async with _bounded():
            try:
                handle = handoff.handle(await self._http.post(leg.path, leg.body, leg.headers))
            except ValueError as error:
                raise ConfigError(str(error)) from error
            leg = handoff.decode_leg(prompt, handle, _greedy(1))
            decode.sent_tokens += tokens
            async for event in decode._http.events(leg.path, leg.body, leg.headers):
                _check(event)
        moved = (await decode._look()).moved_bytes_total - before
        if moved <= 0:
            raise ConfigError(
                f"no KV crossed from {self._http.url} to {decode._http.url}: both need the "
                "NixlConnector, version 0.11 or newer"
            )
        return moved

    async def _stream(self, leg: Leg, run: _Batch) -> None:
        reader, is_first = VllmReader(), True
        body = {**leg.body, "ignore_eos": True}
        async for event in self._http.events(leg.path, body, leg.headers):
            _check(event)
            for _ in reader.read(event):
                run.token(is_first=is_first)
                is_first = False
        run.is_over.set()

    async def _until_over(self, run: _Batch) -> None:
        """Wait until enough tokens have come, one stream has ended, or some will never begin."""
        started = 0
        while not run.is_over.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(_FULL_S):
                    await run.is_over.wait()
            if run.started == started < run.size:
                seen = await self._look()
                # One that prefills is running, and not waiting.
                if seen.waiting and seen.running <= started:
                    return
            started = run.started

    async def _until_idle(self) -> None:
        """Wait until it has aborted what was left: that would be in the way of what comes next."""
        async with _bounded():
            # Nothing tells of it but its metrics.
            while (seen := await self._look()).running or seen.waiting:  # noqa: ASYNC110
                await asyncio.sleep(_PAUSE_S)

    def _prompt(self, tokens: int) -> Prompt:
        self.sent_tokens += tokens
        name = f"prfaas-profile-{self._random.getrandbits(64):x}"
        ids = self._random.choices(_IDS, k=tokens)
        return Prompt(request_id=name, model=self.model, tokens=ids, scope=name)


@asynccontextmanager
async def _bounded() -> AsyncIterator[None]:
    """Of one request, or one batch of them."""
    try:
        async with asyncio.timeout(_REQUEST_S):
            yield
    except TimeoutError as error:
        raise WorkerLost(
            f"the engine took longer than {_REQUEST_S:g} s for one measurement"
        ) from error


def _greedy(output_tokens: int) -> Sampling:
    return Sampling(temperature=0, output_tokens_max=output_tokens)


def _check(event: dict[str, object]) -> None:
    if "error" in event:
        raise WorkerLost(f"the engine answered with an error: {event['error']}")
