"""Everything under test: Redis, routers and workers, with the fault proxy between them."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, Self

import aiohttp
from redis.asyncio import Redis
from redis_servers import Guarded, a_guarded_master

from chaos.processes import TESTS, Child, Command, Events, Helper
from chaos.versions import Version, as_previous, unpack_previous
from controlplane.config import (
    DatacenterConfig,
    FleetConfig,
    KvConfig,
    LimitsConfig,
    LinkConfig,
    ModelConfig,
    RouterConfig,
)
from controlplane.store.embedded import find_server

HOST: Final = "127.0.0.1"
HOME: Final = "west"
FAR: Final = "east"
#: As a supervisor that backs off a little.
RESTART_S: Final = 1.0
_READY_S: Final = 90.0
_CLI: Final = "controlplane.cli"
_POLL_S: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """What to start."""

    routers: int = 2
    far_prefill: int = 2
    home_prefill: int = 2
    decode: int = 4
    model: ModelConfig = field(
        default_factory=lambda: ModelConfig(
            layers=4, context_tokens_max=2048, cache_tokens_max=8192
        )
    )
    #: Sections of the fleet file.
    limits: LimitsConfig = field(default_factory=lambda: LimitsConfig(request_timeout_s=55.0))
    kv: KvConfig = field(default_factory=KvConfig)
    #: Workers whose engine dies or hangs on a marker in a prompt.
    has_chaos_engine: bool = False
    #: A master with a replica and three sentinels, past the proxy, instead of one server behind it.
    has_sentinels: bool = False
    #: A second server that copies the first one until somebody splits them.
    has_second_redis: bool = False
    #: Megabits per second from the far datacenter.
    link_mbit_per_s: float = 200
    #: All processes begin as the version before this one.
    is_old: bool = False

    def fleet(self) -> FleetConfig:
        """The fleet file of it; ports of routers are set for each of them."""
        return FleetConfig(
            name="chaos",
            router=RouterConfig(
                datacenter=HOME,
                policy_parameters={"threshold_tokens": 96, "follows_plan": False},
            ),
            model=self.model,
            datacenters=(
                DatacenterConfig(name=FAR, prefill_workers=self.far_prefill),
                DatacenterConfig(
                    name=HOME, prefill_workers=self.home_prefill, decode_workers=self.decode
                ),
            ),
            links=(
                LinkConfig(
                    from_datacenter=FAR,
                    to_datacenter=HOME,
                    capacity_mbit_per_s=self.link_mbit_per_s,
                ),
            ),
            limits=self.limits,
            kv=self.kv,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a router listens."""

    url: str
    admin_url: str


