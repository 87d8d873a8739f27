"""A sequence at the decode side: being filled, waiting for a slot, decoding, closed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from controlplane.domain.prefix import BlockHash
from controlplane.domain.tokens import TokenIds
from controlplane.wire import Sampling
from workers.engine import EngineTransfer, KvPiece, TokenOut
from workers.engines.local.cache import Lease, PrefixCache
from workers.engines.local.model import Sizes
from workers.engines.local.row import Row
from workers.engines.local.stream import Feed, Stream


class ImportedSequence:
    """A `KvImport`. Used on the event loop's thread alone."""

    def __init__(
        self,
        sizes: Sizes,
        end_tokens: frozenset[int],
        cache: PrefixCache,
        tokens: TokenIds,
        hashes: Sequence[BlockHash],
        on_close: Callable[[ImportedSequence], None],
    ) -> None:
        self._sizes = sizes
        self._end_tokens = end_tokens
        self._tokens = tokens
        self._on_close = on_close
        self._lease = cache.lease(hashes)
        self._held_tokens = len(self._lease.hashes) * sizes.block_tokens
        #: Attention pieces by block; those the cache had are there from the start.
        self._blocks: dict[int, bytes] = dict(enumerate(self._lease.attention))
        self._state: bytes | None = None
        self._feed: Feed[TokenOut] | None = None
        self._row: Row | None = None
        self._output_tokens = 0
        self._output_tokens_max = 0
        self._prompt_tokens_computed = 0
        self._is_kept = False
        self._is_closed = False

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "decoding" if self._row else "filling"
        return f"<ImportedSequence {state}, {len(self._tokens)} tokens>"

    # --- KvImport -----------------------------------------------------------------------------

    @property
    def held_tokens(self) -> int:
        """Leading tokens whose attention KV is already here: a multiple of the block size."""
        return self._held_tokens

    @property
    def transfer(self) -> EngineTransfer | None:
        """Nothing moves but the pieces."""
        return None

    async def settle(self) -> None:
        """Its counts are its own."""

    @property
    def prompt_tokens_computed(self) -> int:
        """Prompt tokens that the batch computed for this sequence, as far as was delivered."""
        return self._prompt_tokens_computed

    def write(self, piece: KvPiece) -> None:
        """
        Take one piece. Each must come once; the order is free.

        Raises:
            ValueError: Wrong size, out of range, or not expected.
        """
        if self._is_closed or self._is_kept or self._row is not None:
            raise ValueError("this sequence takes no more KV: it is complete or closed")
        if piece.group == "state":
            self._write_state(piece)
        else:
            self._write_attention(piece)

    def keep(self) -> int:
        """
        Put what was written into the prefix cache, and hold it there; see the contract.

        Raises:
            ValueError: Not complete, kept or started before, closed, or it ends inside a block.
        """
        count, rest = divmod(len(self._tokens), self._sizes.block_tokens)
        if rest:
            raise ValueError(f"{len(self._tokens)} tokens end inside a block, and have no hash")
        attention, state = self._complete()
        for number, data in enumerate(attention, start=1):
            self._lease.offer(number, data, state if number == count else None)
        self._is_kept = True
        self._blocks.clear()
        self._state = None
        return self._lease.snapshot()[0] * self._sizes.block_tokens

    def close(self) -> None:
        """Give everything back. Idempotent; a sequence that is decoding is stopped first."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._feed is not None:
            self._feed.end()
        self._row = None
        self._state = None
        self._blocks.clear()
        self._lease.release()
        self._on_close(self)

    # --- For the engine and the scheduler -----------------------------------------------------

    @property
    def is_closed(self) -> bool:
        """It holds nothing any more."""
        return self._is_closed

    @property
    def lease(self) -> Lease:
        """What it holds of the cache."""
        return self._lease

    @property
    def row(self) -> Row:
        """What the batch computes."""
        assert self._row is not None, "the sequence is decoding"
        return self._row

    @property
    def held_bytes(self) -> int:
        """Bytes in it that are not the cache's."""
        sizes = self._sizes
        if self._row is not None:
            tokens = len(self._tokens) + self._output_tokens
            return tokens * sizes.attention_bytes_per_token + sizes.state_bytes
        held_blocks = self._held_tokens // sizes.block_tokens
        written = (data for block, data in self._blocks.items() if block >= held_blocks)
        return sum(map(len, written)) + len(self._state or b"")

    def start(self, prompt: TokenIds, sampling: Sampling, *, context_tokens_max: int) -> None:
        """
        Make it ready for the batch. The blocks that have a hash go to the cache.

        Raises:
            ValueError: Not complete, started before, closed, or not the KV of this prompt.
        """
        count = len(self._tokens)
        if len(prompt) != count + 1 or prompt.head(count) != self._tokens:
            raise ValueError(f"the KV of {count} tokens is not that of all but the last prompt one")
        if len(prompt) >= context_tokens_max:
            raise ValueError(f"{len(prompt)} tokens leave no output in {context_tokens_max}")
        attention, state = self._complete()
        for number, data in enumerate(attention, start=1):
            self._lease.offer(number, data)
        self._output_tokens_max = min(sampling.output_tokens_max, context_tokens_max - len(prompt))
        self._row = Row(
            token=int.from_bytes(prompt.data[-prompt.width_bytes :], "little"),
            position=count,
            capacity=len(prompt) + self._output_tokens_max,
            attention=attention,
            state=state,
            sampling=sampling,
        )
        self._blocks.clear()
        self._state = None
        self._feed = Feed()

    def output(self) -> Stream[TokenOut]:
        """The reader's end of the output, once started."""
        assert self._feed is not None, "the sequence is decoding"
        return Stream(self._feed, self.close, asyncio.get_running_loop())

    def deliver(self, token: int) -> bool:
        """Put a drawn token out; the last one closes. False when nobody is there any more."""
        if self._is_closed or self._feed is None:
            return False
        self._output_tokens += 1
        self._prompt_tokens_computed = self.row.prompt_tokens_computed
        if token in self._end_tokens:
            self._feed.put(TokenOut(token=token, finish_reason="stop"))
            self.close()
        elif self._output_tokens == self._output_tokens_max:
            self._feed.put(TokenOut(token=token, finish_reason="length"))
            self.close()
        else:
            self._feed.put(TokenOut(token=token))
        return True

    def fail(self, error: Exception) -> None:
        """Let the reader know and give everything back."""
        if self._feed is not None:
            self._feed.end(error)
        self.close()

    def _complete(self) -> tuple[list[bytes], bytes]:
        """Attention pieces in order, and the state, once everything is here."""
        if self._is_closed or self._is_kept or self._row is not None:
            raise ValueError("this sequence is decoding already, or closed")
        blocks = -(-len(self._tokens) // self._sizes.block_tokens)
        if self._state is None or len(self._blocks) != blocks:
            raise ValueError(
                f"KV is missing: {len(self._blocks)} of {blocks} attention pieces, "
                f"{'the' if self._state else 'no'} state"
            )
        return [self._blocks[block] for block in range(blocks)], self._state

    def _write_state(self, piece: KvPiece) -> None:
        count = len(self._tokens)
        if piece.token_start != count or piece.token_end != count:
            raise ValueError(
                f"state at {piece.token_start}..{piece.token_end}, expected it at {count}"
            )
        if len(piece.data) != self._sizes.state_bytes:
            raise ValueError(
                f"{len(piece.data)} bytes of state, expected {self._sizes.state_bytes}"
            )
        if self._state is not None:
            raise ValueError("the state is there already")
        self._state = piece.data

    def _write_attention(self, piece: KvPiece) -> None:
        size = self._sizes.block_tokens
        block, rest = divmod(piece.token_start, size)
        end = min(piece.token_start + size, len(self._tokens))
        span = f"attention of tokens {piece.token_start}..{piece.token_end}"
        if rest or not 0 <= piece.token_start < end or piece.token_end != end:
            raise ValueError(f"{span} is no block of a segment of {len(self._tokens)} tokens")
        expected = (end - piece.token_start) * self._sizes.attention_bytes_per_token
        if len(piece.data) != expected:
            raise ValueError(f"{span} has {len(piece.data)} bytes, expected {expected}")
        if block in self._blocks:
            raise ValueError(f"{span} is there already")
        self._blocks[block] = piece.data
