"""
`WorkerClient` without a network: the twin of `http_workers.py`, scripted for each worker.

A script says what one call meets on its way: a `Gate` where it waits until it is let through, an
error that it ends with, and for decode jobs the frames that come. What no script says goes well.
The twin keeps the books that workers would keep: which prefill jobs hold a segment, and which
streams are open.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from controlplane.domain.tokens import TokenIds
from controlplane.errors import WorkerLost, WorkerRefused
from controlplane.wire import (
    DecodeJob,
    DecodeReport,
    FrameKind,
    KvLocation,
    KvManifest,
    PrefillJob,
    PrefillReport,
    PrefixAsk,
    RoleChange,
    RoleReply,
    TransferReport,
)

Frame: TypeAlias = tuple[FrameKind, bytes]


class Gate:
    """A point where callers wait until it is opened; whoever opens it can wait for a caller."""

    def __init__(self) -> None:
        self._reached = asyncio.Event()
        self._open = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Gate {'open' if self._open.is_set() else 'closed'}>"

    async def reached(self) -> None:
        """Return once somebody waits at the gate, or has passed it."""
        await self._reached.wait()

    def open(self) -> None:
        """Let everybody through, now and later."""
        self._open.set()

    async def wait(self) -> None:
        """Wait until the gate is open."""
        self._reached.set()
        await self._open.wait()


CallKind: TypeAlias = Literal["prefill", "abort", "decode", "prefix", "role"]

#: What a call meets on its way: a gate it waits at, or the error it ends with.
Step: TypeAlias = Gate | Exception
#: What a stream brings: frames that arrive together, or a step on the way to the next.
StreamStep: TypeAlias = Step | Sequence[Frame]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call, as it was made."""

    kind: CallKind
    url: str
    #: The id of its job; the life that is meant, of a change of roles.
    request_id: str
    job: PrefillJob | DecodeJob | PrefixAsk | RoleChange | None = None
    tokens: TokenIds | None = None


@dataclass(frozen=True, slots=True)
class _Decode:
    steps: tuple[Step, ...] = ()
    stream: tuple[StreamStep, ...] | None = None


class MemoryDecodeStream:
    """A scripted answer of a decode worker."""

    def __init__(
        self,
        steps: Sequence[StreamStep],
        *,
        on_report: Callable[[], None],
        on_close: Callable[[MemoryDecodeStream], None],
    ) -> None:
        self._steps = deque(steps)
        self._on_report = on_report
        self._on_close = on_close
        self._is_closed = False
        self._is_broken = False

    def __repr__(self) -> str:
        return f"<MemoryDecodeStream {len(self._steps)} steps left>"

    async def frames(self) -> list[Frame]:
        """The next frames; see the contract."""
        while self._steps and not self._is_closed:
            step = self._steps.popleft()
            if isinstance(step, Gate):
                await step.wait()
            elif isinstance(step, Exception):
                self.close()
                raise step
            else:
                if any(kind is FrameKind.REPORT for kind, _ in step):
                    self._on_report()
                return list(step)
        self.close()
        if self._is_broken:
            raise WorkerLost("the connection was closed")
        return []

    @property
    def has_ended(self) -> bool:
        """Whether it was read to its end; see the contract."""
        return self._is_closed and not self._is_broken

    def close(self) -> None:
        """Drop it; see the contract."""
        if not self._is_closed:
            self._is_closed = True
            self._on_close(self)

    def break_off(self) -> None:
        """The connection breaks: whoever reads on is told."""
        self._is_broken = self._is_broken or not self._is_closed
        self.close()


