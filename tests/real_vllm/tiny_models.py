"""
Tiny models with drawn weights and a tokenizer of their own: `python tiny_models.py DIRECTORY`.

Runs in the environment of vLLM and imports nothing of ours. Nothing is downloaded: the tokenizer is
trained on the standard library's source.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

VOCABULARY = 4096
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "dtype": "bfloat16",
    "bos_token_id": None,
}
LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 128,
    "shared_expert_intermediate_size": 128,
}


def a_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of 4,096 pieces."""
    files = sorted(map(str, Path(sysconfig.get_paths()["stdlib"]).glob("*.py")))[:80]
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train(files, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = TEMPLATE
    return fast


def main(directory: Path) -> None:
    """Write `dense` and `hybrid` below a directory."""
    tokenizer = a_tokenizer()
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    for name, model_type, config in (
        ("dense", Qwen3ForCausalLM, Qwen3Config(**SHAPE, **ends)),
        ("hybrid", Qwen3NextForCausalLM, Qwen3NextConfig(**SHAPE, **LINEAR, **ends)),
    ):
        torch.manual_seed(0)
        model_type(config).to(torch.bfloat16).save_pretrained(directory / name)
        tokenizer.save_pretrained(directory / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
