"""What one life of a worker is made of, and how it ends: drained, handed over, gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from controlplane.config import FleetConfig
from controlplane.errors import Draining, WorkerTimeout
from controlplane.observe.logs import get_logger
from workers.agent import Agent
from workers.decode_service import DecodeService
from workers.identity import Identity
from workers.kv.pacing import LinkPacer
from workers.kv.segments import SegmentStore
from workers.kv.server import KvServer
from workers.links import LinkMeters
from workers.metrics import WorkerMetrics
from workers.prefill_service import PrefillService
from workers.prefix_export import PrefixExporter

_log = get_logger()

#: What is left of the drain is looked at so often, seconds.
_DRAIN_POLL_S: Final = 0.05
#: Jobs that are ended get this long to tell their routers, seconds.
_FAREWELL_S: Final = 1.0


@dataclass(slots=True, kw_only=True)
class Parts:
    """What a role has."""

    metrics: WorkerMetrics
    links: LinkMeters
    prefill: PrefillService | None = None
    decode: DecodeService | None = None
    exporter: PrefixExporter | None = None
    kv: KvServer | None = None
    segments: SegmentStore | None = None
    pacers: tuple[LinkPacer, ...] = ()

    def jobs(self) -> int:
        """Requests waiting and running."""
        return sum(service.jobs for service in (self.prefill, self.decode) if service is not None)

    def waiting(self) -> int:
        """Jobs that wait for the engine."""
        waiting = self.prefill.jobs if self.prefill is not None else 0
        return waiting + (self.decode.waiting if self.decode is not None else 0)

    @property
    def is_busy(self) -> bool:
        """Jobs run, or segments wait for their readers."""
        readable = self.segments.readable_segments if self.segments is not None else 0
        return self.jobs() > 0 or readable > 0

    def take_nothing_new(self) -> None:
        """Refuse jobs and exports from now on."""
        for service in (self.prefill, self.decode, self.exporter):
            if service is not None:
                service.is_draining = True


def requests_max(fleet: FleetConfig, identity: Identity) -> int:
    """Requests that a worker takes, running ones included."""
    running = fleet.model.decode_slots if identity.role == "decode" else 1
    return running + fleet.model.queue_requests_max


async def drain(parts: Parts, agent: Agent, *, drain_s: float) -> None:
    """Take no new jobs, tell the routers, let jobs end for a while, move the rest, say goodbye."""
    parts.take_nothing_new()
    await agent.drain()
    await _until(lambda: not parts.is_busy, drain_s)
    if parts.decode is not None and parts.decode.jobs:
        parts.decode.end_jobs(lambda: Draining("this worker leaves before the answer is complete"))
        await _until(lambda: not parts.is_busy, _FAREWELL_S)
    if parts.segments is not None and parts.kv is not None and parts.is_busy:
        # A reader that is cut off would take this for a death, and its request for the cause.
        reason = Draining("this worker leaves before its KV was read")
        if parts.prefill is not None:
            parts.prefill.hand_over(reason)
        parts.segments.abort_all(f"{reason.code}: {reason.message}")
        await _until(partial(_has_no_reader, parts.kv), _FAREWELL_S)
    await agent.leave()


def engine_changed(parts: Parts, identity: Identity, is_stalled: bool) -> None:  # noqa: FBT001 - a hook
    """An engine that hangs gets no new jobs, and those it has go elsewhere."""
    if parts.prefill is not None:
        parts.prefill.is_stalled = is_stalled
    if parts.decode is not None:
        parts.decode.is_stalled = is_stalled
    if not is_stalled:
        _log.info("engine.recovered", worker=identity.worker_id)
        return
    _log.error("engine.stalled", worker=identity.worker_id)
    said = "the engine has finished nothing for a while"
    if parts.prefill is not None:
        parts.prefill.end_jobs(WorkerTimeout(said))
    if parts.decode is not None:
        parts.decode.end_jobs(lambda: WorkerTimeout(said))


async def _until(is_done: Callable[[], bool], within_s: float) -> None:
    """Wait until something is true, or for so long."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + within_s
    while not is_done() and loop.time() < deadline_s:  # noqa: ASYNC110 - jobs and leases have no event in common
        await asyncio.sleep(_DRAIN_POLL_S)


def _has_no_reader(kv: KvServer) -> bool:
    return kv.connections == 0
