"""Whatever workers and clients do: each request ends once, nobody gets a wrong byte, nothing is held."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from output_builders import ALIVE, DONE, a_failure, report, text_of, the_end, told
from router_builders import (
    MemoryRouter,
    MemorySink,
    a_busy_beat,
    a_few_turns,
    a_fleet_of_beats,
)

from controlplane.config import LimitsConfig
from controlplane.domain.tokens import TokenIds
from controlplane.edge.sink import WholeSink
from controlplane.errors import (
    InternalError,
    KeyInUse,
    KeyMismatch,
    RequestQuarantined,
    WorkerLost,
    WorkerRefused,
    WorkerTimeout,
    WorkerUnreached,
)
from controlplane.router.flight import Flight
from controlplane.router.memory_workers import (
    Frame,
    MemoryDecodeStream,
    MemoryWorkerClient,
    StreamStep,
)
from controlplane.router.sink import ClientLeftError
from controlplane.wire import DecodeJob, KvLocation, OutputShape, PrefillJob, Sampling

PROMPT_TOKENS = 101
LIMITS = LimitsConfig(
    redispatch_max=2,
    migrations_max=2,
    retry_floor=1,
    retry_pause_s=0.1,
    coalesce_tokens_min=64,
    coalesce_wait_s=1.0,
)

Error = Literal["lost", "timeout", "refused", "unreached"]
ERRORS: dict[Error, Exception] = {
    "lost": WorkerLost("reset"),
    "timeout": WorkerTimeout("silent"),
    "refused": WorkerRefused("full"),
    "unreached": WorkerUnreached("nobody there"),
}


@dataclass(frozen=True)
class DecodeScript:
    """What one decode job meets."""

    #: The job itself fails.
    error: Error | None = None
    #: Frames that come before it breaks; None if it does not.
    breaks_after: int | None = None
    #: How it breaks: an error of the connection, a failure frame, or just the end.
    breaks_with: str | None = "lost"
    #: Frames that arrive together.
    batch: int = 1
    #: The process is over afterwards.
    dies: bool = False


@dataclass(frozen=True)
class Request:
    """What one client does."""

    output_tokens: int
    is_stream: bool = True
    seed: int | None = None
    #: It leaves at this write.
    leaves_at: int | None = None
    #: It leaves after so many turns of the loop.
    leaves_after: int | None = None
    key: str | None = None


@dataclass
class Scripts:
    """What happens, in order; when it is used up everything goes well."""

    prefills: list[Error | None] = field(default_factory=list)
    decodes: list[DecodeScript] = field(default_factory=list)


def oracle(output_tokens: int) -> list[int]:
    """The output of every prompt of this test."""
    return [100 + number for number in range(output_tokens)]


class OracleWorkers(MemoryWorkerClient):
    """Workers that make the oracle's output from wherever they are told to go on."""

    def __init__(self, scripts: Scripts, can_resume: dict[str, bool]) -> None:
        super().__init__()
        self._scripts = scripts
        self._can_resume = can_resume

    async def prefill(self, url: str, job: PrefillJob, tokens: TokenIds) -> KvLocation:
        error = self._scripts.prefills.pop(0) if self._scripts.prefills else None
        await asyncio.sleep(0)
        self.on_prefill(url, *([] if error is None else [ERRORS[error]]))
        return await super().prefill(url, job, tokens)

    async def decode(self, url: str, job: DecodeJob, tokens: TokenIds) -> MemoryDecodeStream:
        script = self._scripts.decodes.pop(0) if self._scripts.decodes else DecodeScript()
        await asyncio.sleep(0)
        resumed = job.resumed_tokens
        output = oracle(job.sampling.output_tokens_max)
        assert len(tokens) == PROMPT_TOKENS + resumed, "a gap, or a token too many"
        assert tokens.to_list()[PROMPT_TOKENS:] == output[:resumed], "a wrong token"
        can_resume = self._can_resume[url]
        assert can_resume or not resumed, "asked to go on with what it does not know"
        frames = self._frames(job, output, can_tell=can_resume)
        steps = _broken(frames, script)
        if script.dies:
            self.dead.add((url, job.incarnation))
        errors = [] if script.error is None else [ERRORS[script.error]]
        self.on_decode(url, *errors, stream=steps)
        return await super().decode(url, job, tokens)

    @staticmethod
    def _frames(job: DecodeJob, output: Sequence[int], *, can_tell: bool) -> list[Frame]:
        rest = output[job.resumed_tokens :]
        if not can_tell:
            return [
                *((the_end(text_of(token)) for token in rest) if job.output.is_stream else ()),
                the_end(DONE if job.output.is_stream else text_of(*output) + DONE),
                report(len(output)),
            ]
        if job.output.is_stream:
            return [*(told(token) for token in rest), the_end(), report(len(output))]
        silent = [(kind, payload[:8]) for kind, payload in (told(token) for token in rest)]
        return [*silent, the_end(text_of(*output) + DONE), report(len(output))]


