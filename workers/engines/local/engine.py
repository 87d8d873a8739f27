"""An engine around a model in this process: queues, prefix cache, batch, counters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from controlplane.domain.prefix import BlockHash, InventoryDelta
from controlplane.domain.tokens import TokenIds
from controlplane.wire import Load, Profile, Sampling
from workers.engine import EngineCounters, EngineSpec, JobContext, KvImport, KvPiece, TokenOut
from workers.engines.local.cache import PrefixCache
from workers.engines.local.meter import Meter
from workers.engines.local.model import Ints, LocalModel, Sizes
from workers.engines.local.prefill import LocalPrefill
from workers.engines.local.scheduler import Scheduler
from workers.engines.local.sequence import ImportedSequence
from workers.engines.local.stream import Stream


class LocalEngine:
    """
    An `Engine`. Prefill and decode may run in one instance; which it does is the worker's choice.

    Making one measures a few steps, before any event loop needs it. Its methods are called on one
    event loop.
    """

    def __init__(self, model: LocalModel, *, cache_tokens_max: int) -> None:
        """
        Args:
            model: What computes.
            cache_tokens_max: Tokens of KV that the prefix cache holds.
        """
        self._model = model
        self._spec = model.spec
        self._sizes = Sizes.of(model.spec)
        self._cache = PrefixCache(block_tokens=self._spec.block_tokens, tokens_max=cache_tokens_max)
        self._meter = Meter(model)
        self._scheduler = Scheduler(model.batch(), self._meter, slots=self._spec.decode_slots)
        #: Imports that are not closed, decoding ones included.
        self._sequences: set[ImportedSequence] = set()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._spec.model} {self._cache!r} {self._scheduler!r}>"

    @property
    def spec(self) -> EngineSpec:
        """What it is."""
        return self._spec

    def prefill(
        self, tokens: TokenIds, hashes: Sequence[BlockHash], context: JobContext | None = None
    ) -> LocalPrefill:
        """
        Queue the prefill of all of `tokens`; see the contract.

        Raises:
            ValueError: Unknown tokens, more than the context, or hashes of other tokens.
            RuntimeError: The engine is closed.
        """
        del context
        ids = self._check(tokens, hashes)
        job = LocalPrefill(
            self._model, self._cache, self._meter, ids, hashes, self._scheduler.drop_prefill
        )
        self._scheduler.add_prefill(job)
        return job

    def begin_import(
        self, tokens: TokenIds, hashes: Sequence[BlockHash], context: JobContext | None = None
    ) -> ImportedSequence:
        """
        Open a sequence whose KV for `tokens` will be written; see the contract.

        Raises:
            ValueError: Unknown tokens, more than the context, or hashes of other tokens.
            RuntimeError: The engine is closed.
        """
        del context
        self._check(tokens, hashes)
        sequence = ImportedSequence(
            self._sizes, self._model.end_tokens, self._cache, tokens, hashes, self._forget_sequence
        )
        self._sequences.add(sequence)
        return sequence

    def decode(self, sequence: KvImport, tokens: TokenIds, sampling: Sampling) -> Stream[TokenOut]:
        """
        Compute the last prompt token and then output tokens; see the contract.

        Raises:
            ValueError: Not a complete sequence of this engine for this prompt, or a prompt that
                leaves no room for output. The sequence stays the caller's.
        """
        if not isinstance(sequence, ImportedSequence) or sequence not in self._sequences:
            raise ValueError("this sequence was not opened here, or is closed")
        self._check_vocabulary(self._ids(tokens))
        sequence.start(tokens, sampling, context_tokens_max=self._spec.context_tokens_max)
        self._scheduler.add_sequence(sequence)
        return sequence.output()

    def export_prefix(self, tokens: TokenIds, hashes: Sequence[BlockHash]) -> tuple[KvPiece, ...]:
        """
        What the prefix cache holds of these tokens; see the contract.

        Raises:
            ValueError: Unknown tokens, more than the context, or hashes of other tokens.
            RuntimeError: The engine is closed.
        """
        self._check(tokens, hashes)
        lease = self._cache.lease(hashes)
        try:
            count, state = lease.snapshot()
            attention = lease.attention[:count]
        finally:
            lease.release()
        if state is None:
            return ()
        size = self._spec.block_tokens
        end = count * size
        pieces = [
            KvPiece(group="attention", token_start=at * size, token_end=(at + 1) * size, data=data)
            for at, data in enumerate(attention)
        ]
        return (*pieces, KvPiece(group="state", token_start=end, token_end=end, data=state))

    def limit_prefill(self, share: float | None) -> None:
        """
        Bound the time that prefill takes while there is something to decode; see the contract.

        Raises:
            ValueError: Not a part of the time.
        """
        self._scheduler.share.set(share)

    def take_inventory_delta(self, *, is_full: bool) -> InventoryDelta:
        """Changes of the prefix cache since the last call, or all of it."""
        return self._cache.take_delta(is_full=is_full)

    def load(self) -> Load:
        """What it has to do now."""
        scheduler = self._scheduler
        prefills = scheduler.prefills
        running = sum(job.is_running for job in prefills) + len(scheduler.running)
        held = sum(job.held_bytes for job in prefills)
        held += sum(sequence.held_bytes for sequence in self._sequences)
        return Load(
            queue_requests=len(prefills) + len(scheduler.waiting) + len(scheduler.running),
            queue_tokens=sum(job.tokens_left for job in prefills),
            running=running,
            kv_bytes=self._cache.held_bytes + held,
        )

    def profile(self) -> Profile:
        """Measured times and sizes."""
        return self._meter.profile()

    def counters(self) -> EngineCounters:
        """Totals since the start."""
        return self._meter.counters()

    def failure(self) -> str | None:
        """Nothing that its counters do not show."""
        return None

    def check_integrity(self) -> None:
        """
        Assert that everything that is held is held by something open, and the other way round.

        Raises:
            AssertionError: It is not.
        """
        self._cache.check_integrity()
        scheduler = self._scheduler
        scheduler.check_integrity()
        leases = {job.lease for job in scheduler.prefills if job.lease is not None}
        leases |= {sequence.lease for sequence in self._sequences}
        assert leases == self._cache.leases, "a lease without an owner, or an owner without one"
        decoding = {*scheduler.waiting, *scheduler.running}
        assert decoding <= self._sequences, "a sequence decodes that is not open"

    async def close(self) -> None:
        """Stop the compute thread; open iterators end. Idempotent."""
        await self._scheduler.close()
        for job in self._scheduler.prefills:
            job.close()
        for sequence in tuple(self._sequences):
            sequence.close()

    def _forget_sequence(self, sequence: ImportedSequence) -> None:
        self._sequences.remove(sequence)
        self._scheduler.drop_sequence(sequence)

    def _check(self, tokens: TokenIds, hashes: Sequence[BlockHash]) -> Ints:
        if self._scheduler.is_closing:
            raise RuntimeError("the engine is closed")
        if len(tokens) >= self._spec.context_tokens_max:
            raise ValueError(
                f"{len(tokens)} tokens and one more do not fit a context of "
                f"{self._spec.context_tokens_max}"
            )
        blocks = len(tokens) // self._spec.block_tokens
        if len(hashes) != blocks:
            raise ValueError(f"{len(hashes)} hashes for {blocks} full blocks")
        ids = self._ids(tokens)
        self._check_vocabulary(ids)
        return ids

    def _ids(self, tokens: TokenIds) -> Ints:
        return np.frombuffer(tokens.data, dtype=f"<u{tokens.width_bytes}").astype(np.int64)

    def _check_vocabulary(self, ids: Ints) -> None:
        if ids.size and ids.max() >= self._spec.vocabulary_size:
            raise ValueError(f"token {ids.max()} is not in {self._spec.vocabulary_size}")