class Plant:
    """
    Two datacenters on one machine.

    Links of the proxy: `redis-<router>` for each router; `redis-home-<half>` and `redis-far-<half>`
    for workers, whose numbers are even in half 0 and odd in half 1; `http-<worker>` and `kv-<worker>` for each
    worker of the far datacenter.
    """

    def __init__(self, topology: Topology, directory: Path, *, seed: int) -> None:
        self.topology = topology
        self.directory = directory
        self.fleet = topology.fleet()
        self.events = Events()
        self.proxy = Helper("chaos.proxy", str(seed))
        self.children: dict[str, Child] = {}
        self.routers: dict[str, Address] = {}
        self.worker_ports: dict[str, int] = {}
        self.redis_port = free_port()
        self.second_redis_port = free_port()
        #: Ports of the proxy by link.
        self._links: dict[str, int] = {}
        self.guarded: Guarded | None = None
        #: The new version's command of each process that runs the old one now.
        self._new: dict[str, Command] = {}
        self._stack = contextlib.ExitStack()

    @classmethod
    @contextlib.asynccontextmanager
    async def running(
        cls, topology: Topology, directory: Path, *, seed: int
    ) -> AsyncIterator[Self]:
        """A plant for the length of a block, ready for requests."""
        plant = cls(topology, directory, seed=seed)
        try:
            await plant.start()
            await plant.until_whole(_READY_S)
            yield plant
        finally:
            await plant.stop()

    # --- Life ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start everything."""
        (self.directory / "logs").mkdir(parents=True, exist_ok=True)
        await self.proxy.start()
        if self.topology.has_sentinels:
            self.guarded = await asyncio.to_thread(self._stack.enter_context, a_guarded_master())
        else:
            command = self._redis_command("redis", self.redis_port)
            await self._start(command, restart_s=RESTART_S)
            routers = (f"router-{n}" for n in range(self.topology.routers))
            halves = (f"{site}-{half}" for site in ("far", "home") for half in (0, 1))
            for name in (*halves, *routers):
                await self._link(f"redis-{name}", self.redis_port)
            if self.topology.has_second_redis:
                copies = ("--replicaof", HOST, str(self.redis_port))
                command = self._redis_command("redis-b", self.second_redis_port, *copies)
                await self._start(command, restart_s=RESTART_S)
        for number in range(self.topology.routers):
            await self._start_router(f"router-{number}")
        for site, role, count in (
            (FAR, "prefill", self.topology.far_prefill),
            (HOME, "prefill", self.topology.home_prefill),
            (HOME, "decode", self.topology.decode),
        ):
            for number in range(count):
                await self.start_worker(site, role, f"{role}-{number}")  # type: ignore[arg-type]

    async def stop(self) -> None:
        """End everything: routers first, Redis last."""
        routers = [child for child in self.children.values() if child.name.startswith("router")]
        workers = [child for child in self.children.values() if "/" in child.name]
        await asyncio.gather(*(child.stop() for child in routers))
        await asyncio.gather(*(child.stop() for child in workers))
        for name in ("redis-b", "redis"):
            if name in self.children:
                await self.children[name].stop()
        await self.proxy.stop()
        await asyncio.to_thread(self._stack.close)

    async def start_worker(
        self,
        site: str,
        role: Literal["prefill", "decode"],
        name: str,
        *,
        fleet: FleetConfig | None = None,
    ) -> Child:
        """Start a worker; one of another fleet file if given."""
        port, kv_port, worker_id = free_port(), free_port(), f"{site}/{name}"
        arguments = ["--datacenter", site, "--role", role, "--name", name]
        arguments += ["--port", str(port), "--kv-port", str(kv_port)]
        if site == FAR:
            advertised = await self._link(f"http-{site}-{name}", port)
            advertised_kv = await self._link(f"kv-{site}-{name}", kv_port)
            arguments += ["--advertise", f"{HOST}:{advertised}"]
            arguments += ["--advertise-kv", f"{HOST}:{advertised_kv}"]
        redis = self._redis_url(f"{'far' if site == FAR else 'home'}-{half_of(name)}")
        module = "chaos_worker" if self.topology.has_chaos_engine else _CLI
        command = self._command(worker_id, "worker", arguments, fleet or self.fleet, redis, module)
        self.worker_ports[worker_id] = port
        return await self._start(command, restart_s=RESTART_S)

    # --- What is there ------------------------------------------------------------------------

    @property
    def workers(self) -> tuple[str, ...]:
        """Names of all workers of the topology."""
        return tuple(name for name in self.children if "/" in name)

    async def dismiss_worker(self, worker_id: str) -> None:
        """End a worker for good; nobody waits for it any more."""
        await self.children.pop(worker_id).stop()
        del self.worker_ports[worker_id]

    async def set_version(self, name: str, version: Version) -> None:
        """Let a process be of this version from its next life on."""
        child = self.children[name]
        if version == "new":
            child.command = self._new.pop(name, child.command)
        elif name not in self._new:
            self._new[name] = child.command
            child.command = await self._as_old(child.command)

    def redis(self) -> Redis:
        """A client of one's own, past the proxy; of the present master."""
        port = self.redis_port
        if self.guarded is not None:
            servers = (self.guarded.master, self.guarded.replica)
            port = next(one.port for one in servers if one.is_up() and one.role() == "master")
        return Redis(host=HOST, port=port, socket_timeout=2.0)

    async def until_whole(self, within_s: float) -> float:
        """
        Wait until every router sees every worker and the store; seconds it took.

        Raises:
            TimeoutError: It did not become so.
        """
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        expected = (self.topology.far_prefill + self.topology.home_prefill, self.topology.decode)
        async with asyncio.timeout(within_s), short_session() as session:
            for address in self.routers.values():
                while not await _is_whole(session, address.url, expected):  # noqa: ASYNC110 - asked over HTTP
                    await asyncio.sleep(_POLL_S)
        return loop.time() - began_s

    # --- Inside -------------------------------------------------------------------------------

    def _redis_url(self, who: str) -> str:
        if self.guarded is not None:
            return self.guarded.url
        return f"redis://{HOST}:{self._links[f'redis-{who}']}/0"

    async def _link(self, name: str, port: int) -> int:
        answer = await self.proxy.ask({"op": "listen", "link": name, "target": [HOST, port]})
        self._links[name] = answer["port"]
        return self._links[name]

    async def _as_old(self, command: Command) -> Command:
        root = await asyncio.to_thread(unpack_previous, self.directory / "previous")
        return as_previous(command, root)

    async def _start(self, command: Command, *, restart_s: float) -> Child:
        log = self.directory / "logs" / f"{command.name.replace('/', '-')}.log"
        if self.topology.is_old and command.first_line:
            self._new[command.name] = command
            command = await self._as_old(command)
        child = Child(command, log, self.events.tell, restart_s=restart_s)
        self.children[command.name] = child
        await child.start()
        return child

    async def _start_router(self, name: str) -> None:
        port, admin_port = free_port(), free_port()
        router = self.fleet.router.model_copy(update={"port": port, "admin_port": admin_port})
        fleet = self.fleet.model_copy(update={"router": router})
        self.routers[name] = Address(
            url=f"http://{HOST}:{port}", admin_url=f"http://{HOST}:{admin_port}"
        )
        command = self._command(name, "router", [], fleet, self._redis_url(name), _CLI)
        await self._start(command, restart_s=RESTART_S)

    def _command(
        self, name: str, kind: str, arguments: list[str], fleet: FleetConfig, url: str, module: str
    ) -> Command:
        return Command(
            name=name,
            argv=(sys.executable, "-m", module, kind, *arguments, "--supervised"),
            first_line=fleet.model_dump_json().encode() + b"\n",
            environment={
                "REDIS_URL": url,
                "PRFAAS_LOG_FORMAT": "json",
                "PRFAAS_STATE_DIR": str(self.directory / "state" / name.replace("/", "-")),
                "OPENBLAS_NUM_THREADS": "1",
                "PYTHONPATH": str(TESTS),
            },
        )

    def _redis_command(self, name: str, port: int, *more: str) -> Command:
        folder = self.directory / name
        folder.mkdir(parents=True, exist_ok=True)
        options = ["--port", str(port), "--bind", HOST, "--save", "", "--appendonly", "no"]
        options += ["--dir", str(folder), *more]
        options += ["--logfile", str(self.directory / "logs" / f"valkey-{name}.log")]
        return Command(name=name, argv=(str(find_server()), *options))


async def _is_whole(session: aiohttp.ClientSession, url: str, expected: tuple[int, int]) -> bool:
    with contextlib.suppress(aiohttp.ClientError, TimeoutError, ValueError):
        async with session.get(f"{url}/ready") as response:
            said = await response.json()
        seen = (said.get("prefill_workers"), said.get("decode_workers"))
        return seen == expected and said.get("store") == "ok"
    return False


def half_of(name: str) -> int:
    """Which half of the fleet a process is in: 0, or 1 if its number is odd."""
    number = name.rpartition("-")[2]
    return int(number) % 2 if number.isdigit() else 0


def short_session() -> aiohttp.ClientSession:
    """A session for questions that are answered at once or not at all."""
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2.0))


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


SIGNALS: Final = {
    "kill": signal.SIGKILL,
    "term": signal.SIGTERM,
    "stop": signal.SIGSTOP,
    "cont": signal.SIGCONT,
}
