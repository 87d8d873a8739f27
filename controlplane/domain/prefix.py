"""Prefixes of a prompt: block hashes, hits under the hybrid rule, and what workers say they hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Protocol, TypeAlias

from controlplane.domain.tokens import TokenIds

#: Identity of a whole prefix that ends at a block boundary: 16 bytes.
BlockHash: TypeAlias = bytes

BLOCK_HASH_BYTES: Final = 16


def scope_of(*, model: str, fingerprint: str, tenant_salt: str) -> str:
    """
    The set of requests that may share KV: same model, same numerics, same tenant.

    The salt is the tenant's secret; only its digest leaves the router, so that nobody can test
    for another tenant's prefix by guessing its text.
    """
    parts = (model, fingerprint, tenant_salt)
    return sha256("\x00".join(f"{len(part)}:{part}" for part in parts).encode()).hexdigest()[:32]


def block_hashes(tokens: TokenIds, *, block_tokens: int, scope: str) -> tuple[BlockHash, ...]:
    """
    Chained hashes of the full blocks of a prompt.

    Hash `i` names the first `(i + 1) * block_tokens` tokens in their scope, so one equal hash
    means one equal prefix. A partial last block has no hash.

    Args:
        tokens: The prompt.
        block_tokens: Tokens in a block, > 0.
        scope: From `scope_of`.

    Returns:
        One hash of 16 bytes for each full block. The chain itself runs over all 32 bytes of
        SHA-256: shortening happens at the end, and keys stay small.
    """
    step = block_tokens * tokens.width_bytes
    view = memoryview(tokens.data)
    parent = _root(block_tokens, tokens.width_bytes, scope)
    hashes: list[BlockHash] = []
    for start in range(0, len(view) - step + 1, step):
        # Copying the running state and feeding it one block keeps the whole chain in one digest.
        parent.update(view[start : start + step])
        hashes.append(parent.copy().digest()[:BLOCK_HASH_BYTES])
    return tuple(hashes)


class BlockChain:
    """
    One block of a chain that grows block by block, as engines tell of their caches.

    `BlockChain.root(...).extend(first).extend(second).block` is the second of `block_hashes`.
    """

    __slots__ = ("_state", "block")

    def __init__(self, state: _Digest) -> None:
        self._state = state
        #: The prefix that ends here.
        self.block: BlockHash = state.digest()[:BLOCK_HASH_BYTES]

    def __repr__(self) -> str:
        return f"<BlockChain {self.block.hex()}>"

    @classmethod
    def root(cls, *, block_tokens: int, width_bytes: int, scope: str) -> BlockChain:
        """Where every chain of a scope begins; its own `block` names no block."""
        return cls(_root(block_tokens, width_bytes, scope))

    def extend(self, packed: bytes | memoryview) -> BlockChain:
        """
        The next block.

        Args:
            packed: Its tokens, as `TokenIds` packs them: exactly one block.
        """
        state = self._state.copy()
        state.update(packed)
        return BlockChain(state)


def _root(block_tokens: int, width_bytes: int, scope: str) -> _Digest:
    if block_tokens <= 0:
        raise ValueError(f"block_tokens must be positive, not {block_tokens}")
    # The scope's length ends the header where it ends, whatever the tokens spell after it.
    return sha256(f"{len(scope)}:{scope}:{block_tokens}:{width_bytes}".encode())


class _Digest(Protocol):
    """A running hash."""

    def update(self, data: bytes | memoryview, /) -> None: ...

    def copy(self) -> _Digest: ...

    def digest(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class PrefixHit:
    """
    How much of one prompt a worker holds.

    Linear-attention state is valid at its own position only, so a prefill can resume at the
    longest position where *both* the attention blocks and a state snapshot exist. A decode
    worker asks for the attention blocks it lacks, and so looks at those alone.
    """

    #: Leading tokens whose attention KV is there. A multiple of the block size.
    attention_tokens: int
    #: Longest prefix a prefill can resume from; at most `attention_tokens`.
    resumable_tokens: int


NO_HIT: Final = PrefixHit(0, 0)


@dataclass(frozen=True, slots=True)
class InventoryEntry:
    """What a worker holds at the end of one block chain."""

    has_attention: bool
    has_state: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class InventoryDelta:
    """
    Change of a worker's prefix inventory since its last report.

    A full report (`is_full`) replaces everything known; otherwise `removed` goes first, so that
    an entry in both was dropped and stored again. Storing an entry that holds nothing removes it.
    """

    is_full: bool = False
    stored: Mapping[BlockHash, InventoryEntry]
    removed: tuple[BlockHash, ...] = ()
