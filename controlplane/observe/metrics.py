"""Prometheus metrics of the router: names with base units, labels from closed sets."""

from __future__ import annotations

from functools import cache
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_FAST_SECONDS: Final = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25)


class _Unread:
    """Stands in for any metric, and for one of it by its labels: what it is told is dropped."""

    __slots__ = ()

    def __call__(self, *_: object) -> _Unread:
        return self

    labels = inc = dec = set = observe = set_function = __call__


class RouterMetrics:
    """All metrics of one router, in a registry of their own so that tests can have many."""

    @classmethod
    def unread(cls) -> RouterMetrics:
        """Those of a router that nobody scrapes: a replay counts what it needs by itself."""
        metrics, nothing = cls(), _Unread()
        for name in vars(metrics).keys() - {"registry"}:
            setattr(metrics, name, nothing)
        return metrics

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.requests_total = Counter(
            "prfaas_requests_total",
            "Finished requests by outcome.",
            ["outcome", "code"],
            registry=registry,
        )
        #: One of them by its labels; remembered.
        self.requests = cache(self.requests_total.labels)
        self.decisions_total = Counter(
            "prfaas_decisions_total",
            "Decisions by policy, reason and whether prefill left the datacenter.",
            ["policy", "reason", "offloaded"],
            registry=registry,
        )
        #: One of them by its labels. Remembered, because finding it takes longer than counting.
        self.decisions = cache(self.decisions_total.labels)
        self.decision_seconds = Histogram(
            "prfaas_decision_seconds",
            "Time of one decision, prefix matching included.",
            buckets=_FAST_SECONDS,
            registry=registry,
        )
        self.policy_faults_total = Counter(
            "prfaas_policy_faults_total",
            "Decisions that local_only made, because the live policy failed.",
            ["policy"],
            registry=registry,
        )
        self.plugin_failures_total = Counter(
            "prfaas_plugin_failures_total",
            "Failures of a live policy's filters, scorers and pickers.",
            ["plugin"],
            registry=registry,
        )
        self.shadow_decisions_total = Counter(
            "prfaas_shadow_decisions_total",
            "Answers of shadow policies: the same placement, another one, or none.",
            ["policy", "answer"],
            registry=registry,
        )
        self.documents_refused_total = Counter(
            "prfaas_documents_refused_total",
            "Published policies and plans that this router could not use.",
            ["topic"],
            registry=registry,
        )
        self.ttft_seconds = Histogram(
            "prfaas_request_ttft_seconds",
            "First byte of the request accepted to first output token sent.",
            ["offloaded"],
            buckets=_SECONDS,
            registry=registry,
        )
        #: One of them by its label; remembered.
        self.ttft = cache(self.ttft_seconds.labels)
        self.duration_seconds = Histogram(
            "prfaas_request_duration_seconds",
            "Request accepted to its end.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.kv_egress_bytes_total = Counter(
            "prfaas_kv_egress_bytes_total",
            "KV bytes that crossed a link for finished requests.",
            ["from_dc", "to_dc"],
            registry=registry,
        )
        self.retries_total = Counter(
            "prfaas_retries_total",
            "Further attempts by cause.",
            ["cause"],
            registry=registry,
        )
        self.migrations_total = Counter(
            "prfaas_migrations_total",
            "Streams that went on at another decode worker, by cause.",
            ["cause"],
            registry=registry,
        )
        self.retries_waiting = Gauge(
            "prfaas_retries_waiting",
            "Further attempts that wait for a place in the retry budget.",
            registry=registry,
        )
        self.retry_budget_remaining = Gauge(
            "prfaas_retry_budget_remaining",
            "Further attempts that may begin now.",
            registry=registry,
        )
        self.coalesced_total = Counter(
            "prfaas_coalesced_total",
            "Requests that waited for another one to compute their prefix.",
            registry=registry,
        )
        self.quarantined_total = Counter(
            "prfaas_quarantined_total",
            "Requests refused because they have ended workers.",
            registry=registry,
        )
        self.store_errors_total = Counter(
            "prfaas_store_errors_total", "Failed store calls.", ["op"], registry=registry
        )
        self.store_garbage = Gauge(
            "prfaas_store_garbage_values",
            "Values found in the store that nobody can read: skipped, or their key repaired.",
            registry=registry,
        )
        self.records_dropped_total = Counter(
            "prfaas_records_dropped_total",
            "Decision records that could not be written to the store.",
            registry=registry,
        )
        self.requests_in_flight = Gauge(
            "prfaas_requests_in_flight", "Requests being served.", registry=registry
        )
        self.queue_depth = Gauge(
            "prfaas_queue_depth_requests", "Requests that wait for a place.", registry=registry
        )
        self.queue_wait_seconds = Histogram(
            "prfaas_queue_wait_seconds",
            "Wait of an admitted request for its place.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.shed_total = Counter(
            "prfaas_shed_total",
            "Requests that were refused for load: full, evicted, waited or deadline.",
            ["cause"],
            registry=registry,
        )
        self.connections_closed_total = Counter(
            "prfaas_connections_closed_total",
            "Connections closed on clients: too many (connections, peer), a late head, stalled.",
            ["cause"],
            registry=registry,
        )
        self.view_age_seconds = Gauge(
            "prfaas_view_age_seconds", "Age of the newest input from the store.", registry=registry
        )
        self.decision_view_age_seconds = Histogram(
            "prfaas_decision_view_age_seconds",
            "Age of the newest input from the store when a decision was made.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.mode = Gauge(
            "prfaas_mode",
            "Step of the degraded ladder: 0 normal, 1 stale view, 2 store down, 3 local only, 4 shed.",
            registry=registry,
        )
        self.worker_state = Gauge(
            "prfaas_worker_state",
            "Workers by state: warming, healthy, suspect, ejected, draining.",
            ["state"],
            registry=registry,
        )
        self.refused_beats_total = Counter(
            "prfaas_refused_beats_total",
            "Heartbeats with figures no worker can have: capacity, load, profile, link.",
            ["reason"],
            registry=registry,
        )
        self.probes_total = Counter(
            "prfaas_probes_total",
            "Workers asked while the store was away: answered, mute, refused, silent.",
            ["result"],
            registry=registry,
        )
        self.link_probes_total = Counter(
            "prfaas_link_probes_total",
            "Ways over a link that were probed from both ends: answered, silent, unknown.",
            ["from_dc", "to_dc", "result"],
            registry=registry,
        )
        self.workers = Gauge("prfaas_workers", "Live workers.", ["dc", "role"], registry=registry)
        self.queue_tokens = Gauge(
            "prfaas_queue_depth_tokens",
            "Tokens still to be computed, as the router sees it.",
            ["dc", "role"],
            registry=registry,
        )
        self.link_reserved_bytes = Gauge(
            "prfaas_link_reserved_bytes",
            "Bytes that running requests still have to move.",
            ["from_dc", "to_dc"],
            registry=registry,
        )
        self.link_goodput_bps = Gauge(
            "prfaas_link_goodput_bits_per_second",
            "Measured while bytes moved.",
            ["from_dc", "to_dc"],
            registry=registry,
        )
