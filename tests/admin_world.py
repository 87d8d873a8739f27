"""What the tests of the admin API and its command share: records as the router makes them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any, cast

from builders import a_request, a_view

from controlplane.admin.server import AdminServer
from controlplane.config import DEFAULT_FLEET, LinkConfig, StoreConfig
from controlplane.domain.cluster import ClusterView
from controlplane.observe.metrics import RouterMetrics
from controlplane.router.assembly import assemble
from controlplane.router.recorder import Recorder
from controlplane.router.records import Attempt, DecisionRecord, Timeline
from controlplane.router.services import Services
from controlplane.router.view import ViewTracker
from controlplane.router.workers import WorkerClient
from controlplane.serving import listen
from controlplane.store.memory_store import MemoryStore
from controlplane.wire import DecodeReport, PrefillReport, TransferReport
from policies.api import Policy
from policies.registry import load_policy

#: Digits of the ids of `a_record()`.
DIGITS = "0123456789abcdef01234567"

#: The admin listener calls no worker.
_NO_WORKERS = cast("WorkerClient", object())


@cache
def a_policy(name: str, **parameters: int) -> Policy:
    """An installed policy; they are pure, so one serves all tests."""
    return load_policy(name, parameters)


def an_attempt(view: ClusterView | None = None, **overrides: Any) -> Attempt:
    """A decision of the real policy with a threshold of 64 tokens, on `a_view()` if not given."""
    policy, parameters = overrides.pop("policy", "prfaas"), overrides.pop("parameters", None)
    if parameters is None:
        parameters = {"threshold_tokens": 64} if policy == "prfaas" else {}
    ended_by = overrides.pop("ended_by", "ok")
    view = view or a_view()
    features = a_request(**overrides)
    return Attempt(
        policy=policy,
        parameters=parameters,
        seed=7,
        features=features,
        view=view,
        view_age_s=0.1,
        decision=a_policy(policy, **parameters).decide(features, view, Random(7)),
        ended_by=ended_by,
    )


def a_report(**overrides: Any) -> DecodeReport:
    """Prefill of 100 ms, transfer of 150 kB during it, first token after 220 ms."""
    values: dict[str, Any] = {
        "finish_reason": "stop",
        "output_tokens": 12,
        "prompt_tokens_computed": 1,
        "queue_s": 0.0,
        "first_token_s": 0.22,
        "finished_s": 0.6,
        "transfer": TransferReport(bytes=150_000, chunks=3, first_byte_s=0.05, finished_s=0.2),
        "prefill": PrefillReport(queue_s=0.02, compute_s=0.1, cached_tokens=0, computed_tokens=100),
    }
    return DecodeReport(**{**values, **overrides})


def a_timeline(**overrides: Any) -> Timeline:
    """Accepted to first token in 230 ms, to the end in 700 ms."""
    values: dict[str, Any] = {
        "parsed_s": 0.002,
        "decided_s": 0.003,
        "reserved_s": 0.004,
        "prefill_accepted_s": 0.01,
        "first_token_s": 0.23,
        "finished_s": 0.7,
    }
    return Timeline(**{**values, **overrides})


def a_record(*attempts: Attempt, digits: str = DIGITS, **overrides: Any) -> DecisionRecord:
    """A streamed chat that ended well after one attempt: prefilled in east, decoded in west."""
    values: dict[str, Any] = {
        "decision_id": f"dec-{digits}",
        "request_id": f"req-{digits}",
        "router": "west/router-1",
        "at": 1_760_000_000.25,
        "kind": "chat",
        "model": "m",
        "is_stream": True,
        "outcome": "done",
        "code": "ok",
        "attempts": attempts or (an_attempt(),),
        "timeline": a_timeline(),
        "report": a_report(),
        "story": ("Placed", "Reserved", "PrefillAccepted", "FirstToken", "StreamEnded"),
    }
    return DecisionRecord(**{**values, **overrides})


def a_failed_record(*attempts: Attempt, **overrides: Any) -> DecisionRecord:
    """A request whose only attempt lost its prefill worker."""
    values: dict[str, Any] = {
        "outcome": "failed",
        "code": "worker_lost",
        "detail": "cannot connect to east/p1",
        "timeline": a_timeline(prefill_accepted_s=None, first_token_s=None),
        "report": None,
        "story": ("Placed", "Reserved", "PrefillWorkerLost"),
    }
    attempts = attempts or (an_attempt(ended_by="PrefillWorkerLost"),)
    return a_record(*attempts, **{**values, **overrides})


@dataclass
class Clock:
    """Time that stands until a test moves it."""

    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class AdminWorld:
    """A router's shared parts, with an admin listener on them."""

    clock: Clock
    store: MemoryStore
    tracker: ViewTracker
    recorder: Recorder
    services: Services
    url: str

    async def keep(self, *records: DecisionRecord) -> None:
        """Finish requests: their records are in memory and in the store."""
        for record in records:
            self.recorder.add(record, None)
        await self.recorder.flush()


@asynccontextmanager
async def an_admin(*, recent_max: int = 100) -> AsyncIterator[AdminWorld]:
    """An admin listener of the production runner, on a port of its own."""
    fleet = DEFAULT_FLEET.model_copy(
        update={
            "links": (
                LinkConfig(from_datacenter="east", to_datacenter="west", capacity_mbit_per_s=8),
            )
        }
    )
    clock = Clock()
    store = MemoryStore(config=StoreConfig(), clock=clock)
    metrics = RouterMetrics()
    recorder = Recorder(store, metrics, recent_max=recent_max, pending_max=100)
    tracker = ViewTracker(
        home_datacenter="west", links=fleet.links, ttl_s=5, suspect_s=2, clock=clock
    )
    services = assemble(
        router_id="west/router-1",
        limits=fleet.limits,
        store=store,
        workers=_NO_WORKERS,
        tracker=tracker,
        recorder=recorder,
        metrics=metrics,
        policy=a_policy("prfaas", threshold_tokens=64),
        policy_parameters={"threshold_tokens": 64},
        clock=clock,
        seeds=Random(7),
    ).services
    async with AsyncExitStack() as stack:
        stack.push_async_callback(store.close)
        app = AdminServer(services=services, fleet=fleet).application()
        yield AdminWorld(
            clock=clock,
            store=store,
            tracker=tracker,
            recorder=recorder,
            services=services,
            url=await listen(stack, app, "127.0.0.1", 0),
        )
