from __future__ import annotations

from hashlib import sha256

import pytest

from controlplane.domain.prefix import (
    BLOCK_HASH_BYTES,
    NO_HIT,
    InventoryDelta,
    InventoryEntry,
    PrefixHit,
    block_hashes,
    scope_of,
)
from controlplane.domain.prefix_index import PrefixIndex
from controlplane.domain.tokens import TokenIds

ATTENTION = InventoryEntry(has_attention=True, has_state=False)
STATE = InventoryEntry(has_attention=False, has_state=True)
BOTH = InventoryEntry(has_attention=True, has_state=True)
NOTHING = InventoryEntry(has_attention=False, has_state=False)

SCOPE = scope_of(model="m", fingerprint="f", tenant_salt="s")

A, B, C, D = b"a", b"b", b"c", b"d"


def stored(**entries: InventoryEntry) -> InventoryDelta:
    return InventoryDelta(stored={name.encode(): entry for name, entry in entries.items()})


# --- Scopes -----------------------------------------------------------------------------------


def test_a_scope_is_the_same_for_the_same_three() -> None:
    assert scope_of(model="m", fingerprint="f", tenant_salt="s") == SCOPE


@pytest.mark.parametrize(
    ("model", "fingerprint", "tenant_salt"),
    [
        pytest.param("n", "f", "s", id="model"),
        pytest.param("m", "g", "s", id="fingerprint"),
        pytest.param("m", "f", "t", id="tenant"),
        pytest.param("mf", "", "s", id="parts moved across a border"),
        pytest.param("m\x001:f", "", "s", id="a part that looks like two"),
    ],
)
def test_a_scope_differs_when_anything_in_it_does(
    model: str, fingerprint: str, tenant_salt: str
) -> None:
    assert scope_of(model=model, fingerprint=fingerprint, tenant_salt=tenant_salt) != SCOPE


def test_a_scope_does_not_show_the_salt() -> None:
    scope = scope_of(model="m", fingerprint="f", tenant_salt="secret")

    assert len(scope) == 32
    assert int(scope, 16) >= 0
    assert sha256(b"secret").hexdigest()[:32] != scope


# --- Block hashes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("input_tokens", "blocks"),
    [
        pytest.param(0, 0, id="empty"),
        pytest.param(3, 0, id="less than a block"),
        pytest.param(4, 1, id="one block"),
        pytest.param(7, 1, id="a partial last block has no hash"),
        pytest.param(8, 2, id="two blocks"),
    ],
)
def test_only_full_blocks_have_a_hash(input_tokens: int, blocks: int) -> None:
    tokens = TokenIds.from_ints(range(input_tokens), 2)

    hashes = block_hashes(tokens, block_tokens=4, scope=SCOPE)

    assert len(hashes) == blocks
    assert all(len(block) == BLOCK_HASH_BYTES == 16 for block in hashes)


def test_equal_blocks_at_different_places_have_different_hashes() -> None:
    tokens = TokenIds.from_ints([1, 2] * 8, 2)

    hashes = block_hashes(tokens, block_tokens=2, scope=SCOPE)

    assert len(set(hashes)) == 8


def test_hashes_differ_by_the_width_of_tokens() -> None:
    narrow = block_hashes(TokenIds(bytes(16), 2), block_tokens=4, scope=SCOPE)
    wide = block_hashes(TokenIds(bytes(16), 4), block_tokens=4, scope=SCOPE)

    assert not set(narrow) & set(wide)


def test_a_prompt_cannot_continue_the_name_of_its_scope() -> None:
    # Token bytes that spell the rest of a longer scope's header must not reach its hashes.
    inside = TokenIds(b"abcd:4:2" + b"12345678", 2)
    outside = TokenIds(b"12345678", 2)

    short = block_hashes(inside, block_tokens=4, scope="s")
    long = block_hashes(outside, block_tokens=4, scope="s:4:2abcd")

    assert not set(short) & set(long)


@pytest.mark.parametrize("block_tokens", [0, -1])
def test_a_block_without_tokens_is_refused(block_tokens: int) -> None:
    with pytest.raises(ValueError, match=f"not {block_tokens}"):
        block_hashes(TokenIds(b"", 2), block_tokens=block_tokens, scope=SCOPE)


# --- The index --------------------------------------------------------------------------------


def test_an_empty_index_hits_nothing() -> None:
    index = PrefixIndex()

    assert index.match([A, B], block_tokens=16) == {}
    assert index.held_blocks("w1") == 0


@pytest.mark.parametrize(
    ("entries", "hit"),
    [
        pytest.param({"a": ATTENTION}, PrefixHit(16, 0), id="attention without state"),
        pytest.param({"a": BOTH}, PrefixHit(16, 16), id="attention and state"),
        pytest.param({"a": ATTENTION, "b": BOTH}, PrefixHit(32, 32), id="state at the end only"),
        pytest.param(
            {"a": BOTH, "b": ATTENTION, "c": ATTENTION},
            PrefixHit(48, 16),
            id="state far behind attention",
        ),
        pytest.param({"a": BOTH, "c": BOTH}, PrefixHit(16, 16), id="a gap ends it"),
        pytest.param(
            {"a": BOTH, "b": STATE, "c": BOTH},
            PrefixHit(16, 16),
            id="state without its attention ends it",
        ),
        pytest.param({"b": BOTH, "c": BOTH}, NO_HIT, id="nothing without the first block"),
        pytest.param({"a": STATE}, NO_HIT, id="state alone is nothing"),
        pytest.param({"a": NOTHING}, NO_HIT, id="an entry that holds nothing"),
    ],
)
def test_a_hit_follows_the_hybrid_rule(entries: dict[str, InventoryEntry], hit: PrefixHit) -> None:
    index = PrefixIndex()
    index.apply("w1", stored(**entries))

    hits = index.match([A, B, C], block_tokens=16)

    assert hits.get("w1", NO_HIT) == hit


