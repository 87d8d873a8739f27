"""What an engine server is, found out from the server itself before anything is registered."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from controlplane.domain.fingerprint import fingerprint_of
from controlplane.errors import ConfigError, PeerError, WorkerRefused
from workers.engines.remote.http import EngineHttp
from workers.engines.remote.snapshot import Snapshot, vllm_snapshot

_ANSWER_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What KV depends on, and what bounds requests."""

    engine: str
    version: str
    connector: str
    model: str
    revision: str
    cache_dtype: str
    block_tokens: int
    #: Prompt and output together.
    context_tokens_max: int

    @property
    def fingerprint(self) -> str:
        """
        Of all that KV depends on.

        The version is in it because connectors refuse peers of another one when they shake hands,
        and then only.
        """
        fields = {
            self.engine: self.version,
            "connector": self.connector,
            "revision": self.revision or "none",
            "kv": self.cache_dtype,
            "block": str(self.block_tokens),
            "model": self.model,
        }
        return fingerprint_of(fields)


async def find_vllm(
    http: EngineHttp, *, model: str, context_tokens_max: int, revision: str, connector: str
) -> tuple[EngineFacts, Snapshot]:
    """
    Ask a vLLM server what it is.

    Args:
        http: To the server.
        model: That the fleet serves, by the name that the server has for it.
        context_tokens_max: That the fleet promises.
        revision: Of the weights, as the operator names it.
        connector: That the operator says it runs with.

    Raises:
        ConfigError: It is not vLLM, needs a key, serves another model or too short a context, or
            runs without the connector; says which and what to do.
        PrfaasError: It does not answer yet.
    """
    where = f"the engine at {http.url}"
    version = await read_json(http, "/version", where)
    found = version.get("version")
    if not isinstance(found, str):
        raise ConfigError(
            f"{where} is not vLLM: GET /version says no version. Give --engine-url the base URL of "
            "a vLLM server, without /v1"
        )
    served = await read_json(http, "/v1/models", where)
    length = context_of(served, model, where)
    if length < context_tokens_max:
        raise ConfigError(
            f"{where} takes {length} tokens (max_model_len), the fleet promises "
            f"model.context_tokens_max = {context_tokens_max}: lower that, or start the server with "
            f"--max-model-len {context_tokens_max}"
        )
    snapshot = vllm_snapshot(await _text(http, "/metrics", where))
    block = snapshot.cache.get("block_size", "")
    if not block.isdecimal():
        raise ConfigError(
            f"{where} says no vllm:cache_config_info in /metrics, so its block size is unknown: "
            "start it without --disable-log-stats, in version 0.11 or newer"
        )
    if connector == "nixl" and not snapshot.has_nixl:
        raise ConfigError(
            f"{where} runs without the NixlConnector (no vllm:nixl_ metrics): start it with "
            '--kv-transfer-config \'{"kv_connector":"NixlConnector","kv_role":...}\', version 0.11 or newer'
        )
    facts = EngineFacts(
        engine="vllm",
        version=found,
        connector=connector,
        model=model,
        revision=revision,
        cache_dtype=snapshot.cache.get("cache_dtype", "unknown"),
        block_tokens=int(block),
        context_tokens_max=context_tokens_max,
    )
    return facts, snapshot


async def find_mooncake(http: EngineHttp, bootstrap_url: str) -> str:
    """
    Ask a prefill server's Mooncake bootstrap for its engine.

    Args:
        http: To the server.
        bootstrap_url: Of its bootstrap.

    Returns:
        The engine id of data-parallel rank 0.

    Raises:
        ConfigError: There is no bootstrap, or it knows no engine.
    """
    where = f"the Mooncake bootstrap at {bootstrap_url}"
    advice = (
        'start the server with --kv-transfer-config \'{"kv_connector":"MooncakeConnector",...}\' and '
        "say its VLLM_MOONCAKE_BOOTSTRAP_PORT in [model.server] bootstrap_port"
    )
    try:
        ranks = json.loads(await http.get("/query", timeout_s=_ANSWER_S, base=bootstrap_url))
        engine_id = ranks["0"]["engine_id"]
    except PeerError as error:
        raise ConfigError(f"{where}: {error.message}; {advice}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{where} knows no engine of rank 0; {advice}") from error
    return str(engine_id)


async def check_tokenizer(http: EngineHttp, *, model: str, text: str, ours: list[int]) -> None:
    """
    Compare the server's tokenizer with the fleet's on a text.

    Raises:
        ConfigError: They make different tokens.
    """
    try:
        answer = await http.post("/tokenize", {"model": model, "prompt": text}, {})
    except WorkerRefused:
        return  # a server may have the route switched off
    if (theirs := answer.get("tokens")) != ours:
        raise ConfigError(
            f"the engine at {http.url} makes other tokens than model.tokenizer: {theirs} and {ours} "
            f"for {text!r}. Point model.tokenizer at the tokenizer files of the served model"
        )


def context_of(served: Mapping[str, Any], model: str, where: str) -> int:
    """
    Longest context of a model, from a server's list of models.

    Raises:
        ConfigError: It is not among them.
    """
    entries = [one for one in served.get("data", ()) if isinstance(one, dict)]
    for entry in entries:
        if entry.get("id") == model and isinstance(entry.get("max_model_len"), int):
            return int(entry["max_model_len"])
    names = ", ".join(sorted(str(entry.get("id")) for entry in entries)) or "nothing"
    raise ConfigError(
        f"{where} serves {names}, the fleet's model.name is {model}: rename one of them "
        "(vLLM has --served-model-name)"
    )


async def read_json(http: EngineHttp, path: str, where: str) -> dict[str, Any]:
    """
    The object that a server answers with.

    Raises:
        ConfigError: It refuses, or answers something else.
        PrfaasError: It does not answer yet.
    """
    text = await _text(http, path, where)
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigError(
            f"{where} answers GET {path} with something else than vLLM does: give --engine-url the "
            "base URL of a vLLM server, without /v1"
        )
    return found


async def _text(http: EngineHttp, path: str, where: str) -> str:
    try:
        return await http.get(path, timeout_s=_ANSWER_S)
    except WorkerRefused as error:
        is_key = " 401 " in error.message or " 403 " in error.message
        advice = (
            "set PRFAAS_ENGINE_API_KEY to the key that it was started with"
            if is_key
            else "give --engine-url the base URL of a vLLM server, without /v1"
        )
        raise ConfigError(f"{where}: {error.message}; {advice}") from error
