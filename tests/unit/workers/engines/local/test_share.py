"""What prefill may take of an engine's time beside decode: counted in units of work."""

from __future__ import annotations

import asyncio
from itertools import count

import pytest
from engine_builders import BLOCK, MakeEngine, a_decode, a_prompt, greedy, hashes_of, prefill_all

from workers.engines.local import prefill as prefill_module
from workers.engines.local.share import PrefillShare
from workers.engines.reference import decode as decode_module

#: Units that a block of prefill and a step of decode take: `perf_counter` is read so often in each.
BLOCK_UNITS, STEP_UNITS = 3, 1


def of_a_long_run(share: float, *, block: float, step: float, steps: int = 10_000) -> float:
    """Part of the time that prefill takes when both always have something to do."""
    account = PrefillShare()
    account.set(share)
    blocks = 0
    for _ in range(steps):
        if account.has_turn:
            blocks += 1
            account.prefilled(block, has_decode=True)
        account.decoded(step)
    return blocks * block / (blocks * block + steps * step)


@pytest.mark.parametrize("share", [0.05, 0.25, 0.5])
@pytest.mark.parametrize("block", [0.5, 1.0, 7.0])
def test_prefill_has_its_share_of_a_long_run(share: float, block: float) -> None:
    """Whatever a block costs; where a block is so small that even one a step is less, it has that."""
    expected = min(share, block / (block + 1))

    found = of_a_long_run(share, block=block, step=1.0)

    assert found == pytest.approx(expected, rel=0.03)


def test_time_without_prefill_is_not_saved_up() -> None:
    """A burst of prompts after a quiet hour gets no more of the next second than any other."""
    account = PrefillShare()
    account.set(0.5)
    for _ in range(1000):
        account.decoded(1.0)

    account.prefilled(10.0, has_decode=True)

    assert not account.has_turn


def test_prefill_is_free_while_there_is_nothing_to_decode() -> None:
    account = PrefillShare()
    account.set(0.1)

    account.prefilled(10.0, has_decode=False)

    assert account.has_turn


def test_what_was_owed_is_forgotten_when_nobody_waits_for_it() -> None:
    """Sequences that come later do not find prefill stopped for what earlier ones missed."""
    account = PrefillShare()
    account.set(0.1)
    account.prefilled(10.0, has_decode=True)

    account.idle()

    assert account.has_turn


def test_without_a_bound_prefill_always_has_its_turn() -> None:
    account = PrefillShare()
    account.set(0.1)
    account.prefilled(10.0, has_decode=True)

    account.set(None)
    account.prefilled(10.0, has_decode=True)

    assert account.has_turn


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 2.0])
def test_a_share_is_a_part_of_the_time(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        PrefillShare().set(share)


async def steps_and_blocks(make_engine: MakeEngine, share: float | None) -> tuple[int, int]:
    """Decode steps of a running sequence, and blocks that were prefilled meanwhile."""
    engine = make_engine(context_tokens_max=4096)
    output = await a_decode(engine, a_prompt(70), greedy(120))
    await anext(output)
    before = engine.counters()
    engine.limit_prefill(share)
    prompt = a_prompt(BLOCK * 60, salt=1)
    pieces = engine.prefill(prompt, hashes_of(prompt)).pieces()
    reading = asyncio.ensure_future(anext(pieces))
    while engine.counters().output_tokens_total < before.output_tokens_total + 100:
        await anext(output)
    after = engine.counters()
    await reading
    await pieces.aclose()
    await output.aclose()
    blocks = (after.prefill_tokens_total - before.prefill_tokens_total) // BLOCK
    return after.output_tokens_total - before.output_tokens_total, blocks


@pytest.mark.parametrize(
    ("share", "blocks_expected"), [(None, 100), (0.25, 100 / 9), (0.5, 100 / 3)]
)
async def test_decode_keeps_its_token_rate_while_time_is_lent(
    make_engine: MakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    share: float | None,
    blocks_expected: float,
) -> None:
    """Without a bound a block of three units stands between any two tokens; with one, its share."""
    for module in (prefill_module, decode_module):
        ticks = count()
        monkeypatch.setattr(module, "perf_counter", lambda ticks=ticks: float(next(ticks)))

    steps, blocks = await steps_and_blocks(make_engine, share)

    wanted = min(60, blocks_expected)
    assert steps >= 100
    assert wanted - 2 <= blocks <= wanted + 2
    if share is not None:
        assert (
            blocks * BLOCK_UNITS
            <= share * (steps * STEP_UNITS + blocks * BLOCK_UNITS) + BLOCK_UNITS
        )


async def test_an_engine_with_nothing_to_decode_prefills_all_the_time(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine()
    engine.limit_prefill(0.05)
    prompt = a_prompt(BLOCK * 4)

    await prefill_all(engine, prompt)

    assert engine.counters().units_total == 4
