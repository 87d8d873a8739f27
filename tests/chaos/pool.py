"""Prompts, and the answers that a direct run of the engine gave before anything was broken."""

from __future__ import annotations

import asyncio
import json
import string
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Final, Literal, TypeAlias

from controlplane.config import ModelConfig
from controlplane.domain.byte_tokenizer import encode_chat, encode_text
from controlplane.domain.prefix import block_hashes
from controlplane.domain.tokens import TokenIds
from controlplane.tokenizing import ByteTokenizer
from controlplane.wire import Sampling
from workers.engines.reference.engine import ReferenceEngine
from workers.text import TextStream

Kind: TypeAlias = Literal["completion", "chat"]

_LENGTHS: Final = (60, 300)
_OUTPUTS: Final = (8, 32)
#: Of answers that take about a second, and are asked for where streams must be hit in the middle.
LONG_OUTPUTS: Final = (150, 250)
_LETTERS: Final = string.ascii_lowercase + " "
#: Every third prompt begins with one of so many common beginnings of two or three blocks.
_PREFIXES: Final = 4
_PREFIX_LENGTHS: Final = (128, 192)
_CHAT_SHARE: Final = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A prompt and what must be answered to it."""

    kind: Kind
    prompt: str
    output_tokens_max: int
    text: str = ""
    output_tokens: int = 0
    finish_reason: str = ""

    @property
    def tokens(self) -> TokenIds:
        """What the model sees."""
        if self.kind == "chat":
            return encode_chat([("user", self.prompt)])
        return encode_text(self.prompt)

    def body(self, model: str, *, is_stream: bool) -> dict[str, object]:
        """The request's JSON: greedy, so that there is one right answer."""
        fields: dict[str, object] = {
            "model": model,
            "temperature": 0,
            "max_tokens": self.output_tokens_max,
            "stream": is_stream,
        }
        if is_stream:
            fields["stream_options"] = {"include_usage": True}
        if self.kind == "chat":
            return {**fields, "messages": [{"role": "user", "content": self.prompt}]}
        return {**fields, "prompt": self.prompt}


def make_prompts(
    count: int,
    *,
    seed: int,
    lengths: tuple[int, int] = _LENGTHS,
    outputs: tuple[int, int] = _OUTPUTS,
) -> list[Item]:
    """Different prompts, without their answers."""
    random = Random(seed)
    prefixes = [_letters(random, random.randint(*_PREFIX_LENGTHS)) for _ in range(_PREFIXES)]
    items = []
    for number in range(count):
        length = random.randint(*lengths)
        begin = random.choice(prefixes)[: length - 8] if number % 3 == 0 else ""
        # The number makes sure that no two are the same.
        rest = f"{number:05d}" + _letters(random, max(8, length - len(begin)) - 5)
        kind: Kind = "chat" if random.random() < _CHAT_SHARE else "completion"
        items.append(
            Item(kind=kind, prompt=begin + rest, output_tokens_max=random.randint(*outputs))
        )
    return items


def make_pool(ordinary: int, long: int, *, seed: int) -> list[Item]:
    """Ordinary prompts, then some with long answers."""
    return make_prompts(ordinary, seed=seed) + make_prompts(
        long, seed=seed + 1, lengths=(80, 200), outputs=LONG_OUTPUTS
    )


def answer_all(items: Sequence[Item], model: ModelConfig) -> list[Item]:
    """The items with their answers, from an engine of this process alone."""
    return asyncio.run(_answer_all(items, model))


async def _answer_all(items: Sequence[Item], model: ModelConfig) -> list[Item]:
    # Without a prefix cache: nothing that another prompt left behind has a part in an answer.
    engine = ReferenceEngine(model.model_copy(update={"cache_tokens_max": 0}))
    try:
        return [await _answer(engine, item) for item in items]
    finally:
        await engine.close()


async def _answer(engine: ReferenceEngine, item: Item) -> Item:
    tokens = item.tokens
    head = tokens.head(len(tokens) - 1)
    hashes = block_hashes(head, block_tokens=engine.spec.block_tokens, scope="oracle")
    pieces = [piece async for piece in engine.prefill(head, hashes).pieces()]
    sequence = engine.begin_import(head, hashes)
    for piece in pieces:
        sequence.write(piece)
    sampling = Sampling(temperature=0, output_tokens_max=item.output_tokens_max)
    text, count, reason = TextStream((), ByteTokenizer().detokenizer()), 0, ""
    said = ""
    async for out in engine.decode(sequence, tokens, sampling):
        count += 1
        said += text.push(out.token)
        reason = out.finish_reason or reason
    said += text.finish()
    return Item(**{**asdict(item), "text": said, "output_tokens": count, "finish_reason": reason})


def write_pool(path: Path, items: Sequence[Item]) -> None:
    """One line for each."""
    lines = (json.dumps(asdict(item)) for item in items)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_pool(path: Path) -> list[Item]:
    """What `write_pool` wrote."""
    return [Item(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def _letters(random: Random, count: int) -> str:
    return "".join(random.choices(_LETTERS, k=count))
