"""
Settings: every wait, bound and size of the system, with its unit, range and reason.

A fleet file (TOML) describes datacenters, links, the model and the router; see `docs/fleet.md`.
Environment variables `PRFAAS_...` and `REDIS_URL` override what differs between machines.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from controlplane.config_health import HealthConfig, PositiveSeconds, Section
from controlplane.config_links import LinkConfig, SiteName, TenantConfig, check_names
from controlplane.config_model import ModelConfig, TransformersConfig
from controlplane.config_planner import PlannerConfig
from controlplane.config_server import EngineServer
from controlplane.config_worker import WorkerConfig
from controlplane.errors import ConfigError
from controlplane.store.urls import parse_store_url
from controlplane.wire_types import INVENTORY_BLOCKS_MAX, LINKS_MAX

#: Links and models are modules of their own; all sections are imported from here.
__all__ = ["LinkConfig", "ModelConfig", "SiteName", "TenantConfig", "TransformersConfig"]

_PORT_MAX = 65_535
Port = Annotated[int, Field(ge=0, le=_PORT_MAX)]


class StoreConfig(Section):
    """How long anybody waits for Redis."""

    #: A call on the request path; Redis answers in under 1 ms or it is in trouble.
    call_timeout_s: PositiveSeconds = 0.05
    #: A call off the request path (snapshot, admin).
    slow_call_timeout_s: PositiveSeconds = 2.0
    #: Consecutive failures that open the circuit breaker.
    breaker_failures: Annotated[int, Field(ge=1, le=100)] = 3
    #: Seconds between probes of an open breaker; +- 20 % so that replicas do not march in step.
    breaker_probe_s: PositiveSeconds = 1.0
    #: Servers that one call may be sent on to, within its time: a seed that is down, one that names
    #: another, and a slot or a master that moves meanwhile.
    redirects_max: Annotated[int, Field(ge=0, le=16)] = 3
    #: After an outage a process uses one connection of each kind for so long, or all replicas
    #: together would greet the server with all theirs.
    reconnect_calm_s: PositiveSeconds = 1.0
    #: Decision records kept; a record holds the view it was decided on, 7 KB for six workers.
    decisions_max: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    #: Worker events kept for routers to catch up; older ones need a snapshot.
    events_max: Annotated[int, Field(ge=100, le=1_000_000)] = 10_000
    #: Blocks of one worker's inventory that are kept, 4 MB; a full report of more than this keeps its
    #: last ones, and deltas beyond it begin anew with the newest.
    inventory_blocks_max: Annotated[int, Field(ge=16, le=INVENTORY_BLOCKS_MAX)] = (
        INVENTORY_BLOCKS_MAX
    )
    #: Workers of a fleet; a further one is refused until another one has left.
    workers_max: Annotated[int, Field(ge=1, le=100_000)] = 4096
    #: Links and segments that are listed; reservations and leases themselves have no such bound.
    links_max: Annotated[int, Field(ge=1, le=100_000)] = LINKS_MAX
    segments_max: Annotated[int, Field(ge=1, le=1_000_000)] = 65_536
    #: Bytes of one published document; a policy's parameters or a plan for 1,000 workers.
    document_bytes_max: Annotated[int, Field(ge=1024, le=16 << 20)] = 256 << 10
    #: Bytes of one router's summary of its traffic: 30 datacenters' histograms in full.
    traffic_bytes_max: Annotated[int, Field(ge=1024, le=1 << 20)] = 128 << 10
    #: Routers whose traffic the planner adds up; of more, those whose summaries end first are left out.
    routers_max: Annotated[int, Field(ge=1, le=4096)] = 64
    #: Connections one process may open; a request path needs one at a time and commands pipeline.
    connections_max: Annotated[int, Field(ge=1, le=1000)] = 16


#: Sums of decimal fractions are compared with this tolerance.
_ROUNDING = 1e-9


class HeartbeatConfig(Section):
    """Liveness of workers; interval + timeout <= ttl / 3, so one slow call evicts nobody."""

    interval_s: PositiveSeconds = 1.0
    timeout_s: PositiveSeconds = 0.5
    ttl_s: PositiveSeconds = 5.0

    @model_validator(mode="after")
    def _one_slow_beat_is_no_death(self) -> Self:
        if 3 * (self.interval_s + self.timeout_s) > self.ttl_s * (1 + _ROUNDING):
            raise ValueError(
                f"interval_s + timeout_s = {self.interval_s + self.timeout_s:g} must be at most "
                f"ttl_s / 3 = {self.ttl_s / 3:g}, or one slow heartbeat evicts a live worker"
            )
        return self

    @property
    def silent_s(self) -> float:
        """
        Silence that makes a worker suspect: 2 s by default, 4/9 of the time to live at most.

        A third more than the longest time between two beats that were both taken in time.
        """
        return (self.interval_s + self.timeout_s) * 4 / 3


class KvConfig(Section):
    """The KV path."""

    #: Length of a lease from its last renewal; covers a stopped reader, not a slow link.
    lease_s: PositiveSeconds = 30.0
    #: And while nobody reads: before the first reader came, and after the last one left without a
    #: release. A decode worker asks at once, so what waits for longer has lost its router.
    unread_lease_s: PositiveSeconds = 5.0
    #: The reader renews this often while it transfers.
    renew_interval_s: PositiveSeconds = 5.0
    #: TCP connections of one transfer, at least; more where the link's rate times its round trip needs
    #: them.
    connections: Annotated[int, Field(ge=1, le=64)] = 2
    #: Connect and handshake; two WAN round trips and a lost packet.
    connect_timeout_s: PositiveSeconds = 2.0
    #: No byte for this long, although the owner said it computes: the peer or the link is gone.
    stall_timeout_s: PositiveSeconds = 5.0
    #: Bytes of finished segments a worker holds for readers before it refuses new jobs.
    segment_bytes_max: Annotated[int, Field(ge=1 << 20)] = 1 << 30
    #: Part of a link's budget a sender may use while the store is away, shared by nobody.
    floor_share: Annotated[float, Field(gt=0, le=1)] = 0.25

    @model_validator(mode="after")
    def _renewals_come_in_time(self) -> Self:
        if self.renew_interval_s > self.lease_s / 2:
            raise ValueError(
                f"renew_interval_s = {self.renew_interval_s:g} must be at most half of lease_s = "
                f"{self.lease_s:g}, or one late renewal loses the lease"
            )
        return self


class LimitsConfig(Section):
    """Bounds of one router."""

    #: Body of a request; a prompt of 131,072 token ids as JSON is 0.9 MB.
    body_bytes_max: Annotated[int, Field(ge=1024, le=1 << 30)] = 32 << 20
    #: Bytes of a body for each token of the longest context; a body beyond that holds no prompt
    #: that any model here takes. English needs 4 a token, escaped text 6, ids one to a line 13.
    body_bytes_per_token: Annotated[int, Field(ge=8, le=4096)] = 16
    #: Bodies over this are parsed and hashed off the event loop (22 ms for 1 MB of ids).
    inline_body_bytes_max: Annotated[int, Field(ge=0)] = 64 << 10
    #: Requests that run at once in this router, and never more than its decode workers take.
    requests_max: Annotated[int, Field(ge=1, le=100_000)] = 1024
    #: Requests beyond them that wait, shared fairly by tenants; one more is shed with 429. A
    #: waiting request costs a connection and its prompt, 4 bytes a token at most.
    queue_requests_max: Annotated[int, Field(ge=0, le=100_000)] = 512
    #: Nobody waits longer for a place: a client would rather be told early and go elsewhere.
    queue_wait_s: PositiveSeconds = 10.0
    #: A refused client is never asked to wait longer than this.
    retry_after_max_s: Annotated[float, Field(ge=2, le=3600)] = 30.0
    #: Seconds for a whole request, unless it asks for less.
    request_timeout_s: PositiveSeconds = 300.0
    #: A prefill worker answers a job at once with a location.
    prefill_accept_timeout_s: PositiveSeconds = 1.5
    #: No frame from a decode worker for this long while it waits for KV or computes: it is lost.
    decode_idle_timeout_s: PositiveSeconds = 4.0
    #: A worker says at once where a cached prefix can be copied from; without an answer the prefill
    #: computes it.
    prefix_ask_timeout_s: PositiveSeconds = 0.5
    #: A decode worker with nothing to say yet says that it is alive.
    alive_interval_s: PositiveSeconds = 1.0
    #: No token for this long in the middle of a stream, however alive the worker says it is: its
    #: engine hangs. Twice the longest gap that a full batch beside a long prefill makes.
    token_idle_timeout_s: PositiveSeconds = 10.0
    #: Connecting to a worker.
    connect_timeout_s: PositiveSeconds = 1.0
    #: A client that reads nothing for this long has gone.
    client_write_timeout_s: PositiveSeconds = 30.0
    #: The body of a request must have arrived within this.
    body_timeout_s: PositiveSeconds = 30.0
    #: The head of a request must have arrived within this, from its first byte or, for the first
    #: of a connection, from when that was made.
    header_timeout_s: PositiveSeconds = 5.0
    #: A connection without a request is kept this long; longer than usual proxies keep theirs, so
    #: that they close it and not we in the face of their next request.
    keepalive_timeout_s: PositiveSeconds = 75.0
    #: Client connections at a time; each holds a file descriptor and about 20 KB.
    connections_max: Annotated[int, Field(ge=1, le=1_000_000)] = 8192
    #: And of one address. A proxy is one address: lower it only where clients come directly.
    peer_connections_max: Annotated[int, Field(ge=1, le=1_000_000)] = 4096
    #: Bytes of an answer that wait for a client to read; beyond them its worker's stream waits.
    client_buffer_bytes: Annotated[int, Field(ge=1024, le=16 << 20)] = 64 << 10
    #: Further attempts after the first decision failed (a worker lost, a refused reservation).
    redispatch_max: Annotated[int, Field(ge=0, le=10)] = 2
    #: How often a stream may go on at another decode worker; each time with fresh attempts.
    migrations_max: Annotated[int, Field(ge=0, le=10)] = 3
    #: Further attempts that may run at the same time, as a part of the requests in flight, so
    #: that a failure of many requests does not become a storm of twice as many.
    retry_share: Annotated[float, Field(gt=0, le=1)] = 0.2
    #: And at least so many, or a quiet router could not retry at all.
    retry_floor: Annotated[int, Field(ge=1, le=1000)] = 3
    #: Pause before workers that have all failed a request are tried again; +- 50 %.
    retry_pause_s: PositiveSeconds = 0.5
    #: An attempt beyond them waits its turn for so long before the request fails.
    retry_wait_s: PositiveSeconds = 30.0
    #: Requests with a common uncached prefix of so many tokens wait for the first of them to have
    #: computed it. Shorter ones are computed faster than waited for.
    coalesce_tokens_min: Annotated[int, Field(ge=1)] = 512
    #: Requests that wait for others' prefixes; one more computes its own.
    coalesce_waiters_max: Annotated[int, Field(ge=0, le=100_000)] = 1024
    #: Nobody waits longer for another request's prefill.
    coalesce_wait_s: PositiveSeconds = 30.0
    #: A finished prefill is told of for so long, until its worker's own heartbeats do.
    coalesce_hint_s: PositiveSeconds = 3.0
    #: A reservation that nobody releases, because its router died, ends after this. It bridges the
    #: time until the worker's own heartbeats count the request, not the whole request.
    reservation_ttl_s: PositiveSeconds = 15.0
    #: Different worker lives that a request may have ended before it is refused.
    quarantine_deaths: Annotated[int, Field(ge=1, le=10)] = 2
    #: Deaths are counted, and a refusal lasts, for so long.
    quarantine_s: PositiveSeconds = 300.0
    #: A claim of an idempotency key outlives its router by this.
    key_ttl_s: PositiveSeconds = 6.0
    #: A used key stands for its request for so long.
    key_keep_s: PositiveSeconds = 600.0
    #: A worker that failed a request gets no new ones from this router for so long.
    suspect_s: PositiveSeconds = 2.0
    #: A router that leaves answers on idle connections for so long, that it leaves, before it closes
    #: them: a request may be on its way, and load balancers look at readiness about once a second.
    leave_grace_s: PositiveSeconds = 1.0
    #: Open requests get this long to finish after SIGTERM.
    drain_s: PositiveSeconds = 28.0
    #: Decision records in the router's memory, for the admin API without the store.
    recent_decisions: Annotated[int, Field(ge=1, le=100_000)] = 1000
    #: Finished records waiting for the store; the oldest are dropped and counted beyond that.
    pending_records_max: Annotated[int, Field(ge=1, le=100_000)] = 4096

    @model_validator(mode="after")
    def _life_is_heard_in_time(self) -> Self:
        if self.alive_interval_s > self.decode_idle_timeout_s / 2:
            raise ValueError(
                f"alive_interval_s = {self.alive_interval_s:g} must be at most half of "
                f"decode_idle_timeout_s = {self.decode_idle_timeout_s:g}, or a worker that computes "
                "is taken for one that hangs"
            )
        return self


class RouterConfig(Section):
    """One router process."""

    host: str = "127.0.0.1"
    port: Port = 8000
    admin_host: str = "127.0.0.1"
    admin_port: Port = 8001
    #: Routers that `prfaas up` starts, on `port`, `port + 1` and so on, and `admin_port` likewise.
    replicas: Annotated[int, Field(ge=1, le=16)] = 1
    #: The datacenter it stands in: decode stays near it.
    datacenter: SiteName
    #: A name from the entry-point group `prfaas.policies`.
    policy: str = "prfaas"
    #: Checked by the policy's own model at start.
    policy_parameters: dict[str, Any] = Field(default_factory=dict)
    #: Secret mixed into prefix hashes; sharing ends where salts differ.
    tenant_salt: str = "local"

    def at(self, *, port: int | None = None, admin_port: int | None = None) -> Self:
        """The same router on other ports."""
        ports = {"port": port, "admin_port": admin_port}
        return self.model_copy(update={k: v for k, v in ports.items() if v is not None})

    def each(self) -> tuple[Self, ...]:
        """Every replica, with its own ports."""
        return tuple(
            self.at(port=self.port + number, admin_port=self.admin_port + number)
            for number in range(self.replicas)
        )

    @model_validator(mode="after")
    def _ports_are_apart(self) -> Self:
        more = self.replicas - 1
        if more and (self.port == 0 or self.admin_port == 0):
            raise ValueError("several replicas need known ports, and a port is 0")
        if max(self.port, self.admin_port) + more > _PORT_MAX:
            raise ValueError(f"{self.replicas} replicas need ports up to {_PORT_MAX} at most")
        if more and self.host == self.admin_host and abs(self.port - self.admin_port) <= more:
            raise ValueError(
                f"port = {self.port} and admin_port = {self.admin_port} must be "
                f"{self.replicas} apart, or the ports of {self.replicas} replicas overlap"
            )
        return self


class DatacenterConfig(Section):
    """A site with workers inside one fast network."""

    name: SiteName
    prefill_workers: Annotated[int, Field(ge=0, le=64)] = 0
    decode_workers: Annotated[int, Field(ge=0, le=64)] = 0
    #: Its workers change their role, or lend a share of their time, when the planner asks them to.
    convertible: bool = False
    #: Address that workers listen on and are reached at.
    host: str = "127.0.0.1"
    #: Engine servers that `prfaas up` starts an agent for, instead of workers: base URLs, or tables.
    prefill_servers: Annotated[tuple[EngineServer, ...], Field(max_length=64)] = ()
    decode_servers: Annotated[tuple[EngineServer, ...], Field(max_length=64)] = ()

    @model_validator(mode="before")
    @classmethod
    def _one_agent_a_server(cls, values: Any) -> Any:  # noqa: ANN401 - whatever a file says
        if not isinstance(values, dict):
            return values
        for role in ("prefill", "decode"):
            servers = values.get(f"{role}_servers")
            if isinstance(servers, list | tuple) and servers:
                count = values.setdefault(f"{role}_workers", len(servers))
                if count != len(servers):
                    raise ValueError(
                        f"{role}_workers = {count}, but there are {len(servers)} {role}_servers: "
                        "leave the number out"
                    )
        return values


class FleetConfig(Section):
    """A whole fleet, as `prfaas up --fleet FILE` reads it."""

    name: SiteName = "local"
    router: RouterConfig
    model: ModelConfig = ModelConfig()
    datacenters: Annotated[tuple[DatacenterConfig, ...], Field(min_length=1, max_length=64)]
    links: tuple[LinkConfig, ...] = ()
    #: Tenants whose prompts and KV may not be everywhere.
    tenants: Annotated[tuple[TenantConfig, ...], Field(max_length=10_000)] = ()
    limits: LimitsConfig = LimitsConfig()
    store: StoreConfig = StoreConfig()
    heartbeat: HeartbeatConfig = HeartbeatConfig()
    health: HealthConfig = HealthConfig()
    planner: PlannerConfig = PlannerConfig()
    kv: KvConfig = KvConfig()
    worker: WorkerConfig = WorkerConfig()

    @model_validator(mode="after")
    def _names_fit_together(self) -> Self:
        names = [site.name for site in self.datacenters]
        check_names(names, self.links)
        if self.router.datacenter not in names:
            raise ValueError(f"router.datacenter {self.router.datacenter!r} is not one of {names}")
        return self

    @model_validator(mode="after")
    def _servers_have_an_engine(self) -> Self:
        for site in self.datacenters:
            if not self.model.is_served and (site.prefill_servers or site.decode_servers):
                raise ValueError(
                    f"datacenter {site.name!r} has prefill_servers or decode_servers: they are for "
                    f'model.engine = "vllm" or "sglang", not {self.model.engine!r}'
                )
        return self

    @model_validator(mode="after")
    def _tenants_have_places(self) -> Self:
        sites = [site.name for site in self.datacenters]
        seen: set[str] = set()
        for tenant in self.tenants:
            unknown = sorted(set(tenant.datacenters) - set(sites))
            if unknown:
                raise ValueError(
                    f"tenant {tenant.name!r} names {unknown}, which are not in {sites}"
                )
            marks = {
                f"name {tenant.name!r}",
                *(f"token {one[:8]}..." for one in tenant.tokens_sha256),
            }
            if marks & seen:
                raise ValueError(f"tenants: {', '.join(sorted(marks & seen))} is there twice")
            seen |= marks
        return self

    @model_validator(mode="after")
    def _can_answer(self) -> Self:
        if not any(site.decode_workers for site in self.datacenters):
            raise ValueError("no datacenter has decode_workers: nothing could answer a request")
        if not any(site.prefill_workers for site in self.datacenters):
            raise ValueError("no datacenter has prefill_workers: nothing could start a request")
        return self

    def link(self, link_id: str) -> LinkConfig | None:
        """The link of this name."""
        return next((link for link in self.links if link.link_id == link_id), None)

    def datacenter(self, name: str) -> DatacenterConfig | None:
        """The datacenter of this name."""
        return next((site for site in self.datacenters if site.name == name), None)


class Environment(BaseSettings):
    """What differs between machines and does not belong into a fleet file."""

    model_config = SettingsConfigDict(env_prefix="PRFAAS_", extra="ignore")

    #: One server, seeds of a cluster, or sentinels, as `controlplane/store/urls.py` says; empty for
    #: the embedded server.
    redis_url: str = Field(default="", validation_alias="REDIS_URL")
    #: Bearer token of the engine servers, where they were started with one.
    engine_api_key: str = ""
    #: "console" for people, "json" for machines.
    log_format: Literal["console", "json"] = "json"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    #: Where routers keep, from one life to the next, where workers were: for a start without Redis.
    state_dir: Path | None = None

    @field_validator("redis_url")
    @classmethod
    def _usable_url(cls, value: str) -> str:
        if value:
            try:
                parse_store_url(value)
            except ConfigError as error:
                raise ValueError(error.message) from error
        return value


#: What `make up` starts: long prompts of the user's site west are prefilled in east.
DEFAULT_FLEET = FleetConfig(
    name="local",
    router=RouterConfig(datacenter="west", policy_parameters={"threshold_tokens": 512}),
    datacenters=(
        DatacenterConfig(name="east", prefill_workers=2),
        DatacenterConfig(name="west", prefill_workers=1, decode_workers=2),
    ),
    links=(
        LinkConfig(
            from_datacenter="east",
            to_datacenter="west",
            capacity_mbit_per_s=200,
            emulated_delay_ms=20,
        ),
    ),
)


def load_fleet(path: Path) -> FleetConfig:
    """
    Read and check a fleet file.

    Raises:
        ConfigError: Not readable, not TOML, or a field is wrong; names file, field, what was
            found and what was expected.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read fleet file {path}: {error}") from error
    try:
        return FleetConfig.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    except ValidationError as error:
        raise ConfigError(f"{path}: {describe_validation(error)}") from error


_SECRETS = {"tenant_salt", "engine_api_key", "PRFAAS_ENGINE_API_KEY", "redis_url", "REDIS_URL"}


def describe_validation(error: ValidationError) -> str:
    """All complaints of a validation as `field: what is wrong (got ...)`, without links."""
    complaints = []
    for item in error.errors(include_url=False):
        field = ".".join(str(part) for part in item["loc"]) or "the file as a whole"
        found = item["input"]
        # The value of a key that nobody knows, or of an address with a password, may be a secret.
        is_shown = isinstance(found, str | int | float) and item["type"] != "extra_forbidden"
        got = f" (got {found!r})" if is_shown and not _SECRETS & set(item["loc"]) else ""
        complaints.append(f"{field}: {item['msg']}{got}")
    return "; ".join(complaints)