def _broken(frames: list[Frame], script: DecodeScript) -> list[StreamStep]:
    steps: list[StreamStep] = [[ALIVE]]
    kept = frames if script.breaks_after is None else frames[: script.breaks_after]
    steps += [kept[at : at + script.batch] for at in range(0, len(kept), script.batch)]
    if script.breaks_after is not None and script.breaks_after < len(frames):
        match script.breaks_with:
            case "lost":
                steps.append(ERRORS["lost"])
            case "timeout":
                steps.append(ERRORS["timeout"])
            case None:
                pass
            case code:
                steps.append([a_failure(code)])
    return steps


class LeavingSink(MemorySink):
    """A client that may leave before one of the writes."""

    def __init__(self, leaves_at: int | None) -> None:
        super().__init__()
        self._left = leaves_at
        self.has_left = False

    async def write(self, data: bytes) -> None:
        if self._left == 0:
            self.has_left = True
            raise ClientLeftError
        if self._left is not None:
            self._left -= 1
        await super().write(data)


Sink: TypeAlias = LeavingSink | WholeSink

errors: SearchStrategy[Error | None] = st.sampled_from(
    (None, None, None, "lost", "timeout", "refused", "unreached")
)
decode_scripts = st.builds(
    DecodeScript,
    error=st.sampled_from((None, None, None, None, None, "lost", "refused", "unreached")),
    breaks_after=st.none() | st.integers(0, 8),
    breaks_with=st.sampled_from(
        ("lost", "timeout", None, "draining", "internal_error", "link_down", "segment_stale")
    ),
    batch=st.integers(1, 4),
    dies=st.booleans(),
)
requests = st.builds(
    Request,
    output_tokens=st.integers(1, 6),
    is_stream=st.booleans(),
    seed=st.sampled_from((None, None, None, 7)),
    leaves_at=st.none() | st.integers(0, 6),
    leaves_after=st.none() | st.integers(0, 40),
    key=st.sampled_from((None, "k")),
)


@given(
    requests=st.lists(requests, min_size=1, max_size=4),
    prefills=st.lists(errors, max_size=8),
    decodes=st.lists(decode_scripts, max_size=12),
    can_resume=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_every_request_ends_once_with_the_oracle_s_bytes_or_an_explicit_error(
    requests: list[Request],
    prefills: list[Error | None],
    decodes: list[DecodeScript],
    can_resume: tuple[bool, bool, bool],
) -> None:
    asyncio.run(_fly(requests, Scripts(list(prefills), list(decodes)), can_resume))


async def _fly(
    requests: list[Request], scripts: Scripts, can_resume: tuple[bool, bool, bool]
) -> None:
    names = ("west/d1", "west/d2", "west/d3")
    by_url = {f"http://{name}": can for name, can in zip(names, can_resume, strict=True)}
    router = MemoryRouter(limits=LIMITS, workers=OracleWorkers(scripts, by_url))
    beats = [beat for beat in a_fleet_of_beats() if beat.role == "prefill"]
    for number, name in enumerate(names):
        beats.append(a_busy_beat(name, requests=number, can_resume=can_resume[number]))
    await router.register(
        *(
            beat.model_copy(update={"incarnation": beat.worker_id.replace("/", "-")})
            for beat in beats
        )
    )
    sinks: list[Sink] = [
        LeavingSink(request.leaves_at) if request.is_stream else WholeSink() for request in requests
    ]
    tasks = [_send(router, request, sink) for request, sink in zip(requests, sinks, strict=True)]
    for turn in range(2000):
        for request, task in zip(requests, tasks, strict=True):
            if request.leaves_after == turn:
                task.cancel()
        if all(task.done() for task in tasks):
            break
        await a_few_turns(1)
        router.clock.advance(0.002)
    for request, sink, task in zip(requests, sinks, tasks, strict=True):
        assert task.done(), "it goes on and on"
        _check(request, sink, task)
    router.taken = len(await router.records())
    assert router.taken <= len(requests)
    await router.check()


def _send(router: MemoryRouter, request: Request, sink: Sink) -> asyncio.Task[Flight]:
    return router.send(
        sink,
        output=OutputShape(
            kind="completion",
            response_id="r",
            model="m",
            created=0,
            is_stream=request.is_stream,
        ),
        sampling=Sampling(
            temperature=0.5, seed=request.seed, output_tokens_max=request.output_tokens
        ),
        idempotency_key=request.key,
        digest=f"{request.output_tokens}",
    )


def _check(request: Request, sink: Sink, task: asyncio.Task[Flight]) -> None:
    whole = text_of(*oracle(request.output_tokens)) + DONE
    assert whole.startswith(sink.body), "a wrong byte"
    told_errors = sink.errors if isinstance(sink, MemorySink) else []
    if task.cancelled():
        assert not told_errors
        return
    refused = task.exception()
    if refused is not None:
        assert isinstance(refused, KeyInUse | KeyMismatch | RequestQuarantined)
        assert sink.body == b""
        return
    error = task.result().error
    assert not isinstance(error, InternalError), "a bug"
    if error is None:
        has_left = isinstance(sink, LeavingSink) and sink.has_left
        assert sink.body == whole or has_left
    elif isinstance(sink, MemorySink):
        assert told_errors == ([error] if sink.is_begun else [])
        assert DONE not in sink.body
