"""The router's own parts put together: the same in production, in simulations and in tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from controlplane.config import LimitsConfig, StoreConfig
from controlplane.observe.metrics import RouterMetrics
from controlplane.router.admission import Admission, decode_places
from controlplane.router.coalescing import Coalescing
from controlplane.router.dispatcher import Dispatcher
from controlplane.router.keys import KeyKeeper
from controlplane.router.quarantine import Quarantine
from controlplane.router.recorder import Recorder
from controlplane.router.retry_budget import RetryBudget
from controlplane.router.services import Services
from controlplane.router.shadows import InlineRunner, Runner, Shadows
from controlplane.router.view import ViewTracker
from controlplane.router.workers import WorkerClient
from controlplane.store.api import StateStore
from policies.api import Policy


def assemble(
    *,
    router_id: str,
    limits: LimitsConfig,
    store: StateStore,
    workers: WorkerClient,
    tracker: ViewTracker,
    recorder: Recorder,
    metrics: RouterMetrics,
    policy: Policy,
    policy_parameters: Mapping[str, Any],
    clock: Callable[[], float],
    seeds: Random,
    store_wait_s: float = StoreConfig().call_timeout_s,
    shadow_runner: Runner | None = None,
) -> Dispatcher:
    """
    A dispatcher with everything its flights share, which is its `services`.

    Nothing runs yet: `services.keys.run()` and `recorder.run()` are tasks of the caller.
    """

    def in_flight() -> int:
        return dispatcher.in_flight

    def places() -> int:
        return decode_places(tracker.view(), requests_max=limits.requests_max)

    services = Services(
        router_id=router_id,
        limits=limits,
        store=store,
        workers=workers,
        tracker=tracker,
        recorder=recorder,
        metrics=metrics,
        policy=policy,
        policy_parameters=policy_parameters,
        clock=clock,
        seeds=seeds,
        store_wait_s=store_wait_s,
        retry_budget=RetryBudget(
            share=limits.retry_share, floor=limits.retry_floor, in_flight=in_flight
        ),
        coalescing=Coalescing(
            tokens_min=limits.coalesce_tokens_min,
            waiters_max=limits.coalesce_waiters_max,
            hint_s=limits.coalesce_hint_s,
            clock=clock,
        ),
        quarantine=Quarantine(
            deaths_max=limits.quarantine_deaths,
            window_s=limits.quarantine_s,
            workers=lambda: tracker.view().size,
            clock=clock,
        ),
        keys=KeyKeeper(
            store,
            metrics,
            owner=router_id,
            ttl_s=limits.key_ttl_s,
            keep_s=limits.key_keep_s,
            clock=clock,
        ),
        shadows=Shadows(metrics, shadow_runner or InlineRunner(), clock=clock),
    )
    budget = services.retry_budget
    metrics.retries_waiting.set_function(lambda: budget.waiting)
    metrics.retry_budget_remaining.set_function(lambda: max(0, budget.limit - budget.used))
    admission = Admission(limits=limits, metrics=metrics, clock=clock, places=places)
    dispatcher = Dispatcher(services, admission)
    return dispatcher
