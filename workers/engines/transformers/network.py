"""Networks: from a checkpoint directory, or small ones with drawn weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as library_logging

from controlplane.config import TransformersConfig
from controlplane.domain.byte_tokenizer import END_OF_TURN, VOCABULARY_SIZE
from controlplane.errors import ConfigError
from controlplane.tokenizing.by_files import load_tokenizer

# What it says of kernels that are not installed is in docs/hybrid-engine.md, and is no log line.
library_logging.set_verbosity_error()

#: Of drawn weights, ten times the usual one: what a few layers put out then follows all of the prompt.
_SPREAD: Final = 0.2
#: Small networks of families whose linear attention has a state, as their configurations have it:
#: three layers of linear attention and one of full attention.
_FAMILIES: Final[dict[str, dict[str, Any]]] = {
    "qwen3_next": {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "initializer_range": _SPREAD,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 32,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "shared_expert_intermediate_size": 64,
    },
    "kimi_linear": {
        "hidden_size": 128,
        "intermediate_size": 256,
        "moe_intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "initializer_range": _SPREAD,
        "kv_lora_rank": 32,
        "qk_rope_head_dim": 16,
        "qk_nope_head_dim": 16,
        "v_head_dim": 32,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "linear_head_dim": 32,
        "linear_num_heads": 4,
        "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    },
}
#: Bytes of each weight that a fingerprint reads.
_DIGESTED_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a tokenizer makes, and which of it ends an answer."""

    size: int
    #: None where only the network's own configuration tells.
    end_token: int | None
    is_of_bytes: bool = False

    def shape(self) -> dict[str, int | None]:
        """As a configuration of a drawn network has it."""
        return {
            "vocab_size": self.size,
            "eos_token_id": self.end_token,
            "pad_token_id": self.size - 1,
            "bos_token_id": self.size - 2,
        }


def vocabulary_of(directory: str | None) -> Vocabulary:
    """
    Of a directory with tokenizer files, or of bytes.

    Raises:
        ConfigError: The files are not there, or cannot be read.
    """
    if directory is None:
        return Vocabulary(VOCABULARY_SIZE, END_OF_TURN, is_of_bytes=True)
    tokenizer = load_tokenizer(Path(directory))
    return Vocabulary(tokenizer.vocabulary_size, tokenizer.end_token)


def end_tokens_of(network: Any, vocabulary: Vocabulary) -> frozenset[int]:  # noqa: ANN401
    """What ends an answer: the tokenizer's end, and those that the network's own files name."""
    named = getattr(network.generation_config, "eos_token_id", None)
    ends = named if isinstance(named, list) else [named]
    return frozenset(one for one in (*ends, vocabulary.end_token) if isinstance(one, int))


def load_network(
    config: TransformersConfig, vocabulary: Vocabulary, *, seed: int, context_tokens_max: int
) -> Any:  # noqa: ANN401 - the library's
    """
    A network that is ready to compute.

    Args:
        config: Where its shape and its weights come from.
        vocabulary: Of the fleet's tokenizer.
        seed: Of drawn weights.
        context_tokens_max: Of prompt and output.

    Raises:
        ConfigError: There is no such device or directory, what is there cannot be loaded or is not
            whole, or the network knows fewer tokens than the tokenizer makes or a shorter context.
    """
    device, dtype = _device(config.device), getattr(torch, config.dtype)
    if config.path is None:
        shape = {**_FAMILIES[config.family], **vocabulary.shape()}
        network = draw_network(config.family, shape, seed=seed, dtype=dtype)
    else:
        network = _of_directory(Path(config.path), seed, dtype)
    size = network.config.vocab_size
    # Checkpoints round their size up; of bytes there is no such thing.
    if size < vocabulary.size or (vocabulary.is_of_bytes and size > vocabulary.size):
        raise ConfigError(
            f"{config.path}: a vocabulary of {size}, and the tokenizer makes {vocabulary.size} tokens: point "
            "model.tokenizer at the directory with the tokenizer files of this network"
        )
    positions = getattr(network.config, "max_position_embeddings", context_tokens_max)
    if positions < context_tokens_max:
        raise ConfigError(
            f"model.context_tokens_max is {context_tokens_max}, and the network was made for {positions}"
        )
    return network.to(device).eval()


def draw_network(family: str, shape: Mapping[str, Any], *, seed: int, dtype: torch.dtype) -> Any:  # noqa: ANN401
    """
    A network with drawn weights, on the processor.

    Args:
        family: A model type of the library.
        shape: Parameters of its configuration.
        seed: Of the weights.
        dtype: Of the weights in the end; they are drawn in float32, so that the seed says all.
    """
    return _drawn(AutoConfig.for_model(family, **shape), seed, dtype)


def digest_of(network: Any) -> str:  # noqa: ANN401 - the library's
    """Equal for equal weights: shape, type and the first bytes of each."""
    digest = hashlib.sha256()
    for name, weight in sorted(network.state_dict().items()):
        head = weight.detach().flatten()[: _DIGESTED_BYTES // weight.dtype.itemsize]
        raw = head.contiguous().cpu().view(torch.uint8).numpy().tobytes()
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype} ".encode())
        digest.update(raw)
    return digest.hexdigest()


def _drawn(shape: Any, seed: int, dtype: torch.dtype) -> Any:  # noqa: ANN401
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(shape, dtype=torch.float32).to(dtype)


def _of_directory(path: Path, seed: int, dtype: torch.dtype) -> Any:  # noqa: ANN401
    if not (path / "config.json").is_file():
        raise ConfigError(f"{path}: no config.json there; name a checkpoint directory")
    try:
        if not any(path.glob("*.safetensors")):
            return _drawn(AutoConfig.from_pretrained(path, local_files_only=True), seed, dtype)
        network, found = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(f"{path}: cannot be loaded: {error}") from error
    missing = sorted(found["missing_keys"])
    if missing:
        # The library would draw them, in each process others.
        raise ConfigError(
            f"{path}: {len(missing)} weights are not there, the first is {missing[0]}"
        )
    return network


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("model.transformers.device is cuda, and torch finds no GPU here")
    return torch.device(name)
