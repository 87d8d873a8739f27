"""A worker's parts around an engine that does what a test says, and keeps the books of it."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from builders import a_decode_job, a_prefill_job, an_output

from controlplane.config import KvConfig, StoreConfig
from controlplane.domain.byte_tokenizer import VOCABULARY_SIZE, encode_text
from controlplane.domain.prefix import BlockHash, InventoryDelta, InventoryEntry
from controlplane.domain.tokens import TokenIds
from controlplane.router.memory_workers import Gate, Step
from controlplane.store.memory_store import MemoryStore
from controlplane.wire import (
    DecodeJob,
    FrameKind,
    KvGroup,
    KvLocation,
    Load,
    PrefillJob,
    Profile,
    Sampling,
)
from workers.engine import (
    EngineCounters,
    EngineSpec,
    EngineTransfer,
    JobContext,
    KvImport,
    KvPiece,
    TokenOut,
)
from workers.identity import Identity
from workers.kv.segments import SegmentStore
from workers.kv.server import KvServer
from workers.locations import LocationPublisher
from workers.metrics import WorkerMetrics
from workers.prefill_service import PrefillService

HOST = "127.0.0.1"
BLOCK = 16
SCOPE = "scope"
#: Bytes of attention for a token, and of state.
TOKEN_BYTES, STATE_BYTES = 8, 32

#: What an iterator of the engine brings: an item, or a step on the way to the next.
Script = Sequence[Step | TokenOut]


async def meet(step: Step) -> None:
    """Wait at a gate, or raise."""
    if isinstance(step, Gate):
        await step.wait()
    else:
        raise step


def words(text: str, *, finish_reason: str | None = "length") -> list[TokenOut]:
    """The bytes of a text as output tokens; the last one ends the output."""
    tokens = [TokenOut(token=byte) for byte in text.encode()]
    if finish_reason is not None and tokens:
        tokens[-1] = TokenOut(token=tokens[-1].token, finish_reason=finish_reason)  # type: ignore[arg-type]
    return tokens


class FakeRun:
    """A prefill: pieces of zeros, with steps before them."""

    def __init__(self, engine: FakeEngine, tokens: TokenIds, steps: Sequence[Step]) -> None:
        self._engine = engine
        self._tokens = tokens
        self._steps = deque(steps)
        self.cached_tokens = 0
        self.queue_s = 0.25
        self.compute_s = 0.5

    def pieces(self) -> FakePieces:
        return FakePieces(self._engine, self._tokens, self._steps)


class FakePieces:
    """The pieces of a prefill, one step before each as long as there are steps."""

    def __init__(self, engine: FakeEngine, tokens: TokenIds, steps: deque[Step]) -> None:
        count = len(tokens)
        self._engine = engine
        self._steps = steps
        self._pieces = deque(
            KvPiece(
                group="attention",
                token_start=start,
                token_end=min(start + BLOCK, count),
                data=bytes(TOKEN_BYTES * (min(start + BLOCK, count) - start)),
            )
            for start in range(0, count, BLOCK)
        )
        self._pieces.append(
            KvPiece(group="state", token_start=count, token_end=count, data=bytes(STATE_BYTES))
        )
        engine.open.add(self)

    def __aiter__(self) -> AsyncIterator[KvPiece]:
        return self

    async def __anext__(self) -> KvPiece:
        if self not in self._engine.open:
            raise StopAsyncIteration
        try:
            if self._steps:
                await meet(self._steps.popleft())
        except BaseException:
            await self.aclose()
            raise
        if not self._pieces or self._engine.is_closed:
            await self.aclose()
            raise StopAsyncIteration
        return self._pieces.popleft()

    async def aclose(self) -> None:
        self._engine.open.discard(self)


class FakeSequence:
    """An import that notes what is written."""

    def __init__(self, engine: FakeEngine, tokens: TokenIds, held_tokens: int) -> None:
        self._engine = engine
        self.tokens = tokens
        self.held_tokens = held_tokens
        self.written: list[KvPiece] = []
        self.prompt_tokens_computed = 0
        engine.open.add(self)

    def write(self, piece: KvPiece) -> None:
        if self._engine.write_error is not None:
            raise self._engine.write_error
        self.written.append(piece)

    @property
    def transfer(self) -> EngineTransfer | None:
        return self._engine.transfer

    async def settle(self) -> None:
        self._engine.settled += 1

    def keep(self) -> int:
        return len(self.tokens)

    def close(self) -> None:
        self._engine.open.discard(self)


class FakeOutput:
    """Scripted output tokens."""

    def __init__(self, engine: FakeEngine, sequence: FakeSequence, script: Script) -> None:
        self._engine = engine
        self._sequence = sequence
        self._script = deque(script)
        engine.open.add(self)

    def __aiter__(self) -> AsyncIterator[TokenOut]:
        return self

    async def __anext__(self) -> TokenOut:
        try:
            while self in self._engine.open and self._script:
                item = self._script.popleft()
                if isinstance(item, TokenOut):
                    self._sequence.prompt_tokens_computed = self._engine.prompt_tokens_computed
                    return item
                await meet(item)
        except BaseException:
            await self.aclose()
            raise
        await self.aclose()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self._engine.open.discard(self)
        self._sequence.close()


class FakeEngine:
    """An engine on the contract, without a model; what it hands out must be closed again."""

    def __init__(self, **spec: Any) -> None:
        values: dict[str, Any] = {
            "model": "m",
            "fingerprint": "f",
            "vocabulary_size": VOCABULARY_SIZE,
            "block_tokens": BLOCK,
            "context_tokens_max": 512,
            "decode_slots": 4,
            "groups": (
                KvGroup(name="attention", bytes_per_token=TOKEN_BYTES, fixed_bytes=0),
                KvGroup(name="state", bytes_per_token=0, fixed_bytes=STATE_BYTES),
            ),
        }
        self.spec = EngineSpec(**(values | spec))
        #: Steps of the next prefills, and scripts of the next decodes.
        self.prefills: deque[Sequence[Step]] = deque()
        self.decodes: deque[Script] = deque()
        self.write_error: Exception | None = None
        self.held_tokens = 0
        #: What sequences say that they computed of their prompt.
        self.prompt_tokens_computed = 1
        #: Iterators and sequences that nobody has closed.
        self.open: set[object] = set()
        self.sequences: list[FakeSequence] = []
        self.prefilled: list[TokenIds] = []
        self.sampled: list[Sampling] = []
        #: Blocks that the next delta tells of.
        self.stored: dict[BlockHash, InventoryEntry] = {}
        self.known: dict[BlockHash, InventoryEntry] = {}
        self.prefill_share: float | None = None
        #: What it was told of each job.
        self.contexts: list[JobContext | None] = []
        #: What it says that it moved by itself, and how often it was waited for.
        self.transfer: EngineTransfer | None = None
        self.settled = 0
        #: Why it can take no work.
        self.failed: str | None = None
        self.is_closed = False

    def prefill(
        self, tokens: TokenIds, hashes: Sequence[BlockHash], context: JobContext | None = None
    ) -> FakeRun:
        self.contexts.append(context)
        assert len(hashes) == len(tokens) // BLOCK
        self.prefilled.append(tokens)
        return FakeRun(self, tokens, self.prefills.popleft() if self.prefills else ())

    def begin_import(
        self, tokens: TokenIds, hashes: Sequence[BlockHash], context: JobContext | None = None
    ) -> FakeSequence:
        self.contexts.append(context)
        assert len(hashes) == len(tokens) // BLOCK
        sequence = FakeSequence(self, tokens, self.held_tokens)
        self.sequences.append(sequence)
        return sequence

    def export_prefix(self, tokens: TokenIds, hashes: Sequence[BlockHash]) -> Sequence[KvPiece]:
        assert len(hashes) == len(tokens) // BLOCK
        return ()

    def limit_prefill(self, share: float | None) -> None:
        self.prefill_share = share

    def decode(self, sequence: KvImport, tokens: TokenIds, sampling: Sampling) -> FakeOutput:
        assert isinstance(sequence, FakeSequence)
        assert len(tokens) == len(sequence.tokens) + 1
        self.sampled.append(sampling)
        return FakeOutput(self, sequence, self.decodes.popleft() if self.decodes else words("hi"))

    def store(self, block: BlockHash) -> None:
        """Have a block in the prefix cache."""
        self.known[block] = self.stored[block] = InventoryEntry(has_attention=True, has_state=False)

    def take_inventory_delta(self, *, is_full: bool) -> InventoryDelta:
        stored, self.stored = self.stored, {}
        return InventoryDelta(is_full=is_full, stored=dict(self.known) if is_full else stored)

    def load(self) -> Load:
        return Load(queue_requests=len(self.open), queue_tokens=7, running=1, kv_bytes=11)

    def profile(self) -> Profile:
        return Profile(prefill_s_per_token=0.001)

    def counters(self) -> EngineCounters:
        return EngineCounters(prefill_tokens_total=5, output_tokens_total=3)

    def failure(self) -> str | None:
        return self.failed

    def check_integrity(self) -> None:
        assert not self.open, f"{len(self.open)} iterators or sequences are open"

    async def close(self) -> None:
        self.is_closed = True


def an_identity(role: str = "prefill", **overrides: Any) -> Identity:
    """`east/p1` or `west/d1`, in its first life."""
    values: dict[str, Any] = {
        "worker_id": "east/p1" if role == "prefill" else "west/d1",
        "datacenter": "east" if role == "prefill" else "west",
        "role": role,
        "incarnation": "i1",
    }
    return Identity(**(values | overrides))


def a_prompt(length: int = 40) -> TokenIds:
    """So many letters."""
    return encode_text("abcdefghij" * (length // 10 + 1)).head(length)


class Sent:
    """A router's end of a decode stream: frames, and steps at chosen ones."""

    def __init__(self) -> None:
        self.frames: list[tuple[FrameKind, bytes]] = []
        #: Steps by the number of the frame they come before.
        self.steps: dict[int, Step] = {}

    async def __call__(self, *frames: tuple[FrameKind, bytes]) -> None:
        step = self.steps.get(len(self.frames))
        if step is not None:
            await meet(step)
        self.frames += frames

    @property
    def content(self) -> bytes:
        """What the client gets."""
        return b"".join(payload for kind, payload in self.frames if kind is FrameKind.CONTENT)

    @property
    def report(self) -> dict[str, Any]:
        """The last frame, which must be a report."""
        kind, payload = self.frames[-1]
        assert kind is FrameKind.REPORT
        found: dict[str, Any] = json.loads(payload)
        return found


