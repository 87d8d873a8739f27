"""What all flights of a router share: view, policy, store, workers, records and their counters."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Protocol

from controlplane.config import LimitsConfig
from controlplane.domain.cluster import recorded
from controlplane.domain.decision import Decision, RequestFeatures
from controlplane.domain.health import Outcome
from controlplane.domain.prefix import BlockHash
from controlplane.domain.prefix_hits import Hits, with_hit
from controlplane.errors import StoreError
from controlplane.observe.logs import get_logger
from controlplane.observe.metrics import RouterMetrics
from controlplane.router.asking import FALLBACK, NamedPolicy, PolicyFault, ask, stand_in
from controlplane.router.coalescing import Coalescing
from controlplane.router.keys import KeyKeeper
from controlplane.router.quarantine import Quarantine
from controlplane.router.recorder import Recorder
from controlplane.router.records import Attempt, DecisionRecord
from controlplane.router.retry_budget import RetryBudget
from controlplane.router.shadows import Question, Shadows
from controlplane.router.view import ViewTracker
from controlplane.router.workers import WorkerClient
from controlplane.store.api import Blamed, StateStore
from controlplane.wire import Reservation
from policies.api import Policy

_log = get_logger()

#: Errands under way at the same time; more aborts are left to the workers' leases.
_ERRANDS_MAX = 1024


class TrafficObserver(Protocol):
    """Whoever wants to know of every request; it must not raise, nor take long."""

    def arrived(self) -> None:
        """A request is here."""

    def decided(self, features: RequestFeatures, decision: Decision) -> None:
        """A request was placed, or could not be; only once, when it was first tried."""

    def observe(self, record: DecisionRecord) -> None:
        """A request that had its place is over."""


@dataclass(slots=True, kw_only=True)
class Services:
    """The shared parts, wired once by the composition root."""

    router_id: str
    limits: LimitsConfig
    store: StateStore
    workers: WorkerClient
    tracker: ViewTracker
    recorder: Recorder
    metrics: RouterMetrics
    #: The live policy, and the parameters it was built from.
    policy: Policy
    policy_parameters: Mapping[str, Any]
    clock: Callable[[], float]
    #: Draws the seed of each decision.
    seeds: Random
    #: What a request waits for the store altogether before its work begins, seconds.
    store_wait_s: float
    retry_budget: RetryBudget
    coalescing: Coalescing
    quarantine: Quarantine
    keys: KeyKeeper
    shadows: Shadows
    #: Version of the document that named the policy; 0 for the configuration's.
    policy_version: int = 0
    #: Told of all requests; the planner's meter, where there is a planner.
    traffic: TrafficObserver | None = None
    _errands: set[asyncio.Task[None]] = field(default_factory=set)

    def switch(
        self, live: NamedPolicy, shadows: Sequence[NamedPolicy] = (), *, version: int
    ) -> None:
        """Let another policy decide from now on, and others answer beside it."""
        self.policy, self.policy_parameters = live.policy, live.parameters
        self.policy_version = version
        self.shadows.use(shadows)
        _log.info("policy.loaded", policy=live.policy.name, version=version, count=len(shadows))

    def decide(self, features: RequestFeatures) -> Attempt:
        """Ask the policy, and keep what it was asked."""
        began_s = self.clock()
        view = self.tracker.view()
        seed = self.seeds.getrandbits(32)
        policy, parameters = self.policy, self.policy_parameters
        try:
            decision = ask(policy, features, view, seed)
        except PolicyFault as fault:
            self.metrics.policy_faults_total.labels(policy.name).inc()
            _log.error("policy.failed", policy=policy.name, detail=str(fault))
            decision = stand_in(features, view, seed, fault, policy.name)
            policy, parameters = FALLBACK.policy, FALLBACK.parameters
        self.metrics.decision_seconds.observe(self.clock() - began_s)
        self.shadows.watch(Question(features, view, seed, decision))
        if self.traffic is not None and not (features.excluded or features.resumed_tokens):
            self.traffic.decided(features, decision)
        view_age_s = self.tracker.age_s()
        self.metrics.decision_view_age_seconds.observe(view_age_s)
        is_offloaded = decision.placement is not None and decision.placement.is_offloaded
        self.metrics.decisions(policy.name, decision.reason, "yes" if is_offloaded else "no").inc()
        for plugin, failures in decision.plugin_failures.items():
            self.metrics.plugin_failures_total.labels(plugin).inc(failures)
        is_whole = view.is_kept_whole
        # Of a small view the whole is kept, and whom the decision names is not asked: nobody needs to
        # know before the record is written.
        named = () if is_whole else decision.named_workers
        return Attempt(
            policy=policy.name,
            parameters=parameters,
            policy_version=self.policy_version,
            seed=seed,
            features=features if is_whole else features.recorded(named),
            view=view if is_whole else recorded(view, named),
            view_age_s=view_age_s,
            decision=decision,
        )

    def hits(self, hashes: tuple[BlockHash, ...], *, block_tokens: int) -> Hits:
        """Who holds what of a prompt: what workers have said, and what this router knows."""
        hits = self.tracker.match(hashes, block_tokens=block_tokens)
        for worker_id, hint in self.coalescing.hints(hashes, block_tokens=block_tokens).items():
            hit = hits.get(worker_id)
            if hit is None or hit.resumable_tokens < hint.resumable_tokens:
                hits = with_hit(hits, worker_id, hint)
        return hits

    def outcome(self, worker_id: str, incarnation: str, kind: Outcome) -> None:
        """What a worker did with an attempt."""
        self.tracker.outcome(worker_id, incarnation, kind)

    def blame(self, digest: str, worker_id: str, incarnation: str, *, exposure_s: float) -> None:
        """A request ended a worker: count it here, and tell the other routers behind the request."""
        self.quarantine.blame(digest, incarnation, exposure_s)
        _log.warning("request.blamed", worker=worker_id, incarnation=incarnation)
        self._behind(self._tell_of_blame(Blamed(digest, worker_id, incarnation)))

    async def _tell_of_blame(self, blamed: Blamed) -> None:
        try:
            await self.store.blame(blamed)
        except StoreError:
            # The others will find out themselves.
            self.metrics.store_errors_total.labels("blame").inc()

    def migrated(
        self, request_id: str, cause: str, attempt: int, *, worker: str, tokens: int
    ) -> None:
        """A stream goes on at another decode worker."""
        self.metrics.migrations_total.labels(cause).inc()
        _log.warning(
            "request.migrated",
            request_id=request_id,
            cause=cause,
            attempt=attempt,
            from_worker=worker,
            tokens_kept=tokens,
        )

    def redispatched(self, request_id: str, cause: str, attempt: int) -> None:
        """A request goes on elsewhere."""
        self.metrics.retries_total.labels(cause).inc()
        _log.warning("request.redispatched", request_id=request_id, cause=cause, attempt=attempt)

    def abort_prefill(self, url: str, job_id: str) -> None:
        """Tell a prefill worker to stop, without waiting for it."""
        self._behind(self.workers.abort_prefill(url, job_id))

    async def settle(self) -> None:
        """Wait for what goes on behind requests; each is bounded by its own timeout."""
        await self.keys.settle()
        if self._errands:
            await asyncio.wait(tuple(self._errands))

    def _behind(self, errand: Coroutine[Any, Any, None]) -> None:
        """Run something that no request waits for."""
        if len(self._errands) >= _ERRANDS_MAX:
            errand.close()
            return
        task = asyncio.get_running_loop().create_task(errand)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    def finished(self, record: DecisionRecord, reservation: Reservation | None) -> None:
        """A request is over: one record, one log line, its metrics."""
        record = self._with_shadows(record)
        self.recorder.add(record, reservation)
        self._measure(record)
        if self.traffic is not None:
            self.traffic.observe(record)
        if _log.is_enabled_for(logging.INFO):
            _log.info("request.finished", **_canonical_line(record))

    def _with_shadows(self, record: DecisionRecord) -> DecisionRecord:
        """The record with what shadows have answered to its decisions so far."""
        if not self.shadows.policies:
            return record
        attempts = [
            replace(
                attempt, shadows=self.shadows.answers(attempt.features.request_id, attempt.seed)
            )
            for attempt in record.attempts
        ]
        return replace(record, attempts=tuple(attempts))

    def _measure(self, record: DecisionRecord) -> None:
        metrics, timeline = self.metrics, record.timeline
        metrics.requests(record.outcome, record.code).inc()
        metrics.duration_seconds.observe(timeline.finished_s)
        placement = record.attempts[-1].decision.placement if record.attempts else None
        if placement is None or timeline.first_token_s is None:
            return
        offloaded = "yes" if placement.is_offloaded else "no"
        metrics.ttft(offloaded).observe(timeline.first_token_s)
        if placement.is_offloaded and record.report is not None:
            metrics.kv_egress_bytes_total.labels(
                placement.prefill_datacenter, placement.decode_datacenter
            ).inc(record.report.transfer.bytes)


def _canonical_line(record: DecisionRecord) -> dict[str, Any]:
    """Fields of `request.finished`."""
    line: dict[str, Any] = {
        "request_id": record.request_id,
        "model": record.model,
        "outcome": record.outcome,
        "code": record.code,
        "attempts": len(record.attempts),
        "e2e_s": round(record.timeline.finished_s, 4),
    }
    if record.timeline.first_token_s is not None:
        line["ttft_s"] = round(record.timeline.first_token_s, 4)
    if record.attempts:
        attempt = record.attempts[-1]
        line["input_tokens"] = attempt.features.input_tokens
        line["reason"] = attempt.decision.reason
        placement = attempt.decision.placement
        if placement is not None:
            line["prefill_worker"] = placement.prefill_worker
            line["decode_worker"] = placement.decode_worker
            line["is_offloaded"] = placement.is_offloaded
    if record.report is not None:
        line["cached_tokens"] = record.report.prefill.cached_tokens
        line["output_tokens"] = record.report.output_tokens
        line["egress_bytes"] = record.report.transfer.bytes if line["is_offloaded"] else 0
    return line
