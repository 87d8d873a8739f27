"""
The engine contract: what a worker needs of the thing that computes.

Two calls meet here. `prefill` computes all tokens of a prompt but the last and hands out KV in
pieces as they are finished; `decode` takes those pieces in another process, computes the last
prompt token and goes on. Pieces are bytes in one layout per fingerprint, so that two workers with
equal fingerprints can exchange them and any others are refused.

An engine owns its compute thread: its methods may be called from the event loop and never block it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from controlplane.domain.prefix import BlockHash, InventoryDelta
from controlplane.domain.tokens import TokenIds
from controlplane.errors import PrfaasError
from controlplane.wire import KvGroup, Load, Profile, Sampling, TransferEvidence

ItemT_co = TypeVar("ItemT_co", covariant=True)


class ClosableIterator(Protocol[ItemT_co]):
    """An asynchronous iterator with work behind it that can be stopped before its end."""

    def __aiter__(self) -> AsyncIterator[ItemT_co]:
        """Itself."""

    async def __anext__(self) -> ItemT_co:
        """The next item."""

    async def aclose(self) -> None:
        """Stop the work and give back what it holds. Idempotent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """What an engine is; constant for the life of the process."""

    model: str
    #: Digest of everything that KV depends on: weights, dtype, layout, block size.
    fingerprint: str
    vocabulary_size: int
    #: Tokens in a block: the unit of prefix hashes, cache hits and attention chunks.
    block_tokens: int
    #: Prompt and output together.
    context_tokens_max: int
    #: Sequences decoded at the same time.
    decode_slots: int
    #: Attention first, state last: the order in which they leave.
    groups: tuple[KvGroup, ...]
    #: Its prefix cache can be read and filled from outside.
    can_move_prefixes: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class KvPiece:
    """
    A finished part of a segment.

    Attention comes in blocks: `token_start` is a multiple of the block size and the piece covers
    one block, or the rest of the segment if that is shorter. State comes once, at the end, with
    `token_start == token_end ==` the position it is valid at.
    """

    group: Literal["attention", "state"]
    token_start: int
    token_end: int
    #: `bytes_per_token * (token_end - token_start)` or `fixed_bytes` bytes.
    data: bytes


def _nobody(reason: PrfaasError) -> None:
    del reason


@dataclass(frozen=True, slots=True, kw_only=True)
class JobContext:
    """What an engine in another process has to be told besides the tokens whose KV is wanted."""

    request_id: str
    #: Requests of different scopes share no KV.
    scope: str
    #: The prompt's last token, whose KV nobody wants.
    last_token: int
    #: Of a decode job.
    sampling: Sampling | None = None
    #: Told of a decode that failed before its tokens were asked for.
    on_failure: Callable[[PrfaasError], None] = _nobody


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTransfer:
    """KV that an engine has moved by itself, by its own count."""

    moved_bytes: int
    #: Seconds in which they moved.
    moving_s: float
    #: How sure the numbers are of this one request; see `workers/engines/remote/proof.py`.
    evidence: TransferEvidence
    #: The engine has computed what was to come from outside.
    is_mismatch: bool


class PrefillRun(Protocol):
    """One prefill in progress."""

    @property
    def cached_tokens(self) -> int:
        """Tokens taken from the prefix cache. Known once the first piece is out."""

    @property
    def queue_s(self) -> float:
        """Seconds it waited for others. Known once the first piece is out."""

    @property
    def compute_s(self) -> float:
        """Seconds from then to the last piece. Known once that is out."""

    def pieces(self) -> ClosableIterator[KvPiece]:
        """
        All pieces of the segment in order, cached ones first, each as soon as it is there.

        Closing the iterator stops the computation at the next block. May be called once.
        """


