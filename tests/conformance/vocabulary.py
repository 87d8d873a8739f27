"""A tokenizer that needs no training: bytes for what is asked, a word for each token that is answered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

_SPECIAL: Final = ("<|im_start|>", "<|im_end|>")
#: Ids of answers, see `fakes.vllm.said_after`.
_WORDS: Final = range(300, 1300)
_TEMPLATE: Final = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tokenizer(directory: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`, as a model's directory has them."""
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces += _SPECIAL
    pieces += [f"unused{number}" for number in range(len(pieces), _WORDS.start)]
    pieces += [f"w{number}," for number in _WORDS]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([*_SPECIAL])
    inner.save(str(directory / "tokenizer.json"))
    config = {"chat_template": _TEMPLATE, "eos_token": _SPECIAL[1]}
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def words(tokens: list[int]) -> str:
    """The text of an answer."""
    return "".join(f"w{token}," for token in tokens)
