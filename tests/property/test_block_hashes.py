from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import prompts

from controlplane.domain.prefix import block_hashes
from controlplane.domain.tokens import TokenIds

scopes = st.text("0123456789abcdef:", max_size=8)
blocks = st.integers(1, 9)


@given(prompts, blocks, scopes)
def test_there_is_one_hash_for_each_full_block(
    tokens: TokenIds, block_tokens: int, scope: str
) -> None:
    hashes = block_hashes(tokens, block_tokens=block_tokens, scope=scope)

    assert len(hashes) == len(tokens) // block_tokens
    assert len(set(hashes)) == len(hashes)


@given(prompts, blocks, scopes, st.integers(0, 60))
def test_hashes_of_a_prefix_are_a_prefix_of_the_hashes(
    tokens: TokenIds, block_tokens: int, scope: str, count: int
) -> None:
    whole = block_hashes(tokens, block_tokens=block_tokens, scope=scope)

    head = block_hashes(tokens.head(count), block_tokens=block_tokens, scope=scope)

    assert head == whole[: min(count, len(tokens)) // block_tokens]


@given(prompts, blocks, scopes, st.data())
def test_a_changed_token_changes_its_block_and_all_after_it(
    tokens: TokenIds, block_tokens: int, scope: str, data: st.DataObject
) -> None:
    assume(len(tokens))
    at = data.draw(st.integers(0, len(tokens) - 1))
    ids = tokens.to_list()
    ids[at] ^= 1
    changed = TokenIds.from_ints(ids, tokens.width_bytes)

    before = block_hashes(tokens, block_tokens=block_tokens, scope=scope)
    after = block_hashes(changed, block_tokens=block_tokens, scope=scope)

    block = at // block_tokens
    assert after[:block] == before[:block]
    assert not set(after[block:]) & set(before[block:])


@given(prompts, blocks, scopes, scopes)
def test_another_scope_shares_no_hash(
    tokens: TokenIds, block_tokens: int, scope: str, other: str
) -> None:
    assume(scope != other)

    one = block_hashes(tokens, block_tokens=block_tokens, scope=scope)
    two = block_hashes(tokens, block_tokens=block_tokens, scope=other)

    assert not set(one) & set(two)


@given(prompts, blocks, blocks, scopes)
def test_another_block_size_shares_no_hash(
    tokens: TokenIds, block_tokens: int, other: int, scope: str
) -> None:
    assume(block_tokens != other)

    one = block_hashes(tokens, block_tokens=block_tokens, scope=scope)
    two = block_hashes(tokens, block_tokens=other, scope=scope)

    assert not set(one) & set(two)
