from __future__ import annotations

import asyncio
import gc
from dataclasses import replace
from typing import Any

import pytest
from engine_builders import (
    MakeEngine,
    a_decode,
    a_few_turns,
    a_prompt,
    an_import,
    compute_held,
    greedy,
    hashes_of,
    prefill_all,
    seeded,
    tokens_of,
    write_all,
)

from controlplane.domain.byte_tokenizer import END_OF_TURN
from workers.engine import KvPiece
from workers.engines.reference.engine import ReferenceEngine


def prefer_the_end(engine: ReferenceEngine) -> None:
    """Let the model put out END_OF_TURN and nothing else."""
    engine._model.network._weights.head_bias[END_OF_TURN] = 1000


# --- Output -----------------------------------------------------------------------------------


async def test_output_ends_at_its_greatest_length(engine: ReferenceEngine) -> None:
    outs = [out async for out in await a_decode(engine, a_prompt(70), greedy(5))]

    assert [out.finish_reason for out in outs] == [None, None, None, None, "length"]


async def test_output_ends_with_the_context(make_engine: MakeEngine) -> None:
    engine = make_engine(context_tokens_max=128)

    outs = [out async for out in await a_decode(engine, a_prompt(125), greedy(100))]

    assert [out.finish_reason for out in outs] == [None, None, "length"]


async def test_output_ends_with_the_end_token(engine: ReferenceEngine) -> None:
    prefer_the_end(engine)

    (out,) = [out async for out in await a_decode(engine, a_prompt(70))]

    assert out.token == END_OF_TURN
    assert out.finish_reason == "stop"


async def test_an_end_token_at_the_greatest_length_is_a_stop(engine: ReferenceEngine) -> None:
    prefer_the_end(engine)

    (out,) = [out async for out in await a_decode(engine, a_prompt(70), greedy(1))]

    assert out.finish_reason == "stop"


async def test_a_prompt_of_one_token_needs_the_initial_state_alone(
    engine: ReferenceEngine,
) -> None:
    stream = await a_decode(engine, a_prompt(1), greedy(3))

    assert len(await tokens_of(stream)) == 3


async def test_pieces_may_come_in_any_order(make_engine: MakeEngine) -> None:
    engine, prompt = make_engine(), a_prompt(300)
    pieces = await prefill_all(make_engine(), prompt.head(299))
    expected = await tokens_of(await a_decode(make_engine(), prompt))
    sequence = engine.begin_import(prompt.head(299), hashes_of(prompt.head(299)))

    write_all(sequence, pieces[::-1])

    assert await tokens_of(engine.decode(sequence, prompt, greedy())) == expected


async def test_counters_tell_what_was_computed(make_engine: MakeEngine) -> None:
    prefiller, decoder = make_engine(), make_engine()

    await tokens_of(await a_decode(decoder, a_prompt(100), greedy(7), source=prefiller))

    assert prefiller.counters().prefill_tokens_total == 99
    assert decoder.counters().prefill_tokens_total == 0
    assert decoder.counters().decode_prompt_tokens_total == 1
    assert decoder.counters().output_tokens_total == 7


async def test_a_sequence_tells_what_was_computed_of_its_prompt(make_engine: MakeEngine) -> None:
    """Counted where it is computed: none before the first token, one after it, also when closed."""
    prefiller, decoder = make_engine(), make_engine()
    sequence = await an_import(decoder, a_prompt(100), source=prefiller)
    before = sequence.prompt_tokens_computed

    stream = decoder.decode(sequence, a_prompt(100), greedy(3))
    await anext(stream)
    after_one = sequence.prompt_tokens_computed
    await tokens_of(stream)

    assert (before, after_one, sequence.prompt_tokens_computed) == (0, 1, 1)
    assert sequence.is_closed


# --- Held blocks ------------------------------------------------------------------------------


async def test_blocks_of_a_finished_sequence_are_held_for_the_next(
    make_engine: MakeEngine,
) -> None:
    decoder, prefiller = make_engine(), make_engine()
    shared = a_prompt(200)
    await tokens_of(await a_decode(decoder, shared, source=prefiller))

    head = a_prompt(400, salt=1, after=shared)
    sequence = decoder.begin_import(head, hashes_of(head))

    assert sequence.held_tokens == 192
    sequence.close()


async def test_a_decode_that_holds_blocks_equals_one_that_got_all(
    make_engine: MakeEngine,
) -> None:
    decoder, prefiller = make_engine(), make_engine()
    expected = await tokens_of(await a_decode(decoder, a_prompt(300), source=prefiller))

    again = await tokens_of(await a_decode(decoder, a_prompt(300), source=prefiller))

    assert again == expected


