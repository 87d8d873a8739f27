"""
Bytes of KV and of state out of a model's `config.json`: what crosses a link, before anything has. Pure.

Attention KV grows with each token; linear attention has a state of one size, which crosses the link every
time. Layers of one model may be of both kinds.

Source:
    The model families' published configurations; k is the width of the short convolution, s the bytes
    of a number of the recurrent state.

    grouped queries  layers * kv_heads * (d_k + d_v) * dtype               a token
    latent (MLA)     layers * (kv_lora_rank + qk_rope_head_dim) * dtype    a token
    gated delta rule layers * (H_v*d_v*d_k*s + (k-1) * (2*H_k*d_k + H_v*d_v) * dtype)
    KDA              layers * (H*d*d*s + (k-1) * 3*H*d * dtype)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from controlplane.domain.throughput.profile import KvSize

#: Bytes of a number, by the names that configurations have for them.
_DTYPE_BYTES: Final = {"float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1}
_EIGHT_BITS: Final = frozenset({"fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc"})
#: Of the recurrent state, where a configuration does not say: engines keep it exact.
_STATE_BYTES: Final = 4
_CONVOLUTION: Final = 4
#: Kinds of layers that are neither full nor linear attention, and keep something else.
_KNOWN_LAYERS: Final = frozenset({"full_attention", "linear_attention"})


def kv_size_of(config: Mapping[str, Any], *, cache_dtype: str = "auto") -> KvSize:
    """
    What a model keeps of a prompt.

    Args:
        config: `config.json`; that of the text part where a model has several.
        cache_dtype: Of attention KV, as an engine names it; `auto` is the model's own. State and
            convolutions keep theirs.

    Raises:
        ValueError: A kind of model that is not known here, or a field is missing; says which.
    """
    text = config.get("text_config")
    if isinstance(text, Mapping):
        config = {**config, **text}
    linear = config.get("linear_attn_config")
    if isinstance(linear, Mapping):
        return _of_kda(config, linear, cache_dtype)
    full, others = _layers(config)
    state_bytes = others * _delta_rule_bytes(config) if others else 0
    token_bytes = full * _token_bytes(config, cache_dtype)
    return KvSize(state_bytes=state_bytes, bytes_per_token=token_bytes)


def _of_kda(config: Mapping[str, Any], linear: Mapping[str, Any], cache_dtype: str) -> KvSize:
    heads, width = _whole(linear, "num_heads"), _whole(linear, "head_dim")
    kernel = linear.get("short_conv_kernel_size", _CONVOLUTION)
    recurrent = heads * width * width * _state_dtype_bytes(config)
    convolution = (kernel - 1) * 3 * heads * width * _dtype_bytes(config)
    layers = len(linear.get("kda_layers", ()))
    full = len(linear.get("full_attn_layers", ()))
    if layers + full != _whole(config, "num_hidden_layers"):
        raise ValueError("linear_attn_config: kda_layers and full_attn_layers are not all layers")
    return KvSize(
        state_bytes=layers * (recurrent + convolution),
        bytes_per_token=full * _token_bytes(config, cache_dtype),
    )


def _layers(config: Mapping[str, Any]) -> tuple[int, int]:
    """Layers of full and of linear attention."""
    count = _whole(config, "num_hidden_layers")
    kinds = config.get("layer_types")
    if isinstance(kinds, list):
        if unknown := sorted(set(map(str, kinds)) - _KNOWN_LAYERS):
            raise ValueError(f"layer_types: {', '.join(unknown)} is not known here")
        full = kinds.count("full_attention")
        return full, len(kinds) - full
    interval = config.get("full_attention_interval")
    if isinstance(interval, int) and interval > 0:
        return count // interval, count - count // interval
    if config.get("sliding_window") and config.get("use_sliding_window", True):
        raise ValueError("sliding_window: layers that keep a window are not known here")
    return count, 0


def _token_bytes(config: Mapping[str, Any], cache_dtype: str) -> int:
    """Of one layer of full attention."""
    size = _dtype_bytes(config) if cache_dtype == "auto" else _cache_bytes(cache_dtype)
    if config.get("kv_lora_rank"):
        return (_whole(config, "kv_lora_rank") + _whole(config, "qk_rope_head_dim")) * size
    heads = _whole(config, "num_attention_heads")
    width = config.get("head_dim") or _whole(config, "hidden_size") // heads
    values = config.get("v_head_dim") or width
    return int(config.get("num_key_value_heads") or heads) * (width + values) * size


def _delta_rule_bytes(config: Mapping[str, Any]) -> int:
    """Of one layer of linear attention."""
    keys, key_width = _whole(config, "linear_num_key_heads"), _whole(config, "linear_key_head_dim")
    values = _whole(config, "linear_num_value_heads")
    value_width = _whole(config, "linear_value_head_dim")
    kernel = config.get("linear_conv_kernel_dim", _CONVOLUTION)
    recurrent = values * value_width * key_width * _state_dtype_bytes(config)
    channels = 2 * keys * key_width + values * value_width
    return int(recurrent + (kernel - 1) * channels * _dtype_bytes(config))


def _dtype_bytes(config: Mapping[str, Any]) -> int:
    name = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    if name not in _DTYPE_BYTES:
        raise ValueError(f"dtype: {name!r} is not one of {', '.join(_DTYPE_BYTES)}")
    return _DTYPE_BYTES[name]


def _cache_bytes(dtype: str) -> int:
    """Of a number of attention KV, by the names that vLLM and SGLang have."""
    if dtype in _EIGHT_BITS:
        return 1
    if dtype not in _DTYPE_BYTES:
        raise ValueError(f"KV dtype {dtype!r} is not known here")
    return _DTYPE_BYTES[dtype]


def _state_dtype_bytes(config: Mapping[str, Any]) -> int:
    return _DTYPE_BYTES.get(str(config.get("mamba_ssm_dtype")), _STATE_BYTES)


def _whole(config: Mapping[str, Any], name: str) -> int:
    found = config.get(name)
    if not isinstance(found, int) or found < 1:
        raise ValueError(f"{name}: expected a whole number > 0, got {found!r}")
    return found
