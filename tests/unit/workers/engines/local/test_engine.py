from __future__ import annotations

import asyncio

import pytest
from engine_builders import (
    MakeEngine,
    a_decode,
    a_few_turns,
    a_model,
    a_prompt,
    an_import,
    compute_held,
    greedy,
    hashes_of,
    prefill_all,
    tokens_of,
)

from workers.engine import Engine
from workers.engines.local.prefill import LocalPrefill
from workers.engines.reference.engine import ReferenceEngine


async def test_equal_models_have_equal_fingerprints(make_engine: MakeEngine) -> None:
    first, second = make_engine(decode_slots=1, context_tokens_max=256), make_engine()

    assert first.spec.fingerprint == second.spec.fingerprint
    assert make_engine(seed=1).spec.fingerprint != second.spec.fingerprint


async def test_the_spec_repeats_the_model(make_engine: MakeEngine) -> None:
    spec = make_engine(name="small", context_tokens_max=512, decode_slots=3).spec

    assert (spec.model, spec.context_tokens_max, spec.decode_slots) == ("small", 512, 3)
    assert (spec.vocabulary_size, spec.block_tokens) == (272, 64)
    assert [group.name for group in spec.groups] == ["attention", "state"]


async def test_it_is_an_engine(engine: ReferenceEngine) -> None:
    contract: Engine = engine

    assert contract.spec.model == "prfaas-reference"


async def test_the_profile_is_there_before_the_first_job(engine: ReferenceEngine) -> None:
    profile = engine.profile()

    assert 0 < profile.prefill_s_per_token < 0.1
    assert 0 < profile.prefill_fixed_s < 1
    assert 0 < profile.decode_step_s < 1
    assert profile.kv_bytes_per_token == engine.spec.groups[0].bytes_per_token
    assert profile.kv_state_bytes == engine.spec.groups[1].fixed_bytes


async def test_the_profile_follows_the_work(engine: ReferenceEngine) -> None:
    before = engine.profile()

    await tokens_of(await a_decode(engine, a_prompt(200)))

    after = engine.profile()
    assert after.prefill_s_per_token != before.prefill_s_per_token
    assert after.prefill_fixed_s != before.prefill_fixed_s
    assert after.decode_step_s != before.decode_step_s


async def test_calibration_is_no_work_that_was_asked_for(engine: ReferenceEngine) -> None:
    counters = engine.counters()

    assert counters.prefill_tokens_total == 0
    assert counters.decode_prompt_tokens_total == 0
    assert counters.output_tokens_total == 0


async def test_an_idle_engine_has_no_load(engine: ReferenceEngine) -> None:
    load = engine.load()

    assert (load.queue_requests, load.queue_tokens, load.running, load.kv_bytes) == (0, 0, 0, 0)


async def test_load_counts_what_waits_and_leaves_out_what_is_cached(
    engine: ReferenceEngine,
) -> None:
    await prefill_all(engine, a_prompt(128))
    with compute_held(engine):
        jobs = [
            engine.prefill(tokens, hashes_of(tokens))
            for tokens in (a_prompt(200, salt=1), a_prompt(300, after=a_prompt(128)))
        ]
        await a_few_turns()
        load = engine.load()
    for job in jobs:
        async for _ in job.pieces():
            pass

    assert (load.queue_requests, load.running) == (2, 1)
    assert load.queue_tokens == 200 + (300 - 128)


async def test_changes_of_the_cache_are_reported_once(engine: ReferenceEngine) -> None:
    tokens = a_prompt(200)
    await prefill_all(engine, tokens)

    first = engine.take_inventory_delta(is_full=False)
    second = engine.take_inventory_delta(is_full=False)

    assert tuple(first.stored) == hashes_of(tokens)
    assert (second.stored, second.removed) == ({}, ())


async def test_closing_ends_open_iterators(make_engine: MakeEngine) -> None:
    engine = make_engine(decode_slots=1)
    running = await a_decode(engine, a_prompt(100), greedy(900))
    waiting = await a_decode(engine, a_prompt(100), greedy(900))
    an_open_import = await an_import(engine, a_prompt(150))
    prefill = engine.prefill(a_prompt(900), hashes_of(a_prompt(900))).pieces()
    await anext(running)

    await engine.close()

    assert len([out async for out in running]) < 899
    assert [out async for out in waiting] == []
    assert all([piece.group == "attention" async for piece in prefill])
    an_open_import.close()


async def test_a_closed_engine_takes_no_work(make_engine: MakeEngine) -> None:
    engine = make_engine()

    await engine.close()
    await engine.close()

    with pytest.raises(RuntimeError, match="closed"):
        engine.prefill(a_prompt(10), ())
    with pytest.raises(RuntimeError, match="closed"):
        engine.begin_import(a_prompt(10), ())


def test_it_can_be_made_without_an_event_loop() -> None:
    engine = ReferenceEngine(a_model())

    assert asyncio.run(count_tokens(engine)) == 4


async def count_tokens(engine: ReferenceEngine) -> int:
    tokens = await tokens_of(await a_decode(engine, a_prompt(30), greedy(4)))
    await engine.close()
    return len(tokens)


async def test_a_bug_in_the_bookkeeping_leaves_nobody_waiting(
    engine: ReferenceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.delattr(LocalPrefill, "begin")
        with pytest.raises(RuntimeError, match="scheduler has failed"):
            await prefill_all(engine, a_prompt(100))
    engine.check_integrity()

    assert await prefill_all(engine, a_prompt(100))


async def test_the_event_loop_is_free_while_it_computes(engine: ReferenceEngine) -> None:
    prefill = asyncio.ensure_future(prefill_all(engine, a_prompt(900)))
    turns = 0
    while not prefill.done():
        await asyncio.sleep(0)
        turns += 1

    assert turns > 100


async def test_random_leaving_conserves_everything(make_engine: MakeEngine) -> None:
    engine = make_engine(decode_slots=2, cache_tokens_max=512)

    async def visit(salt: int) -> None:
        stream = await a_decode(engine, a_prompt(20 + 37 * salt, salt=salt % 3), greedy(40))
        for _ in range(salt % 7):
            await anext(stream)
        await stream.aclose()

    visits = [asyncio.ensure_future(visit(salt)) for salt in range(16)]
    for _ in range(40):
        await asyncio.sleep(0)
        engine.check_integrity()
    for task in visits[::3]:
        task.cancel()
    await asyncio.wait(visits)

    engine.check_integrity()
    assert engine.load().queue_requests == 0
    assert not engine._cache.leases