async def test_held_blocks_stay_until_the_sequence_is_closed(make_engine: MakeEngine) -> None:
    engine = make_engine(cache_tokens_max=256)
    shared = a_prompt(128)
    await prefill_all(engine, shared)
    sequence = engine.begin_import(shared, hashes_of(shared))

    await prefill_all(engine, a_prompt(400, salt=5))
    assert set(hashes_of(shared)) <= set(engine.take_inventory_delta(is_full=True).stored)

    sequence.close()
    await prefill_all(engine, a_prompt(400, salt=6))
    assert not set(hashes_of(shared)) & set(engine.take_inventory_delta(is_full=True).stored)


async def test_imported_blocks_carry_no_snapshot(make_engine: MakeEngine) -> None:
    decoder = make_engine()

    await tokens_of(await a_decode(decoder, a_prompt(200), source=make_engine()))

    stored = decoder.take_inventory_delta(is_full=False).stored
    assert len(stored) == 3
    assert not any(entry.has_state for entry in stored.values())


# --- Slots ------------------------------------------------------------------------------------


async def test_sequences_beyond_the_slots_wait_their_turn(make_engine: MakeEngine) -> None:
    engine = make_engine(decode_slots=2)
    sequences = [await an_import(engine, a_prompt(30 + salt, salt=salt)) for salt in range(5)]
    finished: list[int] = []

    async def follow(salt: int) -> None:
        stream = engine.decode(sequences[salt], a_prompt(30 + salt, salt=salt), seeded(salt, 6))
        await tokens_of(stream)
        finished.append(salt)

    with compute_held(engine):
        tasks = [asyncio.ensure_future(follow(salt)) for salt in range(5)]
        await a_few_turns()
        assert engine.load().queue_requests == 5
    await asyncio.gather(*tasks)

    assert finished == [0, 1, 2, 3, 4]


async def test_prefill_and_decode_take_turns(engine: ReferenceEngine) -> None:
    decode = await a_decode(engine, a_prompt(30), greedy(6))
    prefill = asyncio.ensure_future(prefill_all(engine, a_prompt(900, salt=1)))

    await tokens_of(decode)

    assert not prefill.done()
    assert engine.counters().prefill_tokens_total < 900
    await prefill


async def test_a_closed_stream_gives_its_slot_to_the_next(make_engine: MakeEngine) -> None:
    engine = make_engine(decode_slots=1)
    first = await a_decode(engine, a_prompt(30), greedy(900))
    second = await a_decode(engine, a_prompt(30, salt=1), greedy(3))
    await anext(first)

    await first.aclose()

    assert len(await tokens_of(second)) == 3


# --- Leaving ----------------------------------------------------------------------------------


async def test_closing_the_stream_gives_everything_back(engine: ReferenceEngine) -> None:
    stream = await a_decode(engine, a_prompt(200), greedy(800))
    await anext(stream)

    await stream.aclose()

    assert engine.load().running == 0
    assert engine.load().kv_bytes == engine._cache.held_bytes
    assert not engine._cache.leases


async def test_closing_a_stream_nobody_has_read_gives_everything_back(
    engine: ReferenceEngine,
) -> None:
    with compute_held(engine):
        stream = await a_started_decode(engine)

        await stream.aclose()

        assert engine.load().queue_requests == 0
        assert not engine._cache.leases


async def a_started_decode(engine: ReferenceEngine) -> Any:
    """A decode of a prompt that needs no prefill, so that compute may be held."""
    prompt = a_prompt(1)
    sequence = engine.begin_import(prompt.head(0), ())
    size = engine.spec.groups[1].fixed_bytes
    sequence.write(KvPiece(group="state", token_start=0, token_end=0, data=bytes(size)))
    return engine.decode(sequence, prompt, greedy(800))


async def test_cancelling_the_reader_gives_everything_back(engine: ReferenceEngine) -> None:
    stream = await a_decode(engine, a_prompt(200), greedy(800))
    with compute_held(engine):
        reader = asyncio.ensure_future(tokens_of(stream))
        await a_few_turns()

        reader.cancel()
        await asyncio.wait([reader])

        assert engine.load().queue_requests == 0


async def test_dropping_the_stream_gives_everything_back(engine: ReferenceEngine) -> None:
    stream = await a_decode(engine, a_prompt(200), greedy(800))
    await anext(stream)

    del stream
    gc.collect()
    await a_few_turns()

    assert engine.load().queue_requests == 0


async def test_closing_a_decoding_sequence_ends_its_stream(engine: ReferenceEngine) -> None:
    sequence = await an_import(engine, a_prompt(100))
    stream = engine.decode(sequence, a_prompt(100), greedy(800))
    await anext(stream)

    sequence.close()
    sequence.close()
    rest = [out async for out in stream]

    assert all(out.finish_reason is None for out in rest)


async def test_closing_an_import_gives_its_bytes_back(engine: ReferenceEngine) -> None:
    before = engine.load().kv_bytes
    sequence = await an_import(engine, a_prompt(50))
    assert engine.load().kv_bytes > before

    sequence.close()

    assert engine.load().kv_bytes == before


