"""
KV events of vLLM and SGLang, off the wire. Pure.

A batch is msgpack, `[time, events, rank]`. An event is a map with its `type`, or, from servers before
mid 2026, an array that begins with it; fields that are not known here are passed over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import msgspec

#: An engine's own name for a block: 64 bits, or a whole digest.
EngineHash: TypeAlias = int | bytes

#: Of SGLang, and of vLLM before it told of groups.
NO_GROUP: Final = -1

#: Fields in the order in which arrays have them.
_STORED: Final = (
    "block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium", "lora_name",
    "extra_keys", "group_idx", "kv_cache_spec_kind", "kv_cache_spec_sliding_window", "locality",
)  # fmt: skip
_REMOVED: Final = ("block_hashes", "medium", "group_idx", "locality")
_ELSEWHERE: Final = "REMOTE"
#: A batch is `[time, events]` at least.
_BATCH_FIELDS_MIN: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Blocks that an engine has now, each behind the one before it."""

    hashes: tuple[EngineHash, ...]
    #: Block before the first; None at the beginning of a prompt.
    parent: EngineHash | None
    tokens: Sequence[int]
    block_tokens: int
    group: int = NO_GROUP
    #: As the engine calls it, `full_attention` or `mamba`; empty where it does not tell.
    kind: str = ""
    #: Memory that it is in; a block may be in several.
    medium: str = ""
    #: What a block's hash was made of besides tokens; None where the engine does not tell.
    extra_keys: tuple[tuple[Any, ...] | None, ...] | None = None
    #: Computed with an adapter: not the model that we route to.
    has_adapter: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """Blocks that an engine has no longer in one of its memories."""

    hashes: tuple[EngineHash, ...]
    medium: str = ""
    group: int = NO_GROUP


@dataclass(frozen=True, slots=True)
class Cleared:
    """An engine has dropped everything."""


Event: TypeAlias = Stored | Removed | Cleared


def decode_batch(payload: bytes) -> tuple[Event, ...]:
    """
    The events of a batch, in order; those of an unknown type are left out.

    Raises:
        ValueError: It is not a batch, or an event lacks what it needs.
    """
    try:
        batch = msgspec.msgpack.decode(payload)
    except msgspec.MsgspecError as error:
        raise ValueError(f"a batch of KV events is not msgpack: {error}") from error
    if isinstance(batch, Mapping):
        found = batch.get("events")
    else:
        found = batch[1] if isinstance(batch, list) and len(batch) >= _BATCH_FIELDS_MIN else None
    if not isinstance(found, list):
        raise ValueError("a batch of KV events has no events")  # noqa: TRY004 - of its content
    events = (_event(one) for one in found)
    return tuple(event for event in events if event is not None)


def _event(raw: object) -> Event | None:
    if isinstance(raw, Mapping):
        kind, fields = raw.get("type"), raw
    elif isinstance(raw, list) and raw:
        kind = raw[0]
        names = _STORED if kind == "BlockStored" else _REMOVED
        fields = dict(zip(names, raw[1:], strict=False))
    else:
        raise ValueError("a KV event is neither a map nor an array")
    if kind == "AllBlocksCleared":
        return Cleared()
    if kind not in {"BlockStored", "BlockRemoved"} or fields.get("locality") == _ELSEWHERE:
        return None
    return _stored(fields) if kind == "BlockStored" else _removed(fields)


def _stored(fields: Mapping[str, Any]) -> Stored:
    tokens, size = fields.get("token_ids"), fields.get("block_size")
    if not isinstance(tokens, list) or not isinstance(size, int) or size < 1:
        raise ValueError("a BlockStored event has no token_ids or no block_size")
    parent = fields.get("parent_block_hash")
    return Stored(
        hashes=_hashes(fields),
        parent=None if parent is None else _hash(parent),
        tokens=tokens,
        block_tokens=size,
        group=_group(fields),
        kind=str(fields.get("kv_cache_spec_kind") or ""),
        medium=str(fields.get("medium") or ""),
        extra_keys=_extra_keys(fields),
        has_adapter=fields.get("lora_id") is not None or fields.get("lora_name") is not None,
    )


def _removed(fields: Mapping[str, Any]) -> Removed:
    return Removed(
        hashes=_hashes(fields), medium=str(fields.get("medium") or ""), group=_group(fields)
    )


def _extra_keys(fields: Mapping[str, Any]) -> tuple[tuple[Any, ...] | None, ...] | None:
    salt = fields.get("cache_salt")
    if isinstance(salt, str):
        # SGLang's way to say it.
        return ((salt,),)
    keys = fields.get("extra_keys")
    if not isinstance(keys, list):
        return None
    return tuple(tuple(one) if isinstance(one, list) and one else None for one in keys)


def _hashes(fields: Mapping[str, Any]) -> tuple[EngineHash, ...]:
    found = fields.get("block_hashes")
    if not isinstance(found, list):
        raise ValueError("a KV event has no block_hashes")  # noqa: TRY004 - of its content
    return tuple(_hash(one) for one in found)


def _hash(raw: object) -> EngineHash:
    if not isinstance(raw, int | bytes):
        raise ValueError("a block hash is neither a number nor bytes")  # noqa: TRY004 - of its content
    return raw


def _group(fields: Mapping[str, Any]) -> int:
    found = fields.get("group_idx")
    return found if isinstance(found, int) else NO_GROUP
