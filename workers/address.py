"""Where a worker listens, and where it is reached."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineAddress:
    """How an agent reaches its engine server, and how other datacenters reach that one's KV."""

    #: Base of the server's API, without `/v1`.
    url: str
    api_key: str = ""
    #: Written over what the server says of itself; empty and 0 for the server's own word.
    kv_host: str = ""
    kv_port: int = 0
    #: Where it publishes KV events, and where its past ones can be asked for; 0 for the fleet's word.
    kv_events_port: int = 0
    kv_replay_port: int = 0
    #: Of this server's hardware; empty for the fleet's word.
    profile: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerAddress:
    """Where a worker listens, port 0 finds a free one; and where it is reached, if not there."""

    host: str
    port: int = 0
    kv_port: int = 0
    #: `host:port` that routers dial, when a proxy or a port mapping stands before the worker.
    advertised: str | None = None
    #: The same for decode workers and KV.
    advertised_kv: str | None = None
    #: Of an engine that runs in a server of its own.
    engine: EngineAddress | None = None

    def reached_kv(self, port: int) -> tuple[str, int]:
        """
        Host and port that KV locations name.

        Args:
            port: The one that is listened on.
        """
        if self.advertised_kv is None:
            return self.host, port
        host, _, reached = self.advertised_kv.rpartition(":")
        return host, int(reached)