async def test_a_failure_in_compute_ends_the_streams_and_not_the_engine(
    engine: ReferenceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = [await a_decode(engine, a_prompt(50, salt=salt), greedy(800)) for salt in (0, 1)]

    with monkeypatch.context() as patch:
        patch.setattr(engine._model.network, "decode_step", fail_with_memory_error)
        for stream in streams:
            with pytest.raises(MemoryError):
                await tokens_of(stream)
    engine.check_integrity()

    assert len(await tokens_of(await a_decode(engine, a_prompt(50), greedy(4)))) == 4


def fail_with_memory_error(*_: object) -> None:
    raise MemoryError


# --- Refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"token_start": 32, "token_end": 96}, "no block"),
        ({"token_start": 64, "token_end": 100}, "no block"),
        ({"token_start": 128, "token_end": 192}, "no block"),
        ({"token_start": 192, "token_end": 256}, "no block"),
        ({"token_start": -64, "token_end": 0}, "no block"),
        ({"data": b"short"}, "5 bytes, expected"),
    ],
)
async def test_an_attention_piece_that_does_not_fit_is_refused(
    engine: ReferenceEngine, change: dict[str, Any], complaint: str
) -> None:
    tokens = a_prompt(150)
    pieces = await prefill_all(engine, tokens)
    sequence = engine.begin_import(tokens, hashes_of(tokens, scope="other"))

    with pytest.raises(ValueError, match=complaint):
        sequence.write(replace(pieces[0], **change))

    sequence.close()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"token_start": 64, "token_end": 64}, "expected it at 150"),
        ({"token_start": 149}, "expected it at 150"),
        ({"data": b"short"}, "5 bytes of state"),
    ],
)
async def test_a_state_piece_that_does_not_fit_is_refused(
    engine: ReferenceEngine, change: dict[str, Any], complaint: str
) -> None:
    tokens = a_prompt(150)
    pieces = await prefill_all(engine, tokens)
    sequence = engine.begin_import(tokens, hashes_of(tokens))

    with pytest.raises(ValueError, match=complaint):
        sequence.write(replace(pieces[-1], **change))

    sequence.close()


@pytest.mark.parametrize("index", [0, 2, 3], ids=["block", "last block", "state"])
async def test_a_piece_that_came_already_is_refused(engine: ReferenceEngine, index: int) -> None:
    tokens = a_prompt(150)
    pieces = await prefill_all(engine, tokens)
    sequence = engine.begin_import(tokens, hashes_of(tokens, scope="other"))
    sequence.write(pieces[index])

    with pytest.raises(ValueError, match="there already"):
        sequence.write(pieces[index])

    sequence.close()


async def test_a_piece_of_a_held_block_is_refused(engine: ReferenceEngine) -> None:
    tokens = a_prompt(150)
    pieces = await prefill_all(engine, tokens)
    sequence = engine.begin_import(tokens, hashes_of(tokens))

    with pytest.raises(ValueError, match="there already"):
        sequence.write(pieces[0])

    sequence.close()


async def test_a_closed_sequence_takes_nothing(engine: ReferenceEngine) -> None:
    tokens = a_prompt(10)
    pieces = await prefill_all(engine, tokens)
    sequence = engine.begin_import(tokens, ())
    sequence.close()

    with pytest.raises(ValueError, match="no more KV"):
        sequence.write(pieces[0])


@pytest.mark.parametrize("missing", [0, 2, 3], ids=["block", "last block", "state"])
async def test_an_incomplete_sequence_is_not_decoded(engine: ReferenceEngine, missing: int) -> None:
    tokens = a_prompt(150)
    pieces = await prefill_all(engine, tokens)
    sequence = engine.begin_import(tokens, hashes_of(tokens, scope="other"))
    for index, piece in enumerate(pieces):
        if index != missing:
            sequence.write(piece)

    with pytest.raises(ValueError, match="KV is missing"):
        engine.decode(sequence, a_prompt(151, after=tokens), greedy())

    sequence.close()


async def test_kv_of_another_prompt_is_not_decoded(engine: ReferenceEngine) -> None:
    sequence = await an_import(engine, a_prompt(100))

    with pytest.raises(ValueError, match="not that of all but the last"):
        engine.decode(sequence, a_prompt(100, salt=1), greedy())

    sequence.close()


async def test_a_sequence_is_decoded_once(engine: ReferenceEngine) -> None:
    sequence = await an_import(engine, a_prompt(100))
    stream = engine.decode(sequence, a_prompt(100), greedy())

    with pytest.raises(ValueError, match="decoding already"):
        engine.decode(sequence, a_prompt(100), greedy())

    await stream.aclose()


async def test_a_sequence_of_another_engine_is_not_decoded(make_engine: MakeEngine) -> None:
    sequence = await an_import(make_engine(), a_prompt(100))

    with pytest.raises(ValueError, match="not opened here"):
        make_engine().decode(sequence, a_prompt(100), greedy())

    sequence.close()
