"""Sizes of KV and state by a model's configuration, against those of published models."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.domain.kv_sizes import kv_size_of

MIB = 1 << 20
QWEN3_NEXT = {
    "num_hidden_layers": 48,
    "full_attention_interval": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "torch_dtype": "bfloat16",
}
KIMI_LINEAR = {
    "num_hidden_layers": 27,
    "num_attention_heads": 32,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "linear_attn_config": {
        "kda_layers": list(range(20)),
        "full_attn_layers": list(range(7)),
        "num_heads": 32,
        "head_dim": 128,
        "short_conv_kernel_size": 4,
    },
    "dtype": "bfloat16",
}
DEEPSEEK_V3 = {
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "torch_dtype": "bfloat16",
}


def grouped(layers: int, heads: int, width: int) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "num_attention_heads": 64,
        "num_key_value_heads": heads,
        "head_dim": width,
    }


def test_a_cache_of_eight_bits_halves_attention_and_leaves_state_alone() -> None:
    whole, half = kv_size_of(QWEN3_NEXT), kv_size_of(QWEN3_NEXT, cache_dtype="fp8_e4m3")

    assert half.bytes_per_token * 2 == whole.bytes_per_token
    assert half.state_bytes == whole.state_bytes


def test_a_cache_of_a_kind_nobody_knows_has_no_size() -> None:
    with pytest.raises(ValueError, match="KV dtype 'fp8_ds_mla'"):
        kv_size_of(QWEN3_NEXT, cache_dtype="fp8_ds_mla")


@pytest.mark.parametrize(
    ("config", "token_bytes", "state_mib"),
    [
        (QWEN3_NEXT, 24_576, 73.7),
        (QWEN3_NEXT | {"mamba_ssm_dtype": "bfloat16"}, 24_576, 37.7),
        (KIMI_LINEAR, 8_064, 41.4),
        (DEEPSEEK_V3, 70_272, 0),
        (grouped(80, 8, 128), 327_680, 0),
        (grouped(94, 4, 128), 192_512, 0),
        (grouped(62, 8, 128), 253_952, 0),
    ],
    ids=[
        "Qwen3-Next",
        "with bf16 state",
        "Kimi-Linear",
        "DeepSeek-V3",
        "Llama-70B",
        "Qwen3-235B",
        "MiniMax-M2.5",
    ],
)
def test_published_models_have_their_published_sizes(
    config: dict[str, Any], token_bytes: int, state_mib: float
) -> None:
    size = kv_size_of(config)

    assert size.bytes_per_token == token_bytes
    assert size.state_bytes / MIB == pytest.approx(state_mib, abs=0.05)


def test_layers_may_be_listed_one_by_one() -> None:
    kinds = (["linear_attention"] * 3 + ["full_attention"]) * 12
    listed = {
        name: value for name, value in QWEN3_NEXT.items() if name != "full_attention_interval"
    }

    assert kv_size_of({**listed, "layer_types": kinds}) == kv_size_of(QWEN3_NEXT)


def test_a_model_of_text_and_images_has_the_size_of_its_text() -> None:
    assert kv_size_of({"text_config": DEEPSEEK_V3, "vision_config": {}}) == kv_size_of(DEEPSEEK_V3)


def test_a_model_without_groups_keeps_every_head() -> None:
    config = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}

    assert kv_size_of(config).bytes_per_token == 2 * 4 * (16 + 16) * 2


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "num_hidden_layers: expected a whole number"),
        ({**grouped(2, 2, 64), "layer_types": ["mamba", "full_attention"]}, "mamba is not known"),
        ({**grouped(2, 2, 64), "sliding_window": 4096}, "layers that keep a window"),
        ({**grouped(2, 2, 64), "dtype": "int3"}, "'int3' is not one of"),
        (KIMI_LINEAR | {"num_hidden_layers": 28}, "are not all layers"),
    ],
)
def test_what_is_not_known_is_refused_by_its_field(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        kv_size_of(config)
