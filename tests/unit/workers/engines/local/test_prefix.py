"""A cached prefix moves from one engine's cache into another's, and is as good there."""

from __future__ import annotations

import pytest
from engine_builders import BLOCK, MakeEngine, a_prompt, hashes_of, prefill_all, write_all

from controlplane.domain.tokens import TokenIds
from workers.engine import KvPiece
from workers.engines.reference.engine import ReferenceEngine

#: Four full blocks, so that the last of them is a snapshot, and a rest.
PROMPT = a_prompt(4 * BLOCK + 10)
PREFIX = PROMPT.head(4 * BLOCK)


def exported(engine: ReferenceEngine, tokens: TokenIds) -> list[KvPiece]:
    return list(engine.export_prefix(tokens, hashes_of(tokens)))


async def copied(source: ReferenceEngine, target: ReferenceEngine, tokens: TokenIds) -> int:
    """What a prefill at the target can skip afterwards."""
    pieces = exported(source, tokens)
    prefix = tokens.head(pieces[-1].token_end)
    sequence = target.begin_import(prefix, hashes_of(prefix))
    write_all(sequence, pieces)
    kept = sequence.keep()
    sequence.close()
    return kept


async def test_what_was_copied_is_not_computed(make_engine: MakeEngine) -> None:
    """The segment is the same, byte for byte, as one that was computed whole."""
    source, target, alone = make_engine(), make_engine(), make_engine(cache_tokens_max=0)
    await prefill_all(source, PREFIX)

    kept = await copied(source, target, PROMPT)
    run = target.prefill(PROMPT, hashes_of(PROMPT))
    pieces = [piece async for piece in run.pieces()]

    assert kept == run.cached_tokens == 4 * BLOCK
    assert target.counters().prefill_tokens_total == 10
    assert pieces == await prefill_all(alone, PROMPT)


async def test_a_prefix_ends_where_its_state_is_known(make_engine: MakeEngine) -> None:
    """Attention without the state at its end would be of no use."""
    engine = make_engine()
    # Snapshots are at the fourth block and at the last full one.
    await prefill_all(engine, a_prompt(6 * BLOCK))

    pieces = exported(engine, a_prompt(6 * BLOCK).head(5 * BLOCK))

    assert [piece.group for piece in pieces] == ["attention"] * 4 + ["state"]
    assert pieces[-1].token_end == 4 * BLOCK


async def test_nothing_is_exported_of_what_was_never_seen(engine: ReferenceEngine) -> None:
    await prefill_all(engine, PREFIX)

    assert exported(engine, a_prompt(4 * BLOCK, salt=9)) == []


async def test_an_export_holds_nothing_of_the_cache(make_engine: MakeEngine) -> None:
    """Whoever reads it later has its own references; the cache may evict as it likes."""
    engine = make_engine(cache_tokens_max=4 * BLOCK)
    await prefill_all(engine, PREFIX)
    pieces = exported(engine, PREFIX)

    await prefill_all(engine, a_prompt(4 * BLOCK, salt=9))

    assert exported(engine, PREFIX) == []
    assert all(pieces[at].data for at in range(5))


async def test_a_copy_stays_until_it_is_closed(make_engine: MakeEngine) -> None:
    """A prefill that waits for its turn must find it, whatever is computed before it."""
    source, target = make_engine(), make_engine(cache_tokens_max=4 * BLOCK)
    await prefill_all(source, PREFIX)
    sequence = target.begin_import(PREFIX, hashes_of(PREFIX))
    write_all(sequence, exported(source, PREFIX))
    sequence.keep()

    await prefill_all(target, a_prompt(4 * BLOCK, salt=9))
    while_open = exported(target, PREFIX)
    sequence.close()
    await prefill_all(target, a_prompt(4 * BLOCK, salt=10))

    assert while_open
    assert exported(target, PREFIX) == []


async def test_a_cache_without_room_keeps_what_it_can(make_engine: MakeEngine) -> None:
    """And says so: nobody may count on the rest."""
    source, target = make_engine(), make_engine(cache_tokens_max=2 * BLOCK)
    await prefill_all(source, PREFIX)

    assert await copied(source, target, PREFIX) == 0


async def test_only_a_complete_copy_is_kept(engine: ReferenceEngine) -> None:
    """A hole would be computed over with the wrong state."""
    sequence = engine.begin_import(PREFIX, hashes_of(PREFIX))

    with pytest.raises(ValueError, match="KV is missing"):
        sequence.keep()
    sequence.close()


async def test_a_copy_ends_with_a_block(engine: ReferenceEngine) -> None:
    sequence = engine.begin_import(PROMPT, hashes_of(PROMPT))

    with pytest.raises(ValueError, match="inside a block"):
        sequence.keep()
    sequence.close()
