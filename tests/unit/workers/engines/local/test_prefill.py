from __future__ import annotations

import asyncio
import gc

import pytest
from engine_builders import (
    BLOCK,
    MakeEngine,
    a_few_turns,
    a_prompt,
    compute_held,
    hashes_of,
    prefill_all,
)

from controlplane.domain.byte_tokenizer import VOCABULARY_SIZE, WIDTH_BYTES
from controlplane.domain.tokens import TokenIds
from workers.engines.local.prefill import LocalPrefill
from workers.engines.reference.engine import ReferenceEngine


def a_job(engine: ReferenceEngine, tokens: TokenIds) -> LocalPrefill:
    return engine.prefill(tokens, hashes_of(tokens))


async def test_pieces_are_blocks_in_order_and_the_state_at_the_end(
    engine: ReferenceEngine,
) -> None:
    pieces = await prefill_all(engine, a_prompt(150))

    spans = [(piece.group, piece.token_start, piece.token_end) for piece in pieces]
    assert spans == [
        ("attention", 0, 64),
        ("attention", 64, 128),
        ("attention", 128, 150),
        ("state", 150, 150),
    ]


@pytest.mark.parametrize("length", [1, 64, 100])
async def test_pieces_have_the_sizes_of_the_spec(engine: ReferenceEngine, length: int) -> None:
    attention, state = engine.spec.groups

    pieces = await prefill_all(engine, a_prompt(length))

    *blocks, last = pieces
    assert sum(len(piece.data) for piece in blocks) == length * attention.bytes_per_token
    assert len(last.data) == state.fixed_bytes


async def test_no_tokens_have_the_initial_state_alone(engine: ReferenceEngine) -> None:
    (piece,) = await prefill_all(engine, a_prompt(0))

    assert (piece.group, piece.token_start, piece.token_end) == ("state", 0, 0)
    assert piece.data == bytes(engine.spec.groups[1].fixed_bytes)


async def test_a_prompt_that_came_before_is_not_computed_again(engine: ReferenceEngine) -> None:
    first = await prefill_all(engine, a_prompt(128))
    job = a_job(engine, a_prompt(128))

    assert [piece async for piece in job.pieces()] == first
    assert job.cached_tokens == 128
    assert engine.counters().prefill_tokens_total == 128


async def test_cached_pieces_come_before_anything_is_computed(engine: ReferenceEngine) -> None:
    await prefill_all(engine, a_prompt(128))
    with compute_held(engine):
        job = a_job(engine, a_prompt(300))
        pieces = job.pieces()

        found = [await anext(pieces), await anext(pieces)]

        assert [piece.token_start for piece in found] == [0, 64]
        assert job.cached_tokens == 128
        assert engine.counters().prefill_tokens_total == 128
    await pieces.aclose()


async def test_snapshots_are_left_every_four_blocks_and_at_the_last(
    engine: ReferenceEngine,
) -> None:
    tokens = a_prompt(6 * BLOCK + 10)

    await prefill_all(engine, tokens)

    stored = engine.take_inventory_delta(is_full=True).stored
    has_state = [stored[block].has_state for block in hashes_of(tokens)]
    assert has_state == [False, False, False, True, False, True]


async def test_another_scope_shares_nothing(engine: ReferenceEngine) -> None:
    tokens = a_prompt(128)
    await prefill_all(engine, tokens)

    job = engine.prefill(tokens, hashes_of(tokens, scope="other"))
    async for _ in job.pieces():
        pass

    assert job.cached_tokens == 0


async def test_a_prompt_beyond_the_cache_is_computed_all_the_same(
    make_engine: MakeEngine,
) -> None:
    small, large = make_engine(cache_tokens_max=128), make_engine()

    pieces = await prefill_all(small, a_prompt(300))

    assert pieces == await prefill_all(large, a_prompt(300))
    assert len(small.take_inventory_delta(is_full=True).stored) == 2


