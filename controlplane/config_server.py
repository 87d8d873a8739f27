"""Settings of engines that run in servers of their own; a part of `controlplane/config_model.py`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from controlplane.config_health import PositiveSeconds, Section

#: A path that ends with `.toml`, or the name of a profile that ships; empty for none.
ProfileName = Annotated[str, Field(max_length=4096)]
ServerUrl = Annotated[str, Field(pattern=r"^https?://[^/\s]+(/[^\s]*)?$", max_length=512)]


class ListedServer(Section):
    """An engine server that `prfaas up` starts an agent for, when more than its URL has to be said."""

    url: ServerUrl
    #: Its own, written over those of `[model.server]`.
    kv_events_port: Annotated[int, Field(ge=0, le=65535)] = 0
    kv_replay_port: Annotated[int, Field(ge=0, le=65535)] = 0
    profile: ProfileName = ""

    def arguments(self) -> list[str]:
        """Of its agent's command line."""
        ports = {"events": self.kv_events_port, "replay": self.kv_replay_port}
        said = [(f"--engine-kv-{name}-port", str(port)) for name, port in ports.items() if port]
        if self.profile:
            said.append(("--engine-profile", self.profile))
        return ["--engine-url", self.url, *(word for pair in said for word in pair)]


def _listed(value: object) -> object:
    return {"url": value} if isinstance(value, str) else value


#: A URL alone, or a table.
EngineServer = Annotated[ListedServer, BeforeValidator(_listed)]


class EngineServerConfig(Section):
    """Engine servers, such as vLLM's: what an agent beside each of them has to know."""

    #: What moves KV between the servers. NIXL: decode pulls once the prefill has ended. Mooncake: both
    #: run at the same time, and find each other by the prefill server's bootstrap.
    connector: Literal["nixl", "mooncake"] = "nixl"
    #: Of Mooncake (`VLLM_MOONCAKE_BOOTSTRAP_PORT`), on the prefill server's host or where
    #: `--engine-kv-host` says; `--engine-kv-port` is written over it.
    bootstrap_port: Annotated[int, Field(ge=1, le=65535)] = 8998
    #: Of the weights, as the operator names it: servers tell no more than a name. Two that differ
    #: never form a pair.
    revision: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{0,64}$")] = ""
    #: A server that loads its weights is waited for so long before its agent gives up.
    start_timeout_s: PositiveSeconds = 600.0
    #: Its metrics are read so often.
    poll_interval_s: PositiveSeconds = 0.5
    #: Without any answer for so long it gets no new requests, and those it has go elsewhere.
    silent_s: PositiveSeconds = 3.0
    #: Until the first token of a decode the KV moves at no less than this on average ...
    transfer_mbit_per_s_min: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] = 20.0
    #: ... after so long for everything else. A NIXL reader alone waits for ever on a stopped peer.
    transfer_stall_s: PositiveSeconds = 5.0
    #: Where each server publishes its KV events (the port of `--kv-events-config`, on the host of its
    #: URL), and where it answers for past ones; 0 for nowhere. Rank n has the n-th port behind it.
    #: SGLang servers tell theirs.
    kv_events_port: Annotated[int, Field(ge=0, le=65535)] = 0
    kv_replay_port: Annotated[int, Field(ge=0, le=65535)] = 0
    #: Attention KV of a token, bytes, and state of a sequence. Without either they come from the
    #: `config.json` beside the tokenizer, and where that does not tell, from counted transfers.
    kv_bytes_per_token: Annotated[int, Field(ge=0, le=1 << 30)] = 0
    kv_state_bytes: Annotated[int, Field(ge=0, le=1 << 40)] = 0
    #: How fast the servers are, as `prfaas profile` measured it; without one a trial request tells.
    profile: ProfileName = ""
