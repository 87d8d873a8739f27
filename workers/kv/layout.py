"""What a segment is cut into: chunks with fixed sizes in a fixed order, known before any byte is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from controlplane.wire import KvGroup, KvManifest

#: Chunks of one segment: 131,072 tokens in blocks of one, and the state. A manifest that makes
#: more is refused before a plan of that size is built.
CHUNKS_MAX: Final = (1 << 17) + 1
#: Bytes of one chunk; the largest published state (Kimi-K3) is 429 MiB.
CHUNK_BYTES_MAX: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class ChunkSpec:
    """
    Place and size of one chunk, the same at both ends of a transfer.

    One chunk is one `KvPiece` of the engine contract: an attention block, or the state.
    """

    #: Position in the plan, from 0.
    index: int
    group: Literal["attention", "state"]
    #: Absolute position in the prompt; a multiple of the block size for attention.
    token_start: int
    #: `token_start == token_end == token_count` for the state.
    token_end: int
    size_bytes: int


def chunk_plan(manifest: KvManifest) -> tuple[ChunkSpec, ...]:
    """
    All chunks of a segment in the order in which they are computed, numbered and sent. Pure.

        tokens     0        16        32        48   55
        chunks     |   0    |    1    |    2    |  3  | 4    (block_tokens 16, token_count 55)
                    attention, one a block       short  state, valid at 55

    Args:
        manifest: Groups may come in any order, each at most once; a model without one of the
            groups has no chunks of it.

    Raises:
        ValueError: A group is there twice or mixes both kinds of size, or the plan is beyond
            `CHUNKS_MAX` chunks or `CHUNK_BYTES_MAX` bytes a chunk.
    """
    groups = _groups_by_name(manifest)
    count = _chunk_count(manifest, groups)
    if count > CHUNKS_MAX:
        raise ValueError(f"the manifest makes {count} chunks, more than {CHUNKS_MAX}")
    chunks: list[ChunkSpec] = []
    if attention := groups.get("attention"):
        for start in range(0, manifest.token_count, manifest.block_tokens):
            end = min(start + manifest.block_tokens, manifest.token_count)
            size_bytes = (end - start) * attention.bytes_per_token
            chunks.append(ChunkSpec(len(chunks), "attention", start, end, size_bytes))
    if state := groups.get("state"):
        end = manifest.token_count
        chunks.append(ChunkSpec(len(chunks), "state", end, end, state.fixed_bytes))
    largest = max((chunk.size_bytes for chunk in chunks), default=0)
    if largest > CHUNK_BYTES_MAX:
        raise ValueError(f"a chunk of {largest} bytes is over {CHUNK_BYTES_MAX}")
    return tuple(chunks)


def missing_chunks(plan: Sequence[ChunkSpec], held_tokens: int) -> tuple[ChunkSpec, ...]:
    """
    What a receiver must fetch that holds the attention KV of the leading tokens. Pure.

    The state is not incremental and always among it. A block that is held in part is fetched
    whole.

    Args:
        plan: From `chunk_plan`.
        held_tokens: Leading tokens, >= 0; more than the segment covers means all.

    Raises:
        ValueError: `held_tokens` is negative.
    """
    if held_tokens < 0:
        raise ValueError(f"held_tokens must not be negative, got {held_tokens}")
    return tuple(chunk for chunk in plan if chunk.group == "state" or chunk.token_end > held_tokens)


def manifest_bytes(manifest: KvManifest) -> int:
    """Bytes of all chunks together, without building the plan. Pure."""
    groups = _groups_by_name(manifest)
    attention, state = groups.get("attention"), groups.get("state")
    per_token = attention.bytes_per_token if attention else 0
    return manifest.token_count * per_token + (state.fixed_bytes if state else 0)


def _groups_by_name(manifest: KvManifest) -> dict[str, KvGroup]:
    groups: dict[str, KvGroup] = {group.name: group for group in manifest.groups}
    if len(groups) != len(manifest.groups):
        raise ValueError(f"groups must differ, got {[group.name for group in manifest.groups]}")
    for group in manifest.groups:
        if (group.fixed_bytes if group.name == "attention" else group.bytes_per_token) != 0:
            raise ValueError(
                f"group {group.name!r} has {group.bytes_per_token} bytes per token and "
                f"{group.fixed_bytes} fixed bytes: attention has the first, state the second"
            )
    return groups


def _chunk_count(manifest: KvManifest, groups: dict[str, KvGroup]) -> int:
    blocks = -(-manifest.token_count // manifest.block_tokens) if "attention" in groups else 0
    return blocks + ("state" in groups)
