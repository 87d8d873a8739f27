"""The engine of a simulated worker: takes virtual time, and its words are a function of its KV."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from sim.oracle import BLOCK, STATE_BYTES, TOKEN_BYTES, Chain, kv_of

from controlplane.domain.byte_tokenizer import END_OF_TURN, VOCABULARY_SIZE
from controlplane.domain.prefix import BlockHash, InventoryDelta, InventoryEntry
from controlplane.domain.tokens import TokenIds
from controlplane.wire import KvGroup, Load, Profile, Sampling
from workers.engine import (
    EngineCounters,
    EngineSpec,
    JobContext,
    KvImport,
    KvPiece,
    TokenOut,
)

#: A state snapshot is kept at every so many blocks, and at the last one.
_SNAPSHOT_BLOCKS = 4

#: A prompt that begins so ends the process that computes it.
POISON = "poison"
_POISON = list(POISON.encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTimes:
    """How fast a worker computes, virtual seconds."""

    prefill_fixed_s: float = 0.01
    prefill_s_per_token: float = 0.001
    decode_step_s: float = 0.02
    slots: int = 8
    #: Blocks of a prefix cache.
    cache_blocks_max: int = 48


@dataclass(slots=True)
class _Block:
    attention: bytes
    state: bytes | None = None


class PrefixCache:
    """Attention and states of known prefixes, bounded; the least used leave first."""

    def __init__(self, blocks_max: int) -> None:
        self._blocks: OrderedDict[BlockHash, _Block] = OrderedDict()
        self._blocks_max = blocks_max
        self._changed: dict[BlockHash, None] = {}

    def attention(self, hashes: Sequence[BlockHash]) -> list[bytes]:
        """Attention of the leading blocks that are here."""
        found = []
        for name in hashes:
            block = self._blocks.get(name)
            if block is None:
                break
            self._blocks.move_to_end(name)
            found.append(block.attention)
        return found

    def resumable(self, hashes: Sequence[BlockHash]) -> tuple[list[bytes], bytes]:
        """Leading attention up to the last position with a state too, and that state."""
        held = self.attention(hashes)
        while held:
            state = self._blocks[hashes[len(held) - 1]].state
            if state is not None:
                return held, state
            held.pop()
        return [], b""

    def put(self, name: BlockHash, attention: bytes, state: bytes | None) -> None:
        """Keep a block; its state, once known, stays known."""
        known = self._blocks.get(name)
        if known is not None:
            state = state or known.state
        self._blocks[name] = _Block(attention, state)
        self._blocks.move_to_end(name)
        self._changed[name] = None
        while len(self._blocks) > self._blocks_max:
            gone, _ = self._blocks.popitem(last=False)
            self._changed[gone] = None

    def take_delta(self, *, is_full: bool) -> InventoryDelta:
        """Changes since the last call, or everything."""
        changed, self._changed = self._changed, {}
        names = self._blocks if is_full else changed
        stored = {
            name: InventoryEntry(has_attention=True, has_state=self._blocks[name].state is not None)
            for name in names
            if name in self._blocks
        }
        removed = () if is_full else tuple(name for name in changed if name not in self._blocks)
        return InventoryDelta(is_full=is_full, stored=stored, removed=removed)

    def names(self) -> list[BlockHash]:
        """Everything that is here."""
        return list(self._blocks)


@dataclass(slots=True, eq=False)
class _Run:
    """One prefill."""

    engine: OracleEngine
    tokens: list[int]
    hashes: Sequence[BlockHash]
    cached_tokens: int = 0
    queue_s: float = 0.0
    compute_s: float = 0.0

    def pieces(self) -> AsyncIterator[KvPiece]:
        return self.engine.compute(self)


@dataclass(slots=True, eq=False)
class _Sequence:
    """KV that is being imported."""

    engine: OracleEngine
    token_count: int
    tokens: list[int]
    hashes: Sequence[BlockHash]
    held: list[bytes]
    blocks: dict[int, bytes] = field(default_factory=dict)
    state: bytes | None = None
    prompt_tokens_computed: int = 0

    @property
    def held_tokens(self) -> int:
        return len(self.held) * BLOCK

    @property
    def transfer(self) -> None:
        return None

    async def settle(self) -> None:
        return

    def write(self, piece: KvPiece) -> None:
        if piece.group == "state":
            if self.state is not None or piece.token_start != self.token_count:
                raise ValueError("this state is not expected")
            self.state = piece.data
            return
        index = piece.token_start // BLOCK
        if index in self.blocks or index < len(self.held):
            raise ValueError(f"block {index} is here already")
        if len(piece.data) != TOKEN_BYTES * (piece.token_end - piece.token_start):
            raise ValueError(f"block {index} has a wrong size")
        self.blocks[index] = piece.data

    def attention(self) -> bytes:
        whole = b"".join([*self.held, *(self.blocks[index] for index in sorted(self.blocks))])
        if len(whole) != TOKEN_BYTES * self.token_count or self.state is None:
            raise ValueError("the sequence is not completely written")
        return whole

    def close(self) -> None:
        self.engine.open.pop(self, None)


class OracleEngine:
    """One engine for both roles; see `workers/engine.py` for the contract."""

    def __init__(
        self,
        *,
        model: str,
        fingerprint: str,
        times: EngineTimes,
        on_wrong_kv: Callable[[str], None],
        on_poison: Callable[[], None],
    ) -> None:
        self.spec = EngineSpec(
            model=model,
            fingerprint=fingerprint,
            vocabulary_size=VOCABULARY_SIZE,
            block_tokens=BLOCK,
            context_tokens_max=2048,
            decode_slots=times.slots,
            groups=(
                KvGroup(name="attention", bytes_per_token=TOKEN_BYTES, fixed_bytes=0),
                KvGroup(name="state", bytes_per_token=0, fixed_bytes=STATE_BYTES),
            ),
        )
        self.cache = PrefixCache(times.cache_blocks_max)
        #: Imports and outputs that nobody has closed.
        self.open: dict[object, None] = {}
        #: Cleared while the engine hangs without dying.
        self.is_moving = asyncio.Event()
        self.is_moving.set()
        self._times = times
        self._on_wrong_kv = on_wrong_kv
        self._on_poison = on_poison
        self._turn = asyncio.Lock()
        self._slots = asyncio.Semaphore(times.slots)
        self._queue_tokens = 0
        self._running = 0
        self._computed = self._put_out = self._units = 0

    # --- Prefill ------------------------------------------------------------------------------

    def prefill(
        self, tokens: TokenIds, hashes: Sequence[BlockHash], context: JobContext | None = None
    ) -> _Run:
        del context
        return _Run(self, tokens.to_list(), hashes)

    async def compute(self, run: _Run) -> AsyncIterator[KvPiece]:
        """The pieces of a prefill, one prefill at a time."""
        loop, count = asyncio.get_running_loop(), len(run.tokens)
        began_s, left = loop.time(), count
        self._queue_tokens += left
        self.open[run] = None
        try:
            async with self._turn:
                held, state = self.cache.resumable(run.hashes)
                run.queue_s = loop.time() - began_s
                run.cached_tokens = len(held) * BLOCK
                self._queue_tokens -= run.cached_tokens
                left -= run.cached_tokens
                for index, data in enumerate(held):
                    yield _piece(index * BLOCK, (index + 1) * BLOCK, data)
                await self._work(self._times.prefill_fixed_s)
                if run.tokens[: len(_POISON)] == _POISON:
                    self._on_poison()
                chain = self._resume(run, held, state)
                for start in range(run.cached_tokens, count, BLOCK):
                    end = min(start + BLOCK, count)
                    await self._work(self._times.prefill_s_per_token * (end - start))
                    data = self._block(run, chain, start, end)
                    if start == 0:
                        chain = kv_of(run.hashes[0], run.tokens[:BLOCK])
                    self._queue_tokens -= end - start
                    left -= end - start
                    self._computed += end - start
                    yield _piece(start, end, data)
                assert chain is not None
                run.compute_s = loop.time() - began_s - run.queue_s
                yield KvPiece(group="state", token_start=count, token_end=count, data=chain.state)
        finally:
            self._queue_tokens -= left
            self.open.pop(run, None)

    def _resume(self, run: _Run, held: list[bytes], state: bytes) -> Chain | None:
        if not held:
            return None
        at = len(held) * BLOCK
        return Chain(bytearray(b"".join(held)), state, run.tokens[at - 1])

    def _block(self, run: _Run, chain: Chain | None, start: int, end: int) -> bytes:
        """Compute one block, and keep it if it is a whole one."""
        if chain is None:
            chain = kv_of(run.hashes[0], run.tokens[:BLOCK])
        else:
            for token in run.tokens[start:end]:
                chain.add(token)
        data = bytes(chain.attention[start * TOKEN_BYTES : end * TOKEN_BYTES])
        if end - start == BLOCK:
            number = end // BLOCK
            is_snapshot = number % _SNAPSHOT_BLOCKS == 0 or number == len(run.hashes)
            self.cache.put(run.hashes[number - 1], data, chain.state if is_snapshot else None)
        return data

    # --- Decode -------------------------------------------------------------------------------

    def begin_import(
        self, tokens: TokenIds, hashes: Sequence[BlockHash], context: JobContext | None = None
    ) -> _Sequence:
        del context
        held = self.cache.attention(hashes)
        sequence = _Sequence(self, len(tokens), tokens.to_list(), hashes, held)
        self.open[sequence] = None
        return sequence

    async def decode(
        self, sequence: KvImport, tokens: TokenIds, sampling: Sampling
    ) -> AsyncIterator[TokenOut]:
        assert isinstance(sequence, _Sequence)
        attention, state = sequence.attention(), sequence.state
        assert state is not None
        self._check(sequence, attention, state)
        prompt = tokens.to_list()
        chain = Chain(bytearray(attention), state, prompt[-2])
        async with self._slots:
            self._running += 1
            try:
                chain.add(prompt[-1])
                sequence.prompt_tokens_computed = 1
                for index, name in enumerate(sequence.hashes):
                    part = attention[
                        index * BLOCK * TOKEN_BYTES : (index + 1) * BLOCK * TOKEN_BYTES
                    ]
                    self.cache.put(name, part, None)
                for number in range(1, sampling.output_tokens_max + 1):
                    await self._work(self._times.decode_step_s)
                    token = chain.next_token()
                    self._put_out += 1
                    if token == END_OF_TURN:
                        yield TokenOut(token=token, finish_reason="stop")
                        return
                    is_last = number == sampling.output_tokens_max
                    yield TokenOut(token=token, finish_reason="length" if is_last else None)
                    chain.add(token)
            finally:
                self._running -= 1
                sequence.close()

    def _check(self, sequence: _Sequence, attention: bytes, state: bytes) -> None:
        right = kv_of(sequence.hashes[0], sequence.tokens)
        if right.attention != attention or right.state != state:
            self._on_wrong_kv(f"KV of {sequence.token_count} tokens is not that of its prompt")

    async def _work(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if not self.is_moving.is_set():
            await self.is_moving.wait()
        self._units += 1

    # --- The rest -----------------------------------------------------------------------------

    def take_inventory_delta(self, *, is_full: bool) -> InventoryDelta:
        return self.cache.take_delta(is_full=is_full)

    def load(self) -> Load:
        return Load(
            queue_requests=len(self.open),
            queue_tokens=max(0, self._queue_tokens),
            running=self._running,
        )

    def profile(self) -> Profile:
        return Profile(
            prefill_s_per_token=self._times.prefill_s_per_token,
            prefill_fixed_s=self._times.prefill_fixed_s,
            decode_step_s=self._times.decode_step_s,
            kv_bytes_per_token=TOKEN_BYTES,
            kv_state_bytes=STATE_BYTES,
        )

    def counters(self) -> EngineCounters:
        return EngineCounters(
            prefill_tokens_total=self._computed,
            output_tokens_total=self._put_out,
            units_total=self._units,
        )

    def failure(self) -> None:
        return None

    def check_integrity(self) -> None:
        assert not self.open, f"{len(self.open)} prefills or sequences are open"
        assert self._queue_tokens == 0, f"{self._queue_tokens} tokens are queued for nobody"

    async def close(self) -> None:
        return None


def _piece(start: int, end: int, data: bytes) -> KvPiece:
    return KvPiece(group="attention", token_start=start, token_end=end, data=data)
