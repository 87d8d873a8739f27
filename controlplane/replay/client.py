"""How a replayed router speaks with emulated workers: `WorkerClient` without a network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from controlplane.config import LimitsConfig
from controlplane.domain.prefix import BlockHash
from controlplane.domain.tokens import TokenIds
from controlplane.errors import LinkDown, WorkerRefused, WorkerTimeout, WorkerUnreached
from controlplane.replay.decoding import DecodeRun
from controlplane.replay.roles import Registry
from controlplane.replay.worker import Life
from controlplane.wire import (
    DecodeJob,
    KvLocation,
    PrefillJob,
    PrefixAsk,
    RoleChange,
    RoleReply,
)


class ReplayWorkerClient:
    """Jobs for emulated workers, by URL."""

    def __init__(
        self,
        registry: Registry,
        *,
        limits: LimitsConfig,
        hashes: Callable[[str], Sequence[BlockHash]],
        control_rtt_s: Callable[[str], float | None],
    ) -> None:
        """
        Args:
            registry: Workers by URL.
            limits: How long a silent worker is waited for.
            hashes: Block hashes of a request in flight, by its id.
            control_rtt_s: Round trip to a datacenter; None while it cannot be reached.
        """
        self._registry = registry
        self._limits = limits
        self._hashes = hashes
        self._control_rtt_s = control_rtt_s
        #: Who has a prefill, by the id of its job, until its decode has begun.
        self._sources: dict[str, Life] = {}

    def __repr__(self) -> str:
        return f"<ReplayWorkerClient {self._registry!r}>"

    async def prefill(self, url: str, job: PrefillJob, tokens: TokenIds) -> KvLocation:
        """Start a prefill; see the contract."""
        life = await self._reach(url, self._limits.prefill_accept_timeout_s)
        hashes = self._hashes(job.request_id)
        count = len(tokens) - 1
        life.prefill(job.request_id, job.incarnation, count, hashes)
        self._sources[job.request_id] = life
        return life.location

    async def abort_prefill(self, url: str, request_id: str) -> None:
        """Stop a prefill; see the contract."""
        self._sources.pop(request_id, None)
        worker, life = self._registry.find(url)
        (life.prefilling if life is not None else worker.borrowing).abort(request_id)

    async def export_prefix(self, url: str, ask: PrefixAsk, tokens: TokenIds) -> KvLocation | None:
        """No emulated worker says that it can; see the contract."""
        del url, ask, tokens
        return None

    async def change_role(self, url: str, change: RoleChange) -> RoleReply:
        """Ask a worker for another role; see the contract."""
        life = await self._reach(url, self._limits.prefill_accept_timeout_s)
        return self._registry.change(life.worker, change)

    async def has_died(self, url: str, incarnation: str, *, neighbours: Sequence[str] = ()) -> bool:
        """Whether a process life is over; see the contract."""
        del neighbours
        worker, life = self._registry.find(url)
        return not worker.is_alive or life is None or life.incarnation != incarnation

    async def decode(self, url: str, job: DecodeJob, tokens: TokenIds) -> DecodeRun:
        """Start a decode; see the contract."""
        del tokens
        life = await self._reach(url, self._limits.decode_idle_timeout_s)
        stream = life.decode(
            job.incarnation,
            hashes=self._hashes(job.request_id),
            output_tokens=job.sampling.output_tokens_max,
            resumed_tokens=job.resumed_tokens,
        )
        # Prefill and decode of an attempt have one id, which names the segment too.
        source = self._sources.pop(job.request_id, None)
        run = source.prefilling.runs.get(job.request_id) if source is not None else None
        if source is None or run is None:
            stream.failed(LinkDown.code, "the KV's owner is gone")
        else:
            life.worker.fetch(stream, run, source)
        return stream

    async def close(self) -> None:
        """Nothing is open."""

    async def _reach(self, url: str, timeout_s: float) -> Life:
        worker, _ = self._registry.find(url)
        rtt_s = self._control_rtt_s(worker.datacenter)
        if rtt_s is None:
            await asyncio.sleep(timeout_s)
            raise WorkerTimeout("no answer")
        if rtt_s:
            await asyncio.sleep(rtt_s)
        if not worker.is_alive:
            raise WorkerUnreached("nobody listens there")
        _, life = self._registry.find(url)
        if life is None:
            raise WorkerRefused("nothing is lent any more")
        return life