class MemoryWorkerClient:
    """Scripted workers, by URL."""

    def __init__(self) -> None:
        #: Everything that was asked, in order.
        self.calls: list[Call] = []
        #: Prefill jobs that a worker may hold a segment for: sent, not refused, not given up.
        self.held: set[tuple[str, str]] = set()
        #: Streams that neither side has closed.
        self.open_streams: set[MemoryDecodeStream] = set()
        #: Process lives that are over, by URL and incarnation.
        self.dead: set[tuple[str, str]] = set()
        #: Likewise, where only a neighbour that answers tells it from a link that is cut.
        self.dead_behind_relays: set[tuple[str, str]] = set()
        self._is_closed = False
        self._prefills: defaultdict[str, deque[tuple[Step | KvLocation, ...]]] = defaultdict(deque)
        self._decodes: defaultdict[str, deque[_Decode]] = defaultdict(deque)
        self._aborts: defaultdict[str, deque[tuple[Gate, ...]]] = defaultdict(deque)
        self._prefixes: defaultdict[str, deque[tuple[Step | KvLocation, ...]]] = defaultdict(deque)
        self._roles: defaultdict[str, deque[tuple[Step, ...]]] = defaultdict(deque)
        self._probes: defaultdict[str, deque[tuple[Gate, ...]]] = defaultdict(deque)

    def __repr__(self) -> str:
        return (
            f"<MemoryWorkerClient {len(self.calls)} calls, {len(self.held)} segments held, "
            f"{len(self.open_streams)} streams open>"
        )

    # --- Scripts ------------------------------------------------------------------------------

    def on_prefill(self, url: str, *steps: Step | KvLocation) -> None:
        """Script the next prefill at a worker; a location ends it, without one there is a usual."""
        self._prefills[url].append(steps)

    def on_decode(self, url: str, *steps: Step, stream: Sequence[StreamStep] | None = None) -> None:
        """Script the next decode at a worker; without a stream it answers `a_stream()`."""
        self._decodes[url].append(_Decode(steps, None if stream is None else tuple(stream)))

    def on_abort(self, url: str, *gates: Gate) -> None:
        """Script the next abort at a worker."""
        self._aborts[url].append(gates)

    def on_probe(self, url: str, *gates: Gate) -> None:
        """Script the next question whether a worker has died."""
        self._probes[url].append(gates)

    def on_prefix(self, url: str, *steps: Step | KvLocation) -> None:
        """Script the next question for a prefix; a location ends it, without one it is gone."""
        self._prefixes[url].append(steps)

    def on_role(self, url: str, *steps: Step) -> None:
        """Script the next change of a role; without an error it is accepted."""
        self._roles[url].append(steps)

    def of_kind(self, kind: CallKind) -> list[Call]:
        """Calls of one kind, in order."""
        return [call for call in self.calls if call.kind == kind]

    # --- WorkerClient -------------------------------------------------------------------------

    async def prefill(self, url: str, job: PrefillJob, tokens: TokenIds) -> KvLocation:
        """Start a prefill; see the contract."""
        self._check_open()
        self.calls.append(
            Call(kind="prefill", url=url, request_id=job.request_id, job=job, tokens=tokens)
        )
        self.held.add((url, job.request_id))
        script = self._prefills[url].popleft() if self._prefills[url] else ()
        for step in script:
            if isinstance(step, KvLocation):
                return step
            try:
                await _pass(step)
            except WorkerRefused:
                self.held.discard((url, job.request_id))
                raise
        return a_location(job, tokens)

    async def abort_prefill(self, url: str, request_id: str) -> None:
        """Stop a prefill; see the contract."""
        self.calls.append(Call(kind="abort", url=url, request_id=request_id))
        for gate in self._aborts[url].popleft() if self._aborts[url] else ():
            await gate.wait()
        self.held.discard((url, request_id))

    async def export_prefix(self, url: str, ask: PrefixAsk, tokens: TokenIds) -> KvLocation | None:
        """Ask where a cached prefix can be copied from; see the contract."""
        self._check_open()
        self.calls.append(
            Call(kind="prefix", url=url, request_id=ask.request_id, job=ask, tokens=tokens)
        )
        for step in self._prefixes[url].popleft() if self._prefixes[url] else ():
            if isinstance(step, KvLocation):
                return step
            await _pass(step)
        return None

    async def change_role(self, url: str, change: RoleChange) -> RoleReply:
        """Ask for another role; see the contract."""
        self._check_open()
        self.calls.append(Call(kind="role", url=url, request_id=change.incarnation, job=change))
        for step in self._roles[url].popleft() if self._roles[url] else ():
            await _pass(step)
        return RoleReply(
            worker_id=url.partition("://")[2],
            incarnation=change.incarnation,
            role=change.role,
            lend_share=change.lend_share,
        )

    async def has_died(self, url: str, incarnation: str, *, neighbours: Sequence[str] = ()) -> bool:
        """Whether a process life is over; see the contract."""
        for gate in self._probes[url].popleft() if self._probes[url] else ():
            await gate.wait()
        life = (url, incarnation)
        return life in self.dead or (life in self.dead_behind_relays and bool(neighbours))

    async def decode(self, url: str, job: DecodeJob, tokens: TokenIds) -> MemoryDecodeStream:
        """Start a decode; see the contract."""
        self._check_open()
        self.calls.append(
            Call(kind="decode", url=url, request_id=job.request_id, job=job, tokens=tokens)
        )
        script = self._decodes[url].popleft() if self._decodes[url] else _Decode()
        for step in script.steps:
            await _pass(step)
        stream = MemoryDecodeStream(
            a_stream() if script.stream is None else script.stream,
            on_report=lambda: self._released(job.request_id),
            on_close=self.open_streams.discard,
        )
        self.open_streams.add(stream)
        return stream

    async def close(self) -> None:
        """Break all streams off; see the contract."""
        self._is_closed = True
        for stream in tuple(self.open_streams):
            stream.break_off()

    def _check_open(self) -> None:
        if self._is_closed:
            raise WorkerLost("this client was closed")

    def _released(self, request_id: str) -> None:
        """A decoder that answered to the end has let the segment go before."""
        self.held = {held for held in self.held if held[1] != request_id}


