"""SGLang: a pair of servers of which neither works alone, so nothing is tried before it registers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from yarl import URL

from controlplane.config_model import ModelConfig
from controlplane.config_server import EngineServerConfig
from controlplane.errors import ConfigError, WorkerRefused
from controlplane.observe.logs import get_logger
from controlplane.tokenizing import Tokenizer
from controlplane.wire import Role
from workers.address import EngineAddress
from workers.engines.kv_events.follower import EventSource
from workers.engines.remote.description import (
    event_sources,
    prefixes_of,
    profile_of_server,
    spec_of,
    with_sizes,
)
from workers.engines.remote.engine import RemoteEngine, Server, wait_for
from workers.engines.remote.facts import EngineFacts, context_of, read_json
from workers.engines.remote.http import EngineHttp
from workers.engines.remote.legs import SglangHandoff
from workers.engines.remote.output import SglangReader
from workers.engines.remote.snapshot import Snapshot, sglang_snapshot
from workers.engines.remote.timing import Timing

_log = get_logger()

_LOOK_S: Final = 2.0
#: Where a server says what it is; the second is the name that it had before.
_INFO_PATHS: Final = ("/server_info", "/get_server_info")


@dataclass(frozen=True, slots=True, kw_only=True)
class SglangFacts:
    """What is known of a server."""

    facts: EngineFacts
    first: Snapshot
    #: Of a prefill server; None where it was started without one.
    bootstrap_port: int | None
    #: What it says of its KV events; empty where it publishes none.
    events: Mapping[str, Any]


async def open_sglang(
    model: ModelConfig, role: Role, address: EngineAddress, tokenizer: Tokenizer
) -> RemoteEngine:
    """
    Wait for an SGLang server and find out what it is.

    Args:
        model: What the fleet serves.
        role: What the server does for it.
        address: Of the server.
        tokenizer: Of the fleet.

    Raises:
        ConfigError: It is not what the fleet needs; says which field and what to do.
        PrfaasError: It did not answer within `start_timeout_s`.
    """
    http = EngineHttp(address.url, api_key=address.api_key)
    config = model.server
    profile = await asyncio.to_thread(profile_of_server, address, config)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(http.close)
        find = partial(find_sglang, http, model, role)
        found: SglangFacts = await wait_for(find, timeout_s=config.start_timeout_s)
        sources = _sources(address, config, found.events)
        config = await asyncio.to_thread(
            partial(with_sizes, model, profile, cache_dtype=found.facts.cache_dtype)
        )
        # The engine closes it from now on.
        stack.pop_all()
    host = address.kv_host or URL(address.url).host or ""
    handoff = SglangHandoff(host=host, port=address.kv_port or found.bootstrap_port)
    spec = spec_of(found.facts, model, tokenizer.vocabulary_size)
    _log.info("engine.found", model=spec.model, fingerprint=spec.fingerprint, url=http.url)
    server = Server(handoff=handoff, reader=SglangReader, look=partial(_look, http))
    # It takes no trial request: without a profile its first requests tell.
    timing = Timing() if profile is None else Timing.of_profile(profile, Timing())
    prefixes = prefixes_of(spec, config, found.first, sources)
    engine = RemoteEngine(http, server, spec, config, timing, found.first, prefixes=prefixes)
    engine.start()
    return engine


async def find_sglang(http: EngineHttp, model: ModelConfig, role: Role) -> SglangFacts:
    """
    Ask an SGLang server what it is.

    Raises:
        ConfigError: It is not SGLang, serves another model, too short a context or the other role,
            or has no metrics; says which and what to do.
        PrfaasError: It does not answer yet.
    """
    where = f"the engine at {http.url}"
    info = await _info(http, where)
    mode = info.get("disaggregation_mode")
    if mode != role:
        raise ConfigError(
            f"{where} was started with --disaggregation-mode {mode or 'null'}, its agent with --role "
            f"{role}: start one of them otherwise"
        )
    length = context_of(await read_json(http, "/v1/models", where), model.name, where)
    if length < model.context_tokens_max:
        raise ConfigError(
            f"{where} takes {length} tokens, the fleet promises model.context_tokens_max = "
            f"{model.context_tokens_max}: lower that, or start the server with --context-length"
        )
    port = info.get("disaggregation_bootstrap_port")
    facts = EngineFacts(
        engine="sglang",
        version=str(info.get("version", "unknown")),
        connector=str(info.get("disaggregation_transfer_backend", "mooncake")),
        model=model.name,
        revision=model.server.revision,
        cache_dtype=str(info.get("kv_cache_dtype", "auto")),
        block_tokens=_page_tokens(info, where),
        context_tokens_max=model.context_tokens_max,
    )
    try:
        first = await _look(http)
    except (WorkerRefused, ValueError) as error:
        raise ConfigError(f"{where}: {error}; it needs --enable-metrics") from error
    events = info.get("kv_events")
    return SglangFacts(
        facts=facts,
        first=first,
        bootstrap_port=port if isinstance(port, int) else None,
        events=events if isinstance(events, dict) else {},
    )


def _sources(
    address: EngineAddress, config: EngineServerConfig, said: Mapping[str, Any]
) -> list[EventSource]:
    """Where it publishes: the operator's word, or its own."""

    def number(name: str) -> int:
        found = said.get(name)
        return found if isinstance(found, int) and found > 0 else 0

    told = EngineAddress(
        url=address.url,
        kv_events_port=address.kv_events_port or number("endpoint_port_base"),
        kv_replay_port=address.kv_replay_port or number("replay_endpoint_port_base"),
    )
    return event_sources(told, config, max(1, number("dp_size")))


async def _look(http: EngineHttp) -> Snapshot:
    return sglang_snapshot(await http.get("/metrics", timeout_s=_LOOK_S))


async def _info(http: EngineHttp, where: str) -> dict[str, Any]:
    for path in _INFO_PATHS:
        try:
            found = json.loads(await http.get(path, timeout_s=_LOOK_S))
        except (WorkerRefused, ValueError) as error:
            if " 401 " in str(error) or " 403 " in str(error):
                raise ConfigError(f"{where}: {error}; set PRFAAS_ENGINE_API_KEY") from error
            continue
        if isinstance(found, dict) and "disaggregation_mode" in found:
            return found
    raise ConfigError(
        f"{where} is not SGLang: GET {_INFO_PATHS[0]} says no disaggregation_mode. Give --engine-url "
        "the base URL of an SGLang server, without /v1"
    )


def _page_tokens(info: dict[str, Any], where: str) -> int:
    found = info.get("page_size")
    if not isinstance(found, int) or found < 1:
        raise ConfigError(f"{where} says no page_size: use SGLang 0.5 or newer")
    return found
