"""One life of a worker: a worker id in one role, from its registration to its goodbye."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from controlplane.config import FleetConfig
from controlplane.errors import ConfigError
from controlplane.observe.logs import get_logger
from controlplane.store.api import StateStore
from controlplane.tokenizing import Tokenizer
from controlplane.wire import KvAddress, KvLocation, Role, WorkerBeat
from workers.address import WorkerAddress
from workers.agent import Abilities, Agent
from workers.decode_service import DecodeService
from workers.engine import Engine
from workers.identity import Identity
from workers.inventory import SharedInventory
from workers.kv.pacing import LinkPacer
from workers.kv.segment import DropCause, Segment
from workers.kv.segments import SegmentStore
from workers.kv.server import KvServer
from workers.links import LinkMeters
from workers.locations import LocationPublisher
from workers.metrics import WorkerMetrics
from workers.parts import Parts, drain, engine_changed, requests_max
from workers.prefill_service import PrefillService
from workers.prefix_copy import PrefixCopier
from workers.prefix_export import PrefixExporter

_log = get_logger()

#: Tasks of a life get this long to end after they were cancelled, seconds.
_CLOSE_S: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """What all lives of one process share."""

    fleet: FleetConfig
    store: StateStore
    engine: Engine
    tokenizer: Tokenizer
    address: WorkerAddress
    metrics: WorkerMetrics
    #: Sender sides of the links that begin here: one budget for all lives.
    pacers: tuple[LinkPacer, ...]
    inventory: SharedInventory
    #: The engine hangs.
    is_stalled: Callable[[], bool]


class Life:
    """
    Serves under one incarnation. Made in three steps, because each needs the one before.

    Made, it listens for KV and its services can be asked; `start` registers it; `drain` and `close`
    end it.
    """

    def __init__(
        self,
        process: Process,
        identity: Identity,
        abilities: Abilities,
        *,
        links: LinkMeters,
        kv_port: int,
    ) -> None:
        """
        Args:
            process: What it shares.
            identity: Who it is; its role says what it serves.
            abilities: What it can do besides that.
            links: What it measures on links; a successor may go on with them.
            kv_port: Where it listens for KV; 0 finds a port.

        Raises:
            ConfigError: The port cannot be listened on.
        """
        self.identity = identity
        self._process = process
        self._abilities = abilities
        self._publisher = LocationPublisher(process.store, process.metrics)
        self._inventory = process.inventory.reader()
        self._agent: Agent | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.parts = Parts(metrics=process.metrics, links=links, pacers=process.pacers)
        segments = self._serve_kv(kv_port)
        if identity.role == "prefill":
            self.parts.prefill = self._prefill_service(segments)
        else:
            self.parts.decode = self._decode_service()
        if process.engine.spec.can_move_prefixes:
            self.parts.exporter = PrefixExporter(
                process.engine, segments, identity, locate=self._locate
            )
        if process.is_stalled():
            engine_changed(self.parts, identity, is_stalled=True)

    def __repr__(self) -> str:
        return f"<Life {self.identity.worker_id} {self.identity.role}>"

    @property
    def role(self) -> Role:
        """What it serves."""
        return self.identity.role

    @property
    def kv_port(self) -> int:
        """Where it listens for KV."""
        assert self.parts.kv is not None, "every life serves KV"
        return self.parts.kv.port

    def beat(self) -> WorkerBeat:
        """What it says of itself now."""
        assert self._agent is not None, "started"
        return self._agent.current()

    def start(self, url: str, tasks: asyncio.TaskGroup) -> None:
        """
        Register, and keep the registration.

        Args:
            url: Where it is asked for work.
            tasks: Of the process: what fails there ends it.
        """
        process, parts = self._process, self.parts
        self._agent = Agent(
            process.engine,
            self.identity,
            process.store,
            process.metrics,
            heartbeat=process.fleet.heartbeat,
            requests_max=requests_max(process.fleet, self.identity),
            slots=process.fleet.model.decode_slots if self.role == "decode" else 1,
            url=url,
            jobs=parts.jobs,
            links=parts.links,
            is_stalled=process.is_stalled,
            kv=self._kv_address(),
            abilities=self._abilities,
            inventory=self._inventory.take,
        )
        self._tasks = [
            tasks.create_task(self._agent.run(), name=f"heartbeat {self.identity.worker_id}"),
            tasks.create_task(self._publisher.run(), name=f"locations {self.identity.worker_id}"),
        ]
        _log.info(
            "worker.started",
            worker=self.identity.worker_id,
            role=self.role,
            incarnation=self.identity.incarnation,
            url=url,
            kv_port=self.kv_port,
        )

    async def drain(self) -> None:
        """Take nothing new, let jobs end for a while, hand the rest over, say goodbye. Idempotent."""
        if self._agent is not None:
            await drain(self.parts, self._agent, drain_s=self._process.fleet.worker.drain_s)

    async def close(self) -> None:
        """Stop what still runs and free the port. Idempotent."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_CLOSE_S)
        if self.parts.kv is not None:
            await self.parts.kv.close()
        if self.parts.prefill is not None:
            await self.parts.prefill.close()
        self._inventory.close()

    # --- Parts --------------------------------------------------------------------------------

    def _serve_kv(self, kv_port: int) -> SegmentStore:
        process, identity, config = self._process, self.identity, self._process.fleet.kv
        segments = SegmentStore(
            incarnation=identity.incarnation,
            config=config,
            on_drop=self._dropped,
            on_renew=self._renewed,
        )
        kv = KvServer(
            segments,
            worker_id=identity.worker_id,
            datacenter=identity.datacenter,
            pacers=process.pacers,
            config=config,
        )
        host = process.address.host
        try:
            kv.start(host, kv_port)
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {host}:{kv_port} for KV: {error.strerror or error}"
            ) from error
        self.parts.kv, self.parts.segments = kv, segments
        return segments

    def _prefill_service(self, segments: SegmentStore) -> PrefillService:
        process, identity, fleet = self._process, self.identity, self._process.fleet
        copier = None
        if process.engine.spec.can_move_prefixes:
            copier = PrefixCopier(
                process.engine,
                fleet.kv,
                process.metrics,
                self.parts.links,
                datacenter=identity.datacenter,
                copy_s_max=fleet.worker.prefix_copy_s,
            )
        return PrefillService(
            process.engine,
            segments,
            identity,
            process.metrics,
            requests_max=requests_max(fleet, identity),
            locate=self._locate,
            publisher=self._publisher,
            copier=copier,
        )

    def _decode_service(self) -> DecodeService:
        process, fleet = self._process, self._process.fleet
        return DecodeService(
            process.engine,
            self.identity,
            fleet.kv,
            process.metrics,
            requests_max=requests_max(fleet, self.identity),
            links=self.parts.links,
            tokenizer=process.tokenizer,
        )

    def _kv_reached(self) -> tuple[str, int]:
        return self._process.address.reached_kv(self.kv_port)

    def _kv_address(self) -> KvAddress:
        host, port = self._kv_reached()
        return KvAddress(host=host, port=port)

    def _locate(self, segment: Segment) -> KvLocation:
        assert self.parts.kv is not None, "every life serves KV"
        return self.parts.kv.location(segment, *self._kv_reached())

    def _dropped(self, segment: Segment, cause: DropCause) -> None:
        del cause
        if self.parts.prefill is not None:
            self.parts.prefill.dropped(segment)

    def _renewed(self, segment: Segment) -> None:
        if self.parts.prefill is not None:
            self.parts.prefill.renewed(segment)