@dataclass
class PrefillSide:
    """A prefill worker without its HTTP listener."""

    engine: Any
    service: PrefillService
    segments: SegmentStore
    kv: KvServer
    publisher: LocationPublisher
    metrics: WorkerMetrics
    identity: Identity
    store: MemoryStore = field(repr=False)

    def job(self, request_id: str = "req-1.1", **overrides: Any) -> PrefillJob:
        """A job for this worker."""
        values = {
            "request_id": request_id,
            "fingerprint": self.engine.spec.fingerprint,
            "incarnation": self.identity.incarnation,
            "scope": SCOPE,
        }
        return a_prefill_job(**(values | overrides))

    async def accept(self, tokens: TokenIds | None = None, **overrides: Any) -> KvLocation:
        """Start a job."""
        prompt = a_prompt() if tokens is None else tokens
        return await self.service.accept(self.job(**overrides), prompt)


@asynccontextmanager
async def a_prefill_side(
    engine: Any | None = None,
    *,
    requests_max: int = 4,
    config: KvConfig | None = None,
    store: MemoryStore | None = None,
    **overrides: Any,
) -> AsyncIterator[PrefillSide]:
    """A running prefill side; at its end the engine and the segments must have let go of all."""
    engine = engine or FakeEngine()
    config = config or KvConfig()
    store = store or MemoryStore(config=StoreConfig())
    identity = an_identity("prefill")
    metrics = WorkerMetrics()
    publisher = LocationPublisher(store, metrics)
    segments = SegmentStore(
        incarnation=identity.incarnation,
        config=config,
        on_drop=lambda segment, _: service.dropped(segment),
        on_renew=lambda segment: service.renewed(segment),  # noqa: PLW0108 - made below
        **overrides,
    )
    kv = KvServer(segments, worker_id=identity.worker_id, datacenter="east", config=config)
    service = PrefillService(
        engine,
        segments,
        identity,
        metrics,
        requests_max=requests_max,
        locate=lambda segment: kv.location(segment, host=HOST),
        publisher=publisher,
    )
    kv.start(HOST)
    publishing = asyncio.ensure_future(publisher.run())
    try:
        yield PrefillSide(engine, service, segments, kv, publisher, metrics, identity, store)
    finally:
        await service.close()
        await kv.close()
        publishing.cancel()
        await asyncio.gather(publishing, return_exceptions=True)
    assert service.jobs == 0
    engine.check_integrity()
    segments.check_integrity()
    held = [one for one in segments._held.values() if not one.is_readable]
    assert not held, "bytes of segments that nobody can read are still accounted"


def a_decode_job_for(
    location: KvLocation, *, output_tokens_max: int = 8, **overrides: Any
) -> DecodeJob:
    """A job for `west/d1` with the KV of a location."""
    values: dict[str, Any] = {
        "scope": SCOPE,
        "location": location,
        "sampling": Sampling(temperature=0, output_tokens_max=output_tokens_max),
        "output": an_output(),
    }
    return a_decode_job(**(values | overrides))


async def until(is_true: Callable[[], object]) -> None:
    """Turn the loop until something is true; fails after five seconds."""
    async with asyncio.timeout(5):
        while not is_true():  # noqa: ASYNC110 - sockets and threads have no event for it
            await asyncio.sleep(0)