async def test_prefills_are_served_first_come_first_served(engine: ReferenceEngine) -> None:
    finished: list[int] = []

    async def follow(salt: int) -> None:
        await prefill_all(engine, a_prompt(100 + 50 * (salt % 2), salt=salt))
        finished.append(salt)

    await asyncio.gather(*(follow(salt) for salt in range(4)))

    assert finished == [0, 1, 2, 3]


async def test_a_job_that_waits_profits_from_the_one_before(engine: ReferenceEngine) -> None:
    shared = a_prompt(128)
    first, second = a_job(engine, shared), a_job(engine, a_prompt(200, after=shared))

    for job in (first, second):
        async for _ in job.pieces():
            pass

    assert second.cached_tokens == 128
    assert second.queue_s > 0
    assert second.compute_s > 0


async def test_closing_stops_at_the_next_block(engine: ReferenceEngine) -> None:
    pieces = a_job(engine, a_prompt(900)).pieces()
    await anext(pieces)

    with compute_held(engine):
        await pieces.aclose()
        assert engine.load().queue_requests == 0
        computed = engine.counters().prefill_tokens_total
    await prefill_all(engine, a_prompt(0))

    # The block that was in the thread's hands may still have been finished.
    assert engine.counters().prefill_tokens_total <= computed + BLOCK


async def test_blocks_of_a_closed_prefill_stay_in_the_cache(engine: ReferenceEngine) -> None:
    tokens = a_prompt(900)
    pieces = a_job(engine, tokens).pieces()
    for _ in range(5):
        await anext(pieces)
    await pieces.aclose()

    job = a_job(engine, tokens)
    again = job.pieces()
    await anext(again)

    assert job.cached_tokens >= 4 * BLOCK
    await again.aclose()


async def test_cancelling_the_reader_stops_the_prefill(engine: ReferenceEngine) -> None:
    with compute_held(engine):
        reader = asyncio.ensure_future(prefill_all(engine, a_prompt(900)))
        await a_few_turns()

        reader.cancel()
        await asyncio.wait([reader])

        assert engine.load().queue_requests == 0
        engine.check_integrity()


async def test_closing_a_prefill_in_the_queue_lets_the_next_one_pass(
    engine: ReferenceEngine,
) -> None:
    first, second, third = (a_job(engine, a_prompt(200, salt=salt)) for salt in range(3))

    await second.pieces().aclose()
    for job in (first, third):
        async for _ in job.pieces():
            pass

    assert engine.counters().prefill_tokens_total == 400


async def test_dropping_the_pieces_stops_the_prefill(engine: ReferenceEngine) -> None:
    with compute_held(engine):
        pieces = a_job(engine, a_prompt(900)).pieces()
        del pieces
        gc.collect()
        await a_few_turns()

        assert engine.load().queue_requests == 0


async def test_a_failure_in_compute_reaches_the_reader_and_nobody_else(
    engine: ReferenceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(engine._model.network, "prefill_block", fail_with_memory_error)
        with pytest.raises(MemoryError):
            await prefill_all(engine, a_prompt(100))
    engine.check_integrity()

    assert await prefill_all(engine, a_prompt(100))


def fail_with_memory_error(*_: object) -> None:
    raise MemoryError


async def test_pieces_can_be_read_once(engine: ReferenceEngine) -> None:
    job = a_job(engine, a_prompt(10))
    pieces = job.pieces()

    with pytest.raises(RuntimeError, match="once"):
        job.pieces()

    await pieces.aclose()


async def test_hashes_of_other_tokens_are_refused(engine: ReferenceEngine) -> None:
    with pytest.raises(ValueError, match="2 hashes for 1 full blocks"):
        engine.prefill(a_prompt(100), hashes_of(a_prompt(128)))


async def test_more_tokens_than_the_context_are_refused(engine: ReferenceEngine) -> None:
    with pytest.raises(ValueError, match="do not fit a context of 1024"):
        a_job(engine, a_prompt(1024))


async def test_tokens_outside_the_vocabulary_are_refused(engine: ReferenceEngine) -> None:
    with pytest.raises(ValueError, match="token 272 is not in 272"):
        a_job(engine, TokenIds.from_ints([97, VOCABULARY_SIZE], WIDTH_BYTES))
