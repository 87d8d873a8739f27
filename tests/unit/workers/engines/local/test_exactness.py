from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from engine_builders import (
    BLOCK,
    MakeEngine,
    a_decode,
    a_prompt,
    greedy,
    hashes_of,
    prefill_all,
    seeded,
    tokens_of,
)

from controlplane.wire import Sampling
from workers.engine import KvPiece
from workers.engines.local.alone import generate_alone
from workers.engines.reference.blas import THREAD_VARIABLES
from workers.engines.reference.engine import ReferenceEngine

#: Around the edges of blocks, and one with four of them before a snapshot.
LENGTHS = [1, 2, 64, 65, 66, 128, 129, 300]


async def alone(engine: ReferenceEngine, length: int, sampling: Sampling) -> list[int]:
    prompt = a_prompt(length)
    outs = await generate_alone(engine, prompt, hashes_of(prompt), sampling)
    return [out.token for out in outs]


@pytest.mark.parametrize(
    ("sampling", "length"),
    [*((greedy(), length) for length in LENGTHS), (seeded(), 1), (seeded(), 300)],
    ids=lambda value: (
        str(value) if isinstance(value, int) else f"temperature {value.temperature:g}"
    ),
)
async def test_decode_after_an_import_equals_the_engine_alone(
    make_engine: MakeEngine, sampling: Sampling, length: int
) -> None:
    prefiller, decoder, oracle = make_engine(), make_engine(), make_engine()

    stream = await a_decode(decoder, a_prompt(length), sampling, source=prefiller)

    assert await tokens_of(stream) == await alone(oracle, length, sampling)
    assert decoder.counters().prefill_tokens_total == 0
    assert decoder.counters().decode_prompt_tokens_total == 1


_OTHER_PROCESS = """
import asyncio, sys
from pathlib import Path
from engine_builders import a_model, a_prompt, prefill_all
from workers.engines.reference.blas import THREAD_VARIABLES
from workers.engines.reference.engine import ReferenceEngine

async def main():
    engine = ReferenceEngine(a_model())
    for piece in await prefill_all(engine, a_prompt(int(sys.argv[1]))):
        name = f"{piece.group}-{piece.token_start}-{piece.token_end}"
        (Path(sys.argv[2]) / name).write_bytes(piece.data)
    await engine.close()

asyncio.run(main())
"""


@pytest.fixture
def pieces_of_another_process(tmp_path: Path) -> dict[str, bytes]:
    """KV of the first 299 tokens, by name."""
    tests = Path(__file__).parents[4]
    command = [sys.executable, "-c", _OTHER_PROCESS, "299", str(tmp_path)]
    # Threads are the engine's own business; for which processor BLAS computes may be the environment's.
    env = {name: value for name, value in os.environ.items() if name not in THREAD_VARIABLES}
    subprocess.run(command, check=True, cwd=tests, env=env)
    return {path.name: path.read_bytes() for path in tmp_path.iterdir()}


async def test_another_process_makes_the_same_kv_bit_for_bit(
    engine: ReferenceEngine, pieces_of_another_process: dict[str, bytes]
) -> None:
    pieces = await prefill_all(engine, a_prompt(299))

    assert pieces_of_another_process == {
        f"{piece.group}-{piece.token_start}-{piece.token_end}": piece.data for piece in pieces
    }


@pytest.mark.parametrize("first", [64, 200, 256, 290])
async def test_chunked_prefill_equals_one_pass_bit_for_bit(
    make_engine: MakeEngine, first: int
) -> None:
    whole, chunked = make_engine(), make_engine()
    tokens = a_prompt(330)

    await prefill_all(chunked, tokens.head(first))
    run = chunked.prefill(tokens, hashes_of(tokens))
    resumed = [piece async for piece in run.pieces()]

    assert run.cached_tokens == first // BLOCK * BLOCK
    assert resumed == await prefill_all(whole, tokens)


async def test_prefill_after_a_branch_equals_one_pass_bit_for_bit(make_engine: MakeEngine) -> None:
    whole, branched = make_engine(), make_engine()
    shared = a_prompt(150)
    tokens = a_prompt(330, salt=1, after=shared)

    await prefill_all(branched, a_prompt(400, salt=2, after=shared))
    # No snapshot is at the branch yet: two blocks are there, and are computed again for the state.
    run = branched.prefill(tokens, hashes_of(tokens))
    computed = [piece async for piece in run.pieces()]

    assert run.cached_tokens == 0
    assert computed == await prefill_all(whole, tokens)


async def test_the_third_prompt_resumes_where_the_second_branched(
    make_engine: MakeEngine,
) -> None:
    whole, branched = make_engine(), make_engine()
    shared = a_prompt(150)
    tokens = a_prompt(200, salt=3, after=shared)
    for salt in (1, 2):
        await prefill_all(branched, a_prompt(330, salt=salt, after=shared))

    run = branched.prefill(tokens, hashes_of(tokens))
    resumed = [piece async for piece in run.pieces()]

    assert run.cached_tokens == 128
    assert resumed == await prefill_all(whole, tokens)


async def test_output_does_not_depend_on_the_batch(make_engine: MakeEngine) -> None:
    oracle, busy = make_engine(), make_engine()
    expected = await alone(oracle, 130, greedy(60))

    # Some join after it and some leave before it, so that its row and its company change.
    streams = [
        await a_decode(busy, a_prompt(40 + salt, salt=salt), seeded(salt, 5 * salt))
        for salt in (1, 2, 3)
    ]
    watched = await a_decode(busy, a_prompt(130), greedy(60))
    late = [await a_decode(busy, a_prompt(90, salt=9), greedy(20)) for _ in range(3)]
    found, *_ = await asyncio.gather(*(tokens_of(each) for each in (watched, *streams, *late)))

    assert found == expected


@pytest.mark.parametrize("slots", [1, 8])
async def test_output_does_not_depend_on_the_slots(make_engine: MakeEngine, slots: int) -> None:
    expected = await alone(make_engine(), 100, greedy())

    assert await alone(make_engine(decode_slots=slots), 100, greedy()) == expected


async def test_output_does_not_depend_on_the_cache(make_engine: MakeEngine) -> None:
    engine = make_engine()
    expected = await alone(make_engine(cache_tokens_max=0), 300, seeded())

    assert await alone(engine, 300, seeded()) == expected
    assert await alone(engine, 300, seeded()) == expected


async def test_output_follows_the_kv_that_was_imported(make_engine: MakeEngine) -> None:
    expected = await alone(make_engine(), 300, greedy())
    engine = make_engine()
    head = a_prompt(300).head(299)
    sequence = engine.begin_import(head, hashes_of(head))
    for piece in await prefill_all(make_engine(), head):
        other = bytes(len(piece.data)) if piece.token_start == 128 else piece.data
        sequence.write(
            KvPiece(
                group=piece.group,
                token_start=piece.token_start,
                token_end=piece.token_end,
                data=other,
            )
        )

    found = await tokens_of(engine.decode(sequence, a_prompt(300), greedy()))

    assert found != expected


@pytest.mark.parametrize("seed", [0, 1, 2])
async def test_greedy_output_is_varied_and_readable(make_engine: MakeEngine, seed: int) -> None:
    tokens = await alone(make_engine(seed=seed, layers=8), 50, greedy(60))

    text = bytes(token for token in tokens if token < 256).decode("ascii")
    assert all(letter.isprintable() or letter == "\n" for letter in text)
    assert len(set(text)) > len(text) / 10
