"""KV events off the wire: as real servers sent them, as old ones did, and as nobody should."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from workers.engines.kv_events.decode import NO_GROUP, Cleared, Removed, Stored, decode_batch

pack = msgspec.msgpack.encode

MAP = {
    "type": "BlockStored",
    "block_hashes": [7],
    "parent_block_hash": 3,
    "token_ids": [1, 2],
    "block_size": 2,
    "lora_id": None,
    "medium": "GPU",
    "lora_name": None,
    "extra_keys": [["salt"]],
    "group_idx": 1,
    "kv_cache_spec_kind": "full_attention",
    "session_id": "not known here",
}


def test_a_map_and_the_array_of_older_servers_are_one_event() -> None:
    array = ["BlockStored", [7], 3, [1, 2], 2, None, "GPU", None, [["salt"]], 1, "full_attention"]

    (event,) = decode_batch(pack([1.0, [MAP], 0]))

    assert decode_batch(pack([1.0, [array]])) == (event,)
    assert event == Stored(
        hashes=(7,), parent=3, tokens=[1, 2], block_tokens=2, group=1, kind="full_attention",
        medium="GPU", extra_keys=(("salt",),),
    )  # fmt: skip


def test_sglang_names_the_salt_and_no_group() -> None:
    said = {"type": "BlockStored", "block_hashes": [-9], "token_ids": [1], "block_size": 1}

    (event,) = decode_batch(
        pack([1.0, [{**said, "cache_salt": "s", "medium": "CPU_PINNED"}], None])
    )

    assert event == Stored(
        hashes=(-9,), parent=None, tokens=[1], block_tokens=1, group=NO_GROUP, medium="CPU_PINNED",
        extra_keys=(("s",),),
    )  # fmt: skip


def test_removals_and_clearings_keep_their_order() -> None:
    events = [
        {"type": "BlockRemoved", "block_hashes": [b"x"], "medium": "GPU"},
        ["AllBlocksCleared"],
    ]

    assert decode_batch(pack([1.0, events])) == (Removed(hashes=(b"x",), medium="GPU"), Cleared())


def test_an_adapter_is_told_and_what_lies_elsewhere_or_is_unknown_is_left_out() -> None:
    batch = [{**MAP, "lora_name": "a"}, {**MAP, "locality": "REMOTE"}, {"type": "Moved"}]

    (event,) = decode_batch(pack([1.0, batch]))

    assert isinstance(event, Stored)
    assert event.has_adapter


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (b"\xc1", "not msgpack"),
        (pack("text"), "has no events"),
        (pack([1.0]), "has no events"),
        (pack([1.0, [5]]), "neither a map nor an array"),
        (pack([1.0, [{**MAP, "token_ids": None}]]), "no token_ids or no block_size"),
        (pack([1.0, [{**MAP, "block_size": 0}]]), "no token_ids or no block_size"),
        (pack([1.0, [{**MAP, "block_hashes": 1}]]), "no block_hashes"),
        (pack([1.0, [{**MAP, "block_hashes": [1.5]}]]), "neither a number nor bytes"),
    ],
)
def test_garbage_says_what_is_wrong_with_it(batch: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        decode_batch(batch)
