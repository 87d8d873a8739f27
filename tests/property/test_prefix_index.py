from __future__ import annotations

from typing import TypeAlias

from hypothesis import given
from hypothesis import strategies as st

from controlplane.domain.prefix import (
    BlockHash,
    InventoryDelta,
    InventoryEntry,
    PrefixHit,
)
from controlplane.domain.prefix_index import PrefixIndex
from controlplane.wire import Inventory

BLOCKS = tuple(bytes([n]) * 16 for n in range(6))
WORKERS = ("w1", "w2", "w3")

entries = st.builds(InventoryEntry, has_attention=st.booleans(), has_state=st.booleans())
deltas = st.builds(
    InventoryDelta,
    is_full=st.sampled_from((False, False, False, True)),
    stored=st.dictionaries(st.sampled_from(BLOCKS), entries),
    removed=st.lists(st.sampled_from(BLOCKS), max_size=4).map(tuple),
)
#: A report of a worker, or None when it is forgotten.
changes = st.lists(
    st.tuples(st.sampled_from(WORKERS), st.one_of(deltas, deltas, deltas, st.none())), max_size=20
)
chains = st.permutations(BLOCKS).flatmap(
    lambda order: st.integers(0, len(order)).map(lambda count: order[:count])
)

Held: TypeAlias = dict[str, dict[BlockHash, InventoryEntry]]


def naive_apply(held: Held, worker_id: str, delta: InventoryDelta | None) -> None:
    mine = held.setdefault(worker_id, {})
    if delta is None or delta.is_full:
        mine.clear()
    if delta is not None:
        for block in delta.removed:
            mine.pop(block, None)
        mine.update(delta.stored)
        for block in [block for block, entry in mine.items() if entry == EMPTY]:
            del mine[block]


EMPTY = InventoryEntry(has_attention=False, has_state=False)


def naive_match(held: Held, chain: list[BlockHash], block_tokens: int) -> dict[str, PrefixHit]:
    hits = {}
    for worker_id, mine in held.items():
        attention = 0
        while attention < len(chain) and mine.get(chain[attention], EMPTY).has_attention:
            attention += 1
        with_state = [n + 1 for n in range(attention) if mine[chain[n]].has_state]
        if attention:
            resumable = max(with_state, default=0)
            hits[worker_id] = PrefixHit(attention * block_tokens, resumable * block_tokens)
    return hits


@given(changes, chains, st.integers(1, 64), st.sampled_from((1, 2, 64)))
def test_the_index_knows_what_a_naive_one_knows(
    reports: list[tuple[str, InventoryDelta | None]],
    chain: list[BlockHash],
    block_tokens: int,
    each_max: int,
) -> None:
    """However many holders make a crowd that is told by bits."""
    index = PrefixIndex(each_max=each_max)
    held: Held = {}

    for worker_id, delta in reports:
        if delta is None:
            index.forget(worker_id)
        else:
            index.apply(worker_id, delta)
        naive_apply(held, worker_id, delta)

    assert index.match(chain, block_tokens=block_tokens) == naive_match(held, chain, block_tokens)
    assert all(index.held_blocks(name) == len(held.get(name, {})) for name in WORKERS)


@given(changes)
def test_an_index_that_everybody_left_is_empty(
    reports: list[tuple[str, InventoryDelta | None]],
) -> None:
    index = PrefixIndex()
    for worker_id, delta in reports:
        if delta is not None:
            index.apply(worker_id, delta)

    for worker_id in WORKERS:
        index.forget(worker_id)

    assert repr(index) == repr(PrefixIndex())


@given(changes, deltas)
def test_a_full_report_is_the_same_as_a_fresh_start(
    reports: list[tuple[str, InventoryDelta | None]], last: InventoryDelta
) -> None:
    full = InventoryDelta(is_full=True, stored=last.stored, removed=last.removed)
    used, fresh = PrefixIndex(), PrefixIndex()
    for _, delta in reports:
        if delta is not None:
            used.apply("w1", delta)

    used.apply("w1", full)
    fresh.apply("w1", full)

    assert used.match(BLOCKS, block_tokens=1) == fresh.match(BLOCKS, block_tokens=1)
    assert repr(used) == repr(fresh)


@given(changes, chains)
def test_a_delta_means_the_same_after_a_journey_on_the_wire(
    reports: list[tuple[str, InventoryDelta | None]], chain: list[BlockHash]
) -> None:
    here, there = PrefixIndex(), PrefixIndex()

    for worker_id, delta in reports:
        if delta is not None:
            here.apply(worker_id, delta)
            message = Inventory.from_delta(delta).model_dump_json()
            there.apply(worker_id, Inventory.model_validate_json(message).to_delta())

    assert there.match(chain, block_tokens=1) == here.match(chain, block_tokens=1)
    assert repr(there) == repr(here)
