"""Composition root of a router process: the only file that knows every class of it."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

from controlplane.admin.server import AdminServer
from controlplane.config import FleetConfig
from controlplane.domain.modes import MODES
from controlplane.edge.listener import listen_to_clients
from controlplane.edge.residency import Residency
from controlplane.edge.server import EdgeServer, Readiness
from controlplane.errors import ConfigError
from controlplane.observe.logs import get_logger
from controlplane.observe.metrics import RouterMetrics
from controlplane.planner.assembly import assemble_planner
from controlplane.planner.planner import in_thread
from controlplane.router.assembly import assemble
from controlplane.router.dispatcher import Dispatcher
from controlplane.router.documents import DocumentFeed, take_plan, take_policy
from controlplane.router.feed import ViewFeed, log_state
from controlplane.router.http_link_probes import HttpLinkProber
from controlplane.router.http_probes import HttpProber
from controlplane.router.http_workers import HttpWorkerClient
from controlplane.router.last_known import LastKnown
from controlplane.router.link_probes import LinkProbes
from controlplane.router.models import ModelBook
from controlplane.router.probes import Probes
from controlplane.router.recorder import Recorder
from controlplane.router.rules import view_rules
from controlplane.router.services import Services
from controlplane.router.shadows import ThreadRunner
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
async def run_router(
    fleet: FleetConfig, store: StateStore, *, name: str = "router", state_dir: Path | None = None
) -> AsyncIterator[RunningRouter]:
    """
    Start a router, yield it while it listens, drain and stop it.

    Args:
        fleet: What it serves.
        store: What it shares with the other routers.
        name: Its name in logs and records; each life of it has a number of its own besides.
        state_dir: Where it keeps which workers it knows, for a next life that starts without the store.

    Raises:
        ConfigError: The policy or its parameters are wrong, a port is taken, or the directory cannot be
            made.
    """
    router_id = f"{fleet.router.datacenter}/{name}-{secrets.token_hex(4)}"
    try:
        policy = load_policy(fleet.router.policy, fleet.router.policy_parameters)
    except PolicyError as error:
        raise ConfigError(f"router.policy: {error}") from error
    metrics = RouterMetrics()
    metrics.store_garbage.set_function(lambda: store.decode_errors_total)
    tracker = ViewTracker(
        home_datacenter=fleet.router.datacenter,
        links=fleet.links,
        ttl_s=fleet.heartbeat.ttl_s,
        clock=time.monotonic,
        rules=view_rules(fleet),
        on_state=log_state,
        on_refused=lambda reason: metrics.refused_beats_total.labels(reason).inc(),
    )
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
        dispatcher = assemble(
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
            store_wait_s=fleet.store.call_timeout_s,
            shadow_runner=ThreadRunner(),
        )
        services = dispatcher.services
        stack.callback(services.shadows.close)
        documents = DocumentFeed(
            store,
            metrics,
            {"policy": partial(take_policy, services), "plan": partial(take_plan, tracker)},
        )
        feed = ViewFeed(
            store,
            tracker,
            time.monotonic,
            on_blamed=lambda blamed: services.quarantine.blame(
                blamed.fingerprint, blamed.incarnation
            ),
            on_published=documents.published,
            on_synced=documents.missed,
        )
        prober = HttpProber(fleet.health)
        stack.push_async_callback(prober.close)
        last_known = LastKnown(state_dir, router=f"{fleet.name}-{name}-{fleet.router.port}")
        remembered = last_known.read()
        probes = Probes(
            prober,
            tracker,
            metrics,
            fleet.health,
            Random(secrets.randbits(64)),
            # The store says more than any file, once it was heard.
            last_known=lambda: () if feed.is_synced.is_set() else remembered,
        )
        link_prober = HttpLinkProber()
        stack.push_async_callback(link_prober.close)
        link_probes = LinkProbes(
            link_prober,
            tracker,
            metrics,
            fleet.health,
            Random(secrets.randbits(64)),
            time.monotonic,
        )
        planner = (
            assemble_planner(
                services,
                fleet.planner,
                home=fleet.router.datacenter,
                clock=time.monotonic,
                client=workers,
                work=in_thread,
            )
            if fleet.planner.enabled
            else None
        )
        edge = EdgeServer(
            dispatcher,
            limits=fleet.limits,
            models=ModelBook(fleet, tracker),
            readiness=lambda: _readiness(tracker, dispatcher),
            executor=executor,
            tenant_salt=fleet.router.tenant_salt,
            residency=Residency([site.name for site in fleet.datacenters], fleet.tenants),
        )
        admin = AdminServer(services=services, fleet=fleet)
        await stack.enter_async_context(
            background(
                feed=feed.run(),
                documents=documents.run(),
                probes=probes.run(),
                link_probes=link_probes.run(),
                recorder=recorder.run(),
                keys=services.keys.run(),
                last_known=last_known.run(tracker),
                **({"planner": planner.run()} if planner is not None else {}),
            )
        )
        # A router that has not heard of the workers could only refuse. With the store away it
        # listens all the same, and says so.
        with suppress(TimeoutError):
            async with asyncio.timeout(fleet.store.slow_call_timeout_s):
                await feed.is_synced.wait()
        if not feed.is_synced.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(fleet.store.slow_call_timeout_s):
                    await probes.ask_all()
        config = fleet.router
        listener = await listen_to_clients(
            stack,
            edge.application(),
            config.host,
            config.port,
            limits=fleet.limits,
            metrics=metrics,
        )
        admin_url = await listen(stack, admin.application(), config.admin_host, config.admin_port)
        _log.info("policy.loaded", policy=policy.name)
        _log.info("router.started", router=router_id, url=listener.url)
        yield RunningRouter(
            dispatcher=dispatcher,
            tracker=tracker,
            recorder=recorder,
            services=services,
            url=listener.url,
            admin_url=admin_url,
        )
        dispatcher.is_draining = True
        await listener.leave(fleet.limits.leave_grace_s)
        await dispatcher.drain(fleet.limits.drain_s)
        await services.settle()
        await recorder.flush()
        _log.info("router.stopped", router=router_id)


def _readiness(tracker: ViewTracker, dispatcher: Dispatcher) -> Readiness:
    """Ready when each role has a worker; a store that is away is told, and no reason to leave."""
    view = tracker.view()
    workers = [worker for worker in view.workers if not worker.is_draining]
    prefill = sum(worker.role == "prefill" for worker in workers)
    decode = sum(worker.role == "decode" for worker in workers)
    return Readiness(
        is_ready=bool(prefill and decode and view.mode != "shed" and not dispatcher.is_draining),
        details={
            "store": "away" if tracker.is_store_away else "ok",
            "mode": view.mode,
            "mode_step": MODES.index(view.mode),
            "view_age_s": round(tracker.age_s(), 3),
            "prefill_workers": prefill,
            "decode_workers": decode,
            "is_draining": dispatcher.is_draining,
        },
    )
