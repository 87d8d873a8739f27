"""Builders around the reference engine: each argument has a default."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from random import Random
from typing import Any, TypeAlias

from controlplane.config import ModelConfig
from controlplane.domain.byte_tokenizer import WIDTH_BYTES
from controlplane.domain.prefix import BlockHash, block_hashes
from controlplane.domain.tokens import TokenIds
from controlplane.wire import Sampling
from workers.engine import Engine, KvImport, KvPiece, TokenOut
from workers.engines.local.engine import LocalEngine
from workers.engines.local.sequence import ImportedSequence
from workers.engines.local.stream import Stream

BLOCK = 64

#: The fixture `make_engine`: an engine of `a_model` with these overrides.
MakeEngine: TypeAlias = Callable[..., LocalEngine]


@asynccontextmanager
async def checked_engines() -> AsyncIterator[list[LocalEngine]]:
    """Whatever is put into the list is checked for leaks, before and after it is closed."""
    engines: list[LocalEngine] = []
    yield engines
    for engine in engines:
        engine.check_integrity()
        await engine.close()
        engine.check_integrity()
        assert not engine._cache.leases


def a_model(**overrides: Any) -> ModelConfig:
    """The smallest reference model, with room for a few thousand tokens."""
    values: dict[str, Any] = {
        "layers": 4,
        "context_tokens_max": 1024,
        "cache_tokens_max": 4096,
        "decode_slots": 4,
    }
    return ModelConfig(**(values | overrides))


def a_prompt(length: int, *, salt: int = 0, after: TokenIds | None = None) -> TokenIds:
    """Letters that depend on `salt`, behind the tokens of `after`; `length` tokens in all."""
    draw = Random(salt)
    ids = [] if after is None else after.to_list()
    ids += [draw.randrange(97, 123) for _ in range(length - len(ids))]
    return TokenIds.from_ints(ids, WIDTH_BYTES)


def hashes_of(tokens: TokenIds, *, scope: str = "scope") -> tuple[BlockHash, ...]:
    """Block hashes of exactly these tokens."""
    return block_hashes(tokens, block_tokens=BLOCK, scope=scope)


def greedy(output_tokens_max: int = 24) -> Sampling:
    """No chance involved."""
    return Sampling(temperature=0, output_tokens_max=output_tokens_max)


def seeded(seed: int = 7, output_tokens_max: int = 24) -> Sampling:
    """Chance that repeats itself."""
    return Sampling(temperature=1, top_p=0.9, seed=seed, output_tokens_max=output_tokens_max)


async def prefill_all(engine: Engine, tokens: TokenIds) -> list[KvPiece]:
    """All pieces of a segment."""
    return [piece async for piece in engine.prefill(tokens, hashes_of(tokens)).pieces()]


def write_all(sequence: KvImport, pieces: list[KvPiece]) -> None:
    """Write what the sequence does not hold already."""
    for piece in pieces:
        if piece.group == "state" or piece.token_start >= sequence.held_tokens:
            sequence.write(piece)


async def an_import(
    engine: LocalEngine, prompt: TokenIds, *, source: Engine | None = None
) -> ImportedSequence:
    """A complete sequence for all but the last token of a prompt, prefilled by `source`."""
    head = prompt.head(len(prompt) - 1)
    pieces = await prefill_all(source or engine, head)
    sequence = engine.begin_import(head, hashes_of(head))
    write_all(sequence, pieces)
    return sequence


async def a_decode(
    engine: LocalEngine,
    prompt: TokenIds,
    sampling: Sampling | None = None,
    *,
    source: Engine | None = None,
) -> Stream[TokenOut]:
    """A started decode of a prompt that `source` prefilled."""
    sequence = await an_import(engine, prompt, source=source)
    return engine.decode(sequence, prompt, sampling or greedy())


async def tokens_of(stream: AsyncIterator[TokenOut]) -> list[int]:
    """All tokens to the end."""
    return [out.token async for out in stream]


@contextmanager
def compute_held(engine: LocalEngine) -> Iterator[None]:
    """The compute thread does nothing within the block, and goes on after it."""
    gate = threading.Event()
    engine._scheduler._executor.submit(gate.wait)
    try:
        yield
    finally:
        gate.set()


async def a_few_turns(count: int = 10) -> None:
    """Let everything on the event loop happen that waits for nothing but its turn."""
    for _ in range(count):
        await asyncio.sleep(0)
