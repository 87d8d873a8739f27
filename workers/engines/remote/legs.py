"""
The requests that make an engine prefill for another one, and that one go on: by connector. Pure.

NIXL pulls: the prefill's answer carries parameters that the decode request must carry unread.
Mooncake and SGLang pair: both requests run at the same time and find each other by an id made here.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from controlplane.wire import Sampling

#: SGLang's rooms are positive 63-bit integers.
_ROOM_BITS: Final = 63
_COMPLETIONS: Final = "/v1/completions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Leg:
    """One request to an engine."""

    body: Mapping[str, Any]
    path: str = _COMPLETIONS
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What both legs are about."""

    request_id: str
    model: str
    tokens: list[int]
    #: Keeps the prefix caches of scopes apart.
    scope: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KvSide:
    """Where the other datacenter reaches the KV of a prefill server, if not where it says itself."""

    host: str = ""
    #: 0 for the server's own.
    port: int = 0


class Handoff(Protocol):
    """The rules of one connector."""

    #: The decode leg starts with the prefill leg, not after it.
    is_paired: bool

    def begin(self) -> dict[str, Any]:
        """Of a paired connector: the handle, before either leg is sent."""

    def prefill_leg(self, prompt: Prompt, handle: Mapping[str, Any]) -> Leg:
        """
        The request to the prefill server.

        Args:
            prompt: All of it, its last token included.
            handle: From `begin`; empty for a connector that pulls.
        """

    def handle(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        """
        Of a connector that pulls: the handle out of the prefill's answer.

        Raises:
            ValueError: The answer has none: the server runs without the connector.
        """

    def decode_leg(self, prompt: Prompt, handle: Mapping[str, Any], sampling: Sampling) -> Leg:
        """The request to the decode server; its answer is streamed, with token ids."""


class NixlHandoff:
    """vLLM's NixlConnector, pull: one leg after the other."""

    is_paired = False

    def __init__(self, side: KvSide | None = None) -> None:
        self._side = side or KvSide()

    def begin(self) -> dict[str, Any]:
        """Nothing is known before the prefill has ended."""
        return {}

    def prefill_leg(self, prompt: Prompt, handle: Mapping[str, Any]) -> Leg:
        """One token, not streamed; all five addresses must be there, and empty."""
        del handle
        return _vllm_prefill(
            prompt,
            {
                "do_remote_decode": True,
                "do_remote_prefill": False,
                "remote_engine_id": None,
                "remote_block_ids": None,
                "remote_host": None,
                "remote_port": None,
            },
        )

    def handle(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        """What the server says, unread but for the address that the other datacenter needs."""
        found = answer.get("kv_transfer_params")
        if not isinstance(found, dict) or not found:
            raise ValueError(
                "the prefill server answered without kv_transfer_params: start it with "
                '--kv-transfer-config \'{"kv_connector":"NixlConnector","kv_role":"kv_producer"}\''
            )
        if self._side.host:
            found = {**found, "remote_host": self._side.host}
        if self._side.port:
            found = {**found, "remote_port": self._side.port}
        return found

    def decode_leg(self, prompt: Prompt, handle: Mapping[str, Any], sampling: Sampling) -> Leg:
        """The parameters as they came."""
        return _vllm_decode(prompt, dict(handle), sampling)


class MooncakeHandoff:
    """vLLM's MooncakeConnector: both legs at once, met by a transfer id."""

    is_paired = True

    def __init__(self, *, bootstrap_url: str, engine_id: str, rank: int = 0) -> None:
        """
        Args:
            bootstrap_url: Of the prefill server's bootstrap, as decode servers reach it.
            engine_id: Of the rank, from the bootstrap's `/query`; changes when the server restarts.
            rank: Data-parallel rank that prefills.
        """
        self._bootstrap_url = bootstrap_url
        self._engine_id = engine_id
        self._rank = rank

    def move_to(self, engine_id: str) -> None:
        """The prefill server was started anew: legs to its old life would find nobody."""
        self._engine_id = engine_id

    def begin(self) -> dict[str, Any]:
        """The id of the transfer, and where it begins."""
        return {
            "transfer_id": f"xfer-{uuid.uuid4()}",
            "remote_bootstrap_addr": self._bootstrap_url,
            "remote_engine_id": self._engine_id,
        }

    def prefill_leg(self, prompt: Prompt, handle: Mapping[str, Any]) -> Leg:
        """At the rank whose engine id is in the handle."""
        leg = _vllm_prefill(
            prompt,
            {
                "do_remote_decode": True,
                "do_remote_prefill": False,
                "transfer_id": handle["transfer_id"],
            },
        )
        headers = {**leg.headers, "X-data-parallel-rank": str(self._rank)}
        return Leg(body=leg.body, headers=headers)

    def handle(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        """The answer carries nothing; both legs have their handle already."""
        del answer
        raise ValueError("a paired connector has its handle before its legs")

    def decode_leg(self, prompt: Prompt, handle: Mapping[str, Any], sampling: Sampling) -> Leg:
        """With the way to the bootstrap."""
        remote = {"do_remote_decode": False, "do_remote_prefill": True, **handle}
        return _vllm_decode(prompt, remote, sampling)


class SglangHandoff:
    """SGLang: the same body to both at once, met in a room."""

    is_paired = True

    def __init__(self, *, host: str, port: int | None) -> None:
        """
        Args:
            host: Of the prefill server's bootstrap, as decode servers reach it.
            port: None where the server was started without one.
        """
        self._host = host
        self._port = port

    def begin(self) -> dict[str, Any]:
        """A new room: a pair that is tried again must not meet in the old one."""
        return {
            "bootstrap_host": self._host,
            "bootstrap_port": self._port,
            "bootstrap_room": secrets.randbits(_ROOM_BITS),
        }

    def prefill_leg(self, prompt: Prompt, handle: Mapping[str, Any]) -> Leg:
        """The prefill server stops by itself, whatever length is asked for."""
        return _sglang_leg(prompt, handle, Sampling(output_tokens_max=1), is_stream=False)

    def handle(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        """The answer carries nothing; both legs have their handle already."""
        del answer
        raise ValueError("a paired connector has its handle before its legs")

    def decode_leg(self, prompt: Prompt, handle: Mapping[str, Any], sampling: Sampling) -> Leg:
        """The same room."""
        return _sglang_leg(prompt, handle, sampling, is_stream=True)


def plain_leg(prompt: Prompt, sampling: Sampling) -> Leg:
    """A streamed request without any transfer."""
    return _vllm_decode(prompt, None, sampling)


def _vllm_prefill(prompt: Prompt, parameters: Mapping[str, Any]) -> Leg:
    body = {
        **_vllm_common(prompt),
        "max_tokens": 1,
        "temperature": 0,
        "stream": False,
        "kv_transfer_params": parameters,
    }
    return Leg(body=body, headers={"X-Request-Id": prompt.request_id})


def _vllm_decode(prompt: Prompt, parameters: Mapping[str, Any] | None, sampling: Sampling) -> Leg:
    body: dict[str, Any] = {
        **_vllm_common(prompt),
        **_sampled(sampling),
        "max_tokens": sampling.output_tokens_max,
        "stream": True,
        "return_token_ids": True,
        "stream_options": {"include_usage": True},
    }
    if parameters is not None:
        body["kv_transfer_params"] = parameters
    return Leg(body=body, headers={"X-Request-Id": prompt.request_id})


def _vllm_common(prompt: Prompt) -> dict[str, Any]:
    return {"model": prompt.model, "prompt": prompt.tokens, "cache_salt": prompt.scope}


def _sampled(sampling: Sampling) -> dict[str, Any]:
    seed = {} if sampling.seed is None else {"seed": sampling.seed}
    return {"temperature": sampling.temperature, "top_p": sampling.top_p, **seed}


def _sglang_leg(
    prompt: Prompt, handle: Mapping[str, Any], sampling: Sampling, *, is_stream: bool
) -> Leg:
    seed = {} if sampling.seed is None else {"sampling_seed": sampling.seed}
    body = {
        "rid": prompt.request_id,
        "input_ids": prompt.tokens,
        "sampling_params": {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_new_tokens": sampling.output_tokens_max,
            **seed,
        },
        "extra_key": prompt.scope,
        "stream": is_stream,
        **handle,
    }
    return Leg(body=body, path="/generate")
