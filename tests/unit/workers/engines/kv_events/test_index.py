"""Blocks of a real vLLM under our own hashes: dense, hybrid, salted, evicted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from controlplane.domain.prefix import BlockHash, InventoryEntry, block_hashes
from controlplane.domain.tokens import TokenIds
from workers.engines.kv_events.decode import Cleared, Event, Removed, Stored, decode_batch
from workers.engines.kv_events.index import BlockIndex

DATA = Path(__file__).resolve().parents[4] / "data" / "kv_events"
BOTH = InventoryEntry(has_attention=True, has_state=True)
ATTENTION = InventoryEntry(has_attention=True, has_state=False)


def captured(name: str) -> dict[str, tuple[Event, ...]]:
    """Batches that a vLLM 0.32 sent, by what was asked of it."""
    said = msgspec.msgpack.decode((DATA / f"{name}.msgpack").read_bytes())
    return {label: decode_batch(frames[2]) for label, frames in said}


def tokens_of(events: tuple[Event, ...]) -> list[int]:
    return max((list(one.tokens) for one in events if isinstance(one, Stored)), key=len)


def hashes_of(tokens: list[int], block: int, scope: str) -> tuple[BlockHash, ...]:
    return block_hashes(TokenIds.from_ints(tokens, 2), block_tokens=block, scope=scope)


def an_index(block: int = 2, **settings: object) -> BlockIndex:
    return BlockIndex(block_tokens=block, width_bytes=2, **settings)  # type: ignore[arg-type]


def stored(*names: int, parent: int | None = None, **fields: object) -> Stored:
    """Blocks of two tokens, which are their name."""
    values: dict[str, object] = {
        "hashes": names,
        "parent": parent,
        "tokens": [name for name in names for _ in range(2)],
        "block_tokens": 2,
        "extra_keys": (("s",) if parent is None else None, *[None] * (len(names) - 1)),
        "medium": "GPU",
    }
    return Stored(**(values | fields))  # type: ignore[arg-type]


def test_a_dense_models_blocks_are_those_that_the_router_hashes() -> None:
    batch = captured("vllm-dense")["first"]
    index = an_index(128)

    changed = index.apply(batch)

    expected = hashes_of(tokens_of(batch), 128, "salt1")
    assert len(expected) == 4
    assert index.entries == dict.fromkeys(expected, BOTH)
    assert changed == set(expected)


def test_requests_of_others_are_nobodys_prefix() -> None:
    index = an_index(128)

    assert not index.apply(captured("vllm-dense")["nosalt"])
    assert index.entries == {}


def test_a_hybrid_models_state_is_where_the_engine_kept_it_and_nowhere_else() -> None:
    batches = captured("vllm-hybrid")
    index = an_index(256, has_state=True)

    index.apply(batches["first"])

    long = hashes_of(tokens_of(batches["first"]), 256, "salt1")
    assert [index.entries[block] for block in long] == [ATTENTION] * 4 + [BOTH]

    index.apply(batches["branch"])

    assert index.entries[long[1]] == BOTH, "the shorter prompt ended there"


def test_a_position_whose_state_is_gone_from_one_group_cannot_be_gone_on_from() -> None:
    batch = captured("vllm-hybrid")["first"]
    index = an_index(256, has_state=True)
    index.apply(batch)
    state = next(one for one in batch if isinstance(one, Stored) and one.kind == "mamba")

    changed = index.apply([Removed(hashes=state.hashes, medium="GPU", group=state.group)])

    last = hashes_of(tokens_of(batch), 256, "salt1")[-1]
    assert changed == {last}
    assert index.entries[last] == ATTENTION


def test_two_salts_never_meet() -> None:
    index = an_index(128)
    batches = captured("vllm-dense")
    index.apply(batches["first"])
    index.apply(batches["othersalt"])

    assert len(index.entries) == 8


def test_blocks_follow_their_parent_and_leave_by_the_engines_name() -> None:
    index = an_index()
    index.apply([stored(1, 2)])
    index.apply([stored(3, parent=2)])
    blocks = hashes_of([1, 1, 2, 2, 3, 3], 2, "s")
    assert set(index.entries) == set(blocks)

    assert index.apply([Removed(hashes=(3, 9), medium="GPU")]) == {blocks[2]}
    assert set(index.entries) == set(blocks[:2])


def test_a_block_in_two_memories_is_held_until_both_have_dropped_it() -> None:
    index = an_index()
    index.apply([stored(1), stored(1, medium="CPU")])

    assert not index.apply([Removed(hashes=(1,), medium="GPU")])
    assert len(index.apply([Removed(hashes=(1,), medium="CPU")])) == 1
    assert index.entries == {}


def test_clearing_forgets_all_of_it() -> None:
    index = an_index()
    index.apply([stored(1, 2)])

    assert len(index.apply([Cleared(), stored(5)])) == 3
    assert set(index.entries) == set(hashes_of([5, 5], 2, "s"))


@pytest.mark.parametrize(
    "event",
    [
        pytest.param(stored(1, parent=77), id="its parent was never told"),
        pytest.param(stored(1, block_tokens=4), id="another block size"),
        pytest.param(stored(1, tokens=[1]), id="tokens are missing"),
        pytest.param(stored(1, tokens=[1, 70_000]), id="a token that the model has not"),
        pytest.param(stored(1, has_adapter=True), id="an adapter"),
        pytest.param(stored(1, extra_keys=(("s", "image"),)), id="an image"),
        pytest.param(stored(1, extra_keys=None), id="no word of salts"),
    ],
)
def test_what_has_no_place_in_our_chain_is_passed_over(event: Stored) -> None:
    index = an_index()

    assert not index.apply([event])
    assert index.entries == {}


def test_blocks_behind_an_image_are_passed_over() -> None:
    index = an_index()

    index.apply([stored(1, 2, 3, extra_keys=(("s",), ("image",), None))])

    assert set(index.entries) == set(hashes_of([1, 1], 2, "s"))


def test_a_server_that_tells_no_salts_is_believed_where_all_requests_have_one_scope() -> None:
    index = an_index(untold_scope=lambda: "s")

    index.apply([stored(1, extra_keys=None)])

    assert set(index.entries) == set(hashes_of([1, 1], 2, "s"))


def test_memory_is_bounded() -> None:
    index = an_index(blocks_max=2)

    index.apply([stored(1, 2, 3), replace(stored(4, 5), kind="mamba", group=1)])

    assert len(index.entries) == 2
