"""Composition root of a router process: the only file that knows every class of it."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from random import Random

from controlplane.admin.server import AdminServer
from controlplane.config import FleetConfig
from controlplane.domain.prefix import scope_of
from controlplane.edge.requests import ModelFacts
from controlplane.edge.server import EdgeServer, Readiness
from controlplane.edge.tokenizers import tokenizer_for
from controlplane.errors import ConfigError
from controlplane.observe.logs import get_logger
from controlplane.observe.metrics import RouterMetrics
from controlplane.router.dispatcher import Dispatcher
from controlplane.router.feed import ViewFeed
from controlplane.router.http_workers import HttpWorkerClient
from controlplane.router.recorder import Recorder
from controlplane.router.services import Services
from controlplane.router.view import ViewTracker
from controlplane.serving import background, listen
from controlplane.store.api import StateStore
from policies.registry import PolicyError, load_policy

_log = get_logger()

#: Records that are finished within this time are written together.
_RECORD_GATHER_S = 0.01

#: Threads that parse and hash long bodies off the event loop.
_PARSER_THREADS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningRouter:
    """A router that listens."""

    dispatcher: Dispatcher
    tracker: ViewTracker
    recorder: Recorder
    services: Services
    url: str
    admin_url: str


@asynccontextmanager
async def run_router(fleet: FleetConfig, store: StateStore) -> AsyncIterator[RunningRouter]:
    """
    Start a router, yield it while it listens, drain and stop it.

    Raises:
        ConfigError: The policy or its parameters are wrong, or a port is taken.
    """
    router_id = f"{fleet.router.datacenter}/router-{secrets.token_hex(4)}"
    try:
        policy = load_policy(fleet.router.policy, fleet.router.policy_parameters)
    except PolicyError as error:
        raise ConfigError(f"router.policy: {error}") from error
    tracker = ViewTracker(
        home_datacenter=fleet.router.datacenter,
        links=fleet.links,
        ttl_s=fleet.heartbeat.ttl_s,
        suspect_s=fleet.limits.suspect_s,
        clock=time.monotonic,
    )
    metrics = RouterMetrics()
    recorder = Recorder(
        store,
        metrics,
        recent_max=fleet.limits.recent_decisions,
        pending_max=fleet.limits.pending_records_max,
        gather_s=_RECORD_GATHER_S,
    )
    async with AsyncExitStack() as stack:
        executor = stack.enter_context(ThreadPoolExecutor(_PARSER_THREADS, "parser"))
        workers = HttpWorkerClient(fleet.limits)
        stack.push_async_callback(workers.close)
        services = Services(
            router_id=router_id,
            limits=fleet.limits,
            store=store,
            workers=workers,
            tracker=tracker,
            recorder=recorder,
            metrics=metrics,
            policy=policy,
            policy_parameters=fleet.router.policy_parameters,
            clock=time.monotonic,
            seeds=Random(secrets.randbits(64)),
        )
        dispatcher = Dispatcher(services)
        feed = ViewFeed(store, tracker, time.monotonic)
        edge = EdgeServer(
            dispatcher,
            limits=fleet.limits,
            models=_ModelBook(fleet, tracker),
            readiness=lambda: _readiness(tracker, dispatcher),
            executor=executor,
        )
        admin = AdminServer(services=services, fleet=fleet)
        await stack.enter_async_context(background(feed=feed.run(), recorder=recorder.run()))
        config = fleet.router
        url = await listen(stack, edge.application(), config.host, config.port)
        admin_url = await listen(stack, admin.application(), config.admin_host, config.admin_port)
        _log.info("policy.loaded", policy=policy.name)
        _log.info("router.started", router=router_id, url=url)
        yield RunningRouter(
            dispatcher=dispatcher,
            tracker=tracker,
            recorder=recorder,
            services=services,
            url=url,
            admin_url=admin_url,
        )
        await dispatcher.drain(fleet.limits.drain_s)
        await services.settle()
        await recorder.flush()
        _log.info("router.stopped", router=router_id)


class _ModelBook:
    """Facts of the served models: the configured one, with what its workers said of it."""

    def __init__(self, fleet: FleetConfig, tracker: ViewTracker) -> None:
        self._fleet = fleet
        self._tracker = tracker
        self._tokenizer = tokenizer_for(fleet.model.engine)
        self._facts: dict[str, ModelFacts] = {}
        self._fingerprint: str | None = None

    def __call__(self) -> Mapping[str, ModelFacts]:
        """Facts by model name; built anew only when the workers' fingerprint changes."""
        workers = self._tracker.view().workers
        fingerprint = workers[0].fingerprint if workers else ""
        if fingerprint != self._fingerprint:
            model = self._fleet.model
            self._fingerprint = fingerprint
            self._facts = {
                model.name: ModelFacts(
                    name=model.name,
                    tokenizer=self._tokenizer,
                    block_tokens=workers[0].block_tokens if workers else 64,
                    context_tokens_max=model.context_tokens_max,
                    scope=scope_of(
                        model=model.name,
                        fingerprint=fingerprint,
                        tenant_salt=self._fleet.router.tenant_salt,
                    ),
                )
            }
        return self._facts


def _readiness(tracker: ViewTracker, dispatcher: Dispatcher) -> Readiness:
    """Ready when each role has a worker; a store that is away is told, and no reason to leave."""
    workers = [worker for worker in tracker.view().workers if not worker.is_draining]
    prefill = sum(worker.role == "prefill" for worker in workers)
    decode = sum(worker.role == "decode" for worker in workers)
    return Readiness(
        is_ready=bool(prefill and decode and not dispatcher.is_draining),
        details={
            "store": "away" if tracker.is_store_away else "ok",
            "mode": "last_view" if tracker.is_store_away else "normal",
            "view_age_s": round(tracker.age_s(), 3),
            "prefill_workers": prefill,
            "decode_workers": decode,
            "is_draining": dispatcher.is_draining,
        },
    )
