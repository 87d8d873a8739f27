"""One prefill: what the compute thread does for it, and what the event loop knows of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Final

from controlplane.domain.prefix import BlockHash
from workers.engine import KvPiece
from workers.engines.local.cache import Lease, PrefixCache
from workers.engines.local.meter import Meter
from workers.engines.local.model import Ints, LocalModel, Memory, Sizes
from workers.engines.local.stream import Feed, Stream

#: A snapshot every so many blocks: half as many bytes as the attention of these blocks.
SNAPSHOT_BLOCKS: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockStep:
    """What the compute thread made of one block."""

    token_start: int
    token_end: int
    attention: bytes
    #: The state at `token_end`, where somebody wants it.
    state: bytes | None
    #: Seconds in the model, and of all.
    block_s: float
    total_s: float


class _Computation:
    """The memory of one prefill. Used on the compute thread alone."""

    def __init__(
        self, model: LocalModel, tokens: Ints, cached: Sequence[bytes], state: bytes | None
    ) -> None:
        self._model = model
        self._tokens = tokens
        self._block_tokens = model.spec.block_tokens
        self._cached = tuple(cached)
        self._cached_state = state
        self._position = len(cached) * self._block_tokens
        self._memory: Memory | None = None

    def next_block(self, *, wants_state: bool) -> BlockStep:
        start_s = perf_counter()
        if self._memory is None:
            self._memory = self._model.memory(len(self._tokens), self._cached, self._cached_state)
            self._cached, self._cached_state = (), None
        start = self._position
        end = min(start + self._block_tokens, len(self._tokens))
        block_start_s = perf_counter()
        self._memory.compute(self._tokens[start:end], start)
        block_s = perf_counter() - block_start_s
        self._position = end
        piece = self._memory.attention_piece(start, end)
        snapshot = self._memory.state_piece() if wants_state else None
        return BlockStep(
            token_start=start,
            token_end=end,
            attention=piece,
            state=snapshot,
            block_s=block_s,
            total_s=perf_counter() - start_s,
        )


class LocalPrefill:
    """
    A `PrefillRun`. Used on the event loop's thread alone.

    Its life: queued, begun (the cache is asked only now, when the jobs before it have filled it),
    computed block by block, closed.
    """

    def __init__(
        self,
        model: LocalModel,
        cache: PrefixCache,
        meter: Meter,
        tokens: Ints,
        hashes: Sequence[BlockHash],
        on_close: Callable[[LocalPrefill], None],
    ) -> None:
        self._model = model
        self._sizes = Sizes.of(model.spec)
        self._cache = cache
        self._meter = meter
        self._tokens = tokens
        self._hashes = tuple(hashes)
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()
        self._feed: Feed[KvPiece] = Feed()
        self._has_reader = False
        self._is_closed = False
        self._lease: Lease | None = None
        self._computation: _Computation | None = None
        self._queued_at_s = perf_counter()
        self._queue_s = 0.0
        self._compute_s = 0.0
        self._cached_tokens = 0
        self._position = 0
        #: Where snapshots are taken besides every few blocks, in blocks.
        self._snapshot_blocks = {len(self._hashes)}
        self._blocks = 0
        self._blocks_s = 0.0
        self._total_s = 0.0

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "running" if self._lease else "queued"
        return f"<LocalPrefill {state}, {self._position} of {len(self._tokens)} tokens>"

    # --- PrefillRun ---------------------------------------------------------------------------

    @property
    def cached_tokens(self) -> int:
        """Tokens taken from the prefix cache. Known once the first piece is out."""
        return self._cached_tokens

    @property
    def queue_s(self) -> float:
        """Seconds it waited for others. Known once the first piece is out."""
        return self._queue_s

    @property
    def compute_s(self) -> float:
        """Seconds from then to the last piece. Known once that is out."""
        return self._compute_s

    def pieces(self) -> Stream[KvPiece]:
        """All pieces in order; see the contract. May be called once."""
        if self._has_reader:
            raise RuntimeError("the pieces of a prefill can be read once")
        self._has_reader = True
        return Stream(self._feed, self.close, self._loop)

    # --- For the scheduler --------------------------------------------------------------------

    @property
    def is_closed(self) -> bool:
        """Done, stopped or failed: it needs no more compute and holds nothing."""
        return self._is_closed

    @property
    def is_running(self) -> bool:
        """It has begun and not ended."""
        return self._lease is not None and not self._is_closed

    @property
    def lease(self) -> Lease | None:
        """What it holds of the cache."""
        return self._lease

    @property
    def tokens_left(self) -> int:
        """Prompt tokens still to be computed, as far as is known now."""
        if self._lease is None:
            return len(self._tokens) - self._cache.resumable_tokens(self._hashes)
        return len(self._tokens) - self._position

    @property
    def held_bytes(self) -> int:
        """Bytes of the arrays in use."""
        if not self.is_running:
            return 0
        sizes = self._sizes
        return self._position * sizes.attention_bytes_per_token + sizes.state_bytes

    def begin(self) -> None:
        """Take what the cache has and put it out; the job may be done with that."""
        self._queue_s = perf_counter() - self._queued_at_s
        self._lease = self._cache.lease(self._hashes)
        cached = self._lease.attention
        # Where a prompt leaves one that came before, a third one may leave it too.
        self._snapshot_blocks.add(len(cached))
        count, state = self._lease.snapshot()
        size = self._sizes.block_tokens
        for index, data in enumerate(cached[:count]):
            self._put_attention(index * size, (index + 1) * size, data)
        self._cached_tokens = self._position = count * size
        if self._position == len(self._tokens):
            self._finish(state or self._model.initial_state())
        else:
            self._computation = _Computation(self._model, self._tokens, cached[:count], state)

    def next_block(self) -> Callable[[], BlockStep]:
        """What the compute thread shall do next for this job."""
        assert self._computation is not None, "the job has begun and has not ended"
        size = self._sizes.block_tokens
        end = min(self._position + size, len(self._tokens))
        count, rest = divmod(end, size)
        is_snapshot = not rest and (count % SNAPSHOT_BLOCKS == 0 or count in self._snapshot_blocks)
        wants_state = is_snapshot or end == len(self._tokens)
        return partial(self._computation.next_block, wants_state=wants_state)

    def deliver(self, step: BlockStep) -> None:
        """Take a computed block; the reader may have gone meanwhile."""
        self._meter.add_block(step.token_end - step.token_start)
        if self._is_closed or self._lease is None:
            return
        self._blocks += 1
        self._blocks_s += step.block_s
        self._total_s += step.total_s
        self._position = step.token_end
        count, rest = divmod(step.token_end, self._sizes.block_tokens)
        if not rest:
            self._lease.offer(count, step.attention, step.state)
        self._put_attention(step.token_start, step.token_end, step.attention)
        if step.token_end == len(self._tokens):
            assert step.state is not None, "the state is exported with the last block"
            self._finish(step.state)

    def fail(self, error: Exception) -> None:
        """Let the reader know and give everything back."""
        self._feed.end(error)
        self.close()

    def close(self) -> None:
        """Give everything back; a block that is being computed is thrown away. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        self._feed.end()
        self._computation = None
        if self._lease is not None:
            self._lease.release()
        self._on_close(self)

    def _finish(self, state: bytes) -> None:
        position = len(self._tokens)
        self._compute_s = perf_counter() - self._queued_at_s - self._queue_s
        self._feed.put(KvPiece(group="state", token_start=position, token_end=position, data=state))
        self._meter.add_prefill(
            total_s=self._total_s,
            blocks_s=self._blocks_s,
            blocks=self._blocks,
            tokens=position - self._cached_tokens,
        )
        self.close()

    def _put_attention(self, start: int, end: int, data: bytes) -> None:
        self._feed.put(KvPiece(group="attention", token_start=start, token_end=end, data=data))
