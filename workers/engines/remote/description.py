"""What an agent says of its server: one description for all kinds of servers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from yarl import URL

from controlplane.config_model import ModelConfig
from controlplane.config_server import EngineServerConfig
from controlplane.domain.kv_sizes import kv_size_of
from controlplane.domain.throughput.profile import KvSize
from controlplane.errors import ConfigError
from controlplane.observe.logs import get_logger
from controlplane.profilefile import ProfileFile, load_profile
from workers.address import EngineAddress
from workers.engine import EngineSpec
from workers.engines.kv_events.follower import EventSource
from workers.engines.kv_events.prefixes import CachedPrefixes
from workers.engines.remote.facts import EngineFacts
from workers.engines.remote.handle import handle_group
from workers.engines.remote.snapshot import Snapshot

_log = get_logger()

_PORT_MAX: Final = 65_535


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


def profile_of_server(address: EngineAddress, config: EngineServerConfig) -> ProfileFile | None:
    """
    How fast the operator says that it is; None where nobody says so.

    Raises:
        ConfigError: There is no such profile, or it is wrong.
    """
    name = address.profile or config.profile
    return load_profile(name, beside=Path.cwd()) if name else None


def with_sizes(
    model: ModelConfig, profile: ProfileFile | None, *, cache_dtype: str
) -> EngineServerConfig:
    """
    The settings, with the sizes of KV where none are given: of the profile, or the model's configuration.

    Args:
        model: Of the fleet.
        profile: Of the server.
        cache_dtype: Of its attention KV, as it says.
    """
    config, path = model.server, Path(model.tokenizer or "") / "config.json"
    if config.kv_bytes_per_token or config.kv_state_bytes:
        return config
    if profile is not None and profile.model is not None:
        return _sized(config, profile.model.kv)
    if not path.is_file():
        return config
    try:
        size = kv_size_of(json.loads(path.read_text(encoding="utf-8")), cache_dtype=cache_dtype)
    except (OSError, ValueError) as error:
        # Not what serves requests: transfers tell it, once there are any.
        _log.warning("engine.kv_size_unknown", detail=f"{path}: {error}")
        return config
    return _sized(config, size)


def _sized(config: EngineServerConfig, size: KvSize) -> EngineServerConfig:
    return config.model_copy(
        update={
            "kv_bytes_per_token": round(size.bytes_per_token),
            "kv_state_bytes": round(size.state_bytes),
        }
    )


def event_sources(
    address: EngineAddress, config: EngineServerConfig, ranks: int
) -> list[EventSource]:
    """
    Where the ranks of a server publish KV events; none where nobody says so.

    Raises:
        ConfigError: There are more ranks than ports behind the first.
    """
    port = address.kv_events_port or config.kv_events_port
    replay_port = address.kv_replay_port or config.kv_replay_port
    if not port:
        return []
    if max(port, replay_port) + ranks - 1 > _PORT_MAX:
        raise ConfigError(
            f"the engine at {address.url} has {ranks} ranks, whose KV events would begin at port {port} "
            f"and their past at {replay_port}: that ends beyond {_PORT_MAX}"
        )
    host = URL(address.url).host or ""
    return [
        EventSource(host, port + rank, replay_port and replay_port + rank) for rank in range(ranks)
    ]


def prefixes_of(
    spec: EngineSpec, config: EngineServerConfig, first: Snapshot, sources: list[EventSource]
) -> CachedPrefixes:
    """
    What its prefix cache holds, as far as that can be known.

    Args:
        spec: What it is.
        config: With the sizes of its KV.
        first: A look at it.
        sources: Of its events.
    """
    if first.cache.get("enable_prefix_caching") == "False":
        return CachedPrefixes.of_nothing()
    return CachedPrefixes.of_server(
        spec, sources, cache_tokens=first.cache_tokens, has_state=config.kv_state_bytes > 0
    )