class KvImport(Protocol):
    """A sequence being filled at the decode side; holds its cached blocks until it is closed."""

    @property
    def held_tokens(self) -> int:
        """Leading tokens whose attention KV is already here: a multiple of the block size."""

    @property
    def prompt_tokens_computed(self) -> int:
        """
        Prompt tokens that were computed here, as the thing that computes has counted them.

        0 before the first output token, 1 after it when all other KV was imported. Stays readable
        after `close`.
        """

    @property
    def transfer(self) -> EngineTransfer | None:
        """What the engine moved besides the pieces; None where the pieces are all of it."""

    async def settle(self) -> None:
        """Wait, a moment at most, until what is said of this sequence is what the engine counted."""

    def write(self, piece: KvPiece) -> None:
        """
        Take one piece. Each must come once; the order is free.

        Raises:
            ValueError: Wrong size, out of range, or not expected.
        """

    def keep(self) -> int:
        """
        Put what was written into the prefix cache instead of decoding it.

        It is held there until `close`, so that a prefill that is queued meanwhile finds it.

        Returns:
            Leading tokens that a prefill can skip now; less than was written where the cache had no
            room for all of it.

        Raises:
            ValueError: Something was not written, or the tokens do not end with a block.
        """

    def close(self) -> None:
        """Give everything back. Idempotent; a sequence that is decoding is stopped first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenOut:
    """One output token."""

    token: int
    #: Set with the last token: "stop" for an end token (which is not part of the output text).
    finish_reason: Literal["stop", "length"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCounters:
    """Totals since the start: the engine's own evidence of what it computed."""

    #: Prompt tokens computed by `prefill`.
    prefill_tokens_total: int = 0
    #: Prompt tokens computed by `decode`: one for each sequence whose KV came from elsewhere.
    decode_prompt_tokens_total: int = 0
    #: Tokens put out.
    output_tokens_total: int = 0
    #: Units of work finished, whatever came of them: moves as long as the engine does.
    units_total: int = 0
    #: Prompts that the engine's own events of its prefix cache did not tell of.
    unmatched_prompts_total: int = 0


class Engine(Protocol):
    """A model that can prefill, export, import and decode."""

    @property
    def spec(self) -> EngineSpec:
        """What it is."""

    def prefill(
        self, tokens: TokenIds, hashes: Sequence[BlockHash], context: JobContext | None = None
    ) -> PrefillRun:
        """
        Queue the prefill of all of `tokens` (the caller has left out the last prompt token).

        Args:
            tokens: `n >= 0` tokens; for 0 the state is the initial one.
            hashes: Block hashes of exactly these tokens, keys of the prefix cache.
            context: Of the job; engines in this process need none.
        """

    def begin_import(
        self, tokens: TokenIds, hashes: Sequence[BlockHash], context: JobContext | None = None
    ) -> KvImport:
        """Open a sequence whose KV for `tokens` (all but the last of the prompt) will be written."""

    def decode(
        self, sequence: KvImport, tokens: TokenIds, sampling: Sampling
    ) -> ClosableIterator[TokenOut]:
        """
        Compute the last prompt token and then output tokens, batched with other sequences.

        Args:
            sequence: Completely written. Ownership passes: it is closed when the iterator ends.
            tokens: The whole prompt, `len >= 1`.
            sampling: `stop` strings are the caller's business.
        """

    def export_prefix(self, tokens: TokenIds, hashes: Sequence[BlockHash]) -> Sequence[KvPiece]:
        """
        The longest prefix of `tokens` that the prefix cache has attention and exact state of.

        Args:
            tokens: Leading tokens of a prompt.
            hashes: Block hashes of exactly these tokens.

        Returns:
            Its pieces in order, as a prefill of it would make them: immutable, and not held by the
            cache. Empty when there is none.
        """

    def limit_prefill(self, share: float | None) -> None:
        """
        Let prefill take at most a part of the time while there is something to decode.

        Args:
            share: 0 < share < 1; None for no bound: prefill and decode take turns.
        """

    def take_inventory_delta(self, *, is_full: bool) -> InventoryDelta:
        """Changes of the prefix cache since the last call, or all of it."""

    def load(self) -> Load:
        """What it has to do now."""

    def profile(self) -> Profile:
        """Measured times and sizes."""

    def counters(self) -> EngineCounters:
        """Totals since the start."""

    def failure(self) -> str | None:
        """Why it can take no work, by its own evidence; None while it is well."""

    def check_integrity(self) -> None:
        """
        Assert conservation: free and used blocks add up, no block without an owner.

        Raises:
            AssertionError: They do not.
        """

    async def close(self) -> None:
        """Stop the compute thread; open iterators end."""
