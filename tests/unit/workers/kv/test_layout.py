from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kv_builders import BLOCK, a_manifest, property_settings

from controlplane.wire import KvGroup, KvManifest
from workers.kv.layout import (
    CHUNK_BYTES_MAX,
    CHUNKS_MAX,
    ChunkSpec,
    chunk_plan,
    manifest_bytes,
    missing_chunks,
)

manifests = st.builds(
    a_manifest,
    st.integers(0, 300),
    bytes_per_token=st.integers(0, 50),
    state_bytes=st.integers(0, 1000),
    block_tokens=st.integers(1, 64),
)


def test_a_plan_is_one_chunk_a_block_and_the_state_last() -> None:
    plan = chunk_plan(a_manifest(2 * BLOCK + 5, bytes_per_token=10, state_bytes=99))

    assert plan == (
        ChunkSpec(0, "attention", 0, 16, 160),
        ChunkSpec(1, "attention", 16, 32, 160),
        ChunkSpec(2, "attention", 32, 37, 50),
        ChunkSpec(3, "state", 37, 37, 99),
    )


def test_a_segment_that_ends_on_a_boundary_has_no_short_chunk() -> None:
    plan = chunk_plan(a_manifest(2 * BLOCK))

    assert [chunk.token_end for chunk in plan] == [16, 32, 32]


def test_a_segment_without_tokens_is_the_state_alone() -> None:
    plan = chunk_plan(a_manifest(0, state_bytes=7))

    assert plan == (ChunkSpec(0, "state", 0, 0, 7),)


def test_a_model_without_state_has_attention_chunks_only() -> None:
    groups = (KvGroup(name="attention", bytes_per_token=2, fixed_bytes=0),)

    plan = chunk_plan(a_manifest(20, groups=groups))

    assert [chunk.group for chunk in plan] == ["attention", "attention"]


def test_a_model_without_attention_has_the_state_alone() -> None:
    groups = (KvGroup(name="state", bytes_per_token=0, fixed_bytes=5),)

    plan = chunk_plan(a_manifest(20, groups=groups))

    assert plan == (ChunkSpec(0, "state", 20, 20, 5),)


def test_the_order_of_groups_in_a_manifest_does_not_matter() -> None:
    manifest = a_manifest()
    swapped = manifest.model_copy(update={"groups": manifest.groups[::-1]})

    assert chunk_plan(swapped) == chunk_plan(manifest)


@property_settings
@given(manifests)
def test_chunks_add_up_to_the_manifest(manifest: KvManifest) -> None:
    assert sum(chunk.size_bytes for chunk in chunk_plan(manifest)) == manifest_bytes(manifest)


@property_settings
@given(manifests)
def test_attention_chunks_cover_all_tokens_once_on_block_boundaries(manifest: KvManifest) -> None:
    chunks = [chunk for chunk in chunk_plan(manifest) if chunk.group == "attention"]

    covered = [token for chunk in chunks for token in range(chunk.token_start, chunk.token_end)]
    assert covered == list(range(manifest.token_count))
    assert all(chunk.token_start % manifest.block_tokens == 0 for chunk in chunks)


@property_settings
@given(manifests, st.integers(0, 400))
def test_held_and_missing_tokens_are_the_whole_and_the_state_is_always_missing(
    manifest: KvManifest, held_tokens: int
) -> None:
    plan = chunk_plan(manifest)

    missing = missing_chunks(plan, held_tokens)

    held = [chunk for chunk in plan if chunk not in missing]
    assert all(chunk.group == "attention" for chunk in held)
    assert all(chunk.token_end <= held_tokens for chunk in held)
    assert missing[-1].group == "state"
    assert list(missing) == list(plan[len(held) :])


def test_a_fully_held_segment_lacks_nothing_but_the_state() -> None:
    plan = chunk_plan(a_manifest(40))

    assert missing_chunks(plan, 40) == (plan[-1],)


def test_a_block_that_is_held_in_part_is_fetched_whole() -> None:
    plan = chunk_plan(a_manifest(2 * BLOCK))

    assert missing_chunks(plan, BLOCK + 1)[0].token_start == BLOCK


def test_a_negative_holding_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        missing_chunks((), -1)


def test_a_manifest_with_a_group_twice_is_refused() -> None:
    group = KvGroup(name="state", bytes_per_token=0, fixed_bytes=1)

    with pytest.raises(ValueError, match="must differ"):
        chunk_plan(a_manifest(groups=(group, group)))


@pytest.mark.parametrize(
    "group",
    [
        KvGroup(name="attention", bytes_per_token=1, fixed_bytes=1),
        KvGroup(name="state", bytes_per_token=1, fixed_bytes=1),
    ],
    ids=["attention", "state"],
)
def test_a_group_with_the_size_of_the_other_kind_is_refused(group: KvGroup) -> None:
    with pytest.raises(ValueError, match="fixed bytes"):
        manifest_bytes(a_manifest(groups=(group,)))


def test_a_manifest_of_absurdly_many_chunks_is_refused_before_they_are_built() -> None:
    with pytest.raises(ValueError, match=f"more than {CHUNKS_MAX}"):
        chunk_plan(a_manifest(10**15))


def test_a_manifest_with_an_absurdly_large_chunk_is_refused() -> None:
    with pytest.raises(ValueError, match="is over"):
        chunk_plan(a_manifest(state_bytes=CHUNK_BYTES_MAX + 1))