async def _pass(step: Step) -> None:
    if isinstance(step, Gate):
        await step.wait()
    else:
        raise step


def a_location(job: PrefillJob, tokens: TokenIds) -> KvLocation:
    """What a prefill worker answers: a segment for all tokens of the prompt but the last."""
    return KvLocation(
        worker_id="memory/prefill",
        datacenter="memory",
        incarnation=job.incarnation,
        segment_id=f"segment-{job.request_id}",
        generation=1,
        host="127.0.0.1",
        port=1,
        lease_s=30.0,
        manifest=KvManifest(
            fingerprint=job.fingerprint,
            scope=job.scope,
            token_count=len(tokens) - 1,
            block_tokens=16,
            groups=(),
        ),
    )


def a_report(**overrides: object) -> DecodeReport:
    """What a decode worker says at the end of an answer of one token."""
    values: dict[str, object] = {
        "finish_reason": "stop",
        "output_tokens": 1,
        "prompt_tokens_computed": 1,
        "queue_s": 0.0,
        "first_token_s": 0.02,
        "finished_s": 0.03,
        "transfer": TransferReport(bytes=1000, chunks=2, first_byte_s=0.005, finished_s=0.01),
        "prefill": PrefillReport(queue_s=0.0, compute_s=0.01, cached_tokens=0, computed_tokens=100),
    }
    return DecodeReport.model_validate(values | overrides)


def a_stream(*content: bytes) -> tuple[list[Frame], ...]:
    """An answer that goes well: content, and the report together with the last of it."""
    parts = content or (b"data: hello\n\n", b"data: [DONE]\n\n")
    frames: list[list[Frame]] = [[(FrameKind.CONTENT, part)] for part in parts]
    frames[-1].append((FrameKind.REPORT, a_report().model_dump_json().encode()))
    return tuple(frames)
