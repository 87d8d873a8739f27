"""What an agent says of its server: one description for all kinds of servers."""

from __future__ import annotations

import json
from pathlib import Path

from controlplane.config_model import ModelConfig
from controlplane.config_server import EngineServerConfig
from controlplane.domain.kv_sizes import kv_size_of
from controlplane.observe.logs import get_logger
from workers.engine import EngineSpec
from workers.engines.remote.facts import EngineFacts
from workers.engines.remote.handle import handle_group

_log = get_logger()


def spec_of(facts: EngineFacts, model: ModelConfig, vocabulary_size: int) -> EngineSpec:
    """
    The specification that a worker registers.

    Args:
        facts: Of the server.
        model: Of the fleet.
        vocabulary_size: Of the fleet's tokenizer.
    """
    group = handle_group(
        context_tokens_max=facts.context_tokens_max, block_tokens=facts.block_tokens
    )
    return EngineSpec(
        model=facts.model,
        fingerprint=facts.fingerprint,
        vocabulary_size=vocabulary_size,
        block_tokens=facts.block_tokens,
        context_tokens_max=facts.context_tokens_max,
        decode_slots=model.decode_slots,
        groups=(group,),
        can_move_prefixes=False,
    )


def with_sizes(model: ModelConfig) -> EngineServerConfig:
    """The settings, with the sizes of KV out of the model's own configuration where none are given."""
    config, path = model.server, Path(model.tokenizer or "") / "config.json"
    if config.kv_bytes_per_token or config.kv_state_bytes or not path.is_file():
        return config
    try:
        size = kv_size_of(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        # Not what serves requests: transfers tell it, once there are any.
        _log.warning("engine.kv_size_unknown", detail=f"{path}: {error}")
        return config
    return config.model_copy(
        update={
            "kv_bytes_per_token": round(size.bytes_per_token),
            "kv_state_bytes": round(size.state_bytes),
        }
    )