def test_a_hit_ends_with_the_prompt() -> None:
    index = PrefixIndex()
    index.apply("w1", stored(a=BOTH, b=BOTH, c=BOTH))

    assert index.match([A, B], block_tokens=16) == {"w1": PrefixHit(32, 32)}
    assert index.match([], block_tokens=16) == {}


def test_each_worker_has_its_own_hit() -> None:
    index = PrefixIndex()
    index.apply("w1", stored(a=BOTH, b=ATTENTION))
    index.apply("w2", stored(a=ATTENTION, b=BOTH, c=BOTH))
    index.apply("w3", stored(b=BOTH))
    index.apply("w4", stored(d=BOTH))

    hits = index.match([A, B, C, D], block_tokens=16)

    assert hits == {"w1": PrefixHit(32, 16), "w2": PrefixHit(48, 48)}


def test_a_worker_that_lost_the_thread_does_not_find_it_again() -> None:
    index = PrefixIndex()
    index.apply("w1", stored(a=BOTH, c=BOTH))
    index.apply("w2", stored(a=BOTH, b=BOTH, c=BOTH))

    hits = index.match([A, B, C], block_tokens=16)

    assert hits == {"w1": PrefixHit(16, 16), "w2": PrefixHit(48, 48)}


def test_a_delta_adds_to_what_is_known() -> None:
    index = PrefixIndex()
    index.apply("w1", stored(a=BOTH))

    index.apply("w1", stored(b=BOTH))

    assert index.match([A, B], block_tokens=16) == {"w1": PrefixHit(32, 32)}
    assert index.held_blocks("w1") == 2


def test_a_delta_replaces_what_it_names() -> None:
    index = PrefixIndex()
    index.apply("w1", stored(a=BOTH))

    index.apply("w1", stored(a=ATTENTION))

    assert index.match([A], block_tokens=16) == {"w1": PrefixHit(16, 0)}
    assert index.held_blocks("w1") == 1


def test_a_delta_removes_before_it_stores() -> None:
    index = PrefixIndex()
    index.apply("w1", stored(a=BOTH, b=BOTH))

    index.apply("w1", InventoryDelta(stored={A: ATTENTION}, removed=(A, B)))

    assert index.match([A, B], block_tokens=16) == {"w1": PrefixHit(16, 0)}
    assert index.held_blocks("w1") == 1


def test_a_full_report_replaces_everything() -> None:
    index = PrefixIndex()
    index.apply("w1", stored(a=BOTH, b=BOTH))

    index.apply("w1", InventoryDelta(is_full=True, stored={C: BOTH}))

    assert index.match([A], block_tokens=16) == {}
    assert index.match([C], block_tokens=16) == {"w1": PrefixHit(16, 16)}
    assert index.held_blocks("w1") == 1


def test_an_entry_that_holds_nothing_is_not_held() -> None:
    index = PrefixIndex()
    index.apply("w1", stored(a=BOTH))

    index.apply("w1", stored(a=NOTHING, b=NOTHING))

    assert index.held_blocks("w1") == 0
    assert repr(index) == "<PrefixIndex 0 blocks, 1 workers>"


def test_removing_what_is_not_there_changes_nothing() -> None:
    index = PrefixIndex()
    index.apply("w1", stored(a=BOTH))

    index.apply("w1", InventoryDelta(stored={}, removed=(B,)))
    index.apply("w2", InventoryDelta(stored={}, removed=(A,)))

    assert index.match([A], block_tokens=16) == {"w1": PrefixHit(16, 16)}


def test_one_worker_removing_a_block_leaves_it_with_the_others() -> None:
    index = PrefixIndex()
    index.apply("w1", stored(a=BOTH))
    index.apply("w2", stored(a=BOTH))

    index.apply("w1", InventoryDelta(stored={}, removed=(A,)))

    assert index.match([A], block_tokens=16) == {"w2": PrefixHit(16, 16)}


def test_a_forgotten_worker_holds_nothing() -> None:
    index = PrefixIndex()
    index.apply("w1", stored(a=BOTH))
    index.apply("w2", stored(a=BOTH))

    index.forget("w1")
    index.forget("unknown")

    assert index.match([A], block_tokens=16) == {"w2": PrefixHit(16, 16)}
    assert index.held_blocks("w1") == 0


def test_an_index_keeps_nothing_of_what_left() -> None:
    index = PrefixIndex()
    index.apply("w1", stored(a=BOTH, b=STATE))
    index.apply("w2", stored(a=BOTH))
    assert repr(index) == "<PrefixIndex 2 blocks, 2 workers>"

    index.forget("w1")
    index.forget("w2")

    assert repr(index) == "<PrefixIndex 0 blocks, 0 workers>"
