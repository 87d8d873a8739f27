"""Prometheus metrics of the router: names with base units, labels from closed sets."""

from __future__ import annotations

from functools import cache
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_FAST_SECONDS: Final = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25)


class RouterMetrics:
    """All metrics of one router, in a registry of their own so that tests can have many."""

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
        self.store_errors_total = Counter(
            "prfaas_store_errors_total", "Failed store calls.", ["op"], registry=registry
        )
        self.records_dropped_total = Counter(
            "prfaas_records_dropped_total",
            "Decision records that could not be written to the store.",
            registry=registry,
        )
        self.requests_in_flight = Gauge(
            "prfaas_requests_in_flight", "Requests being served.", registry=registry
        )
        self.view_age_seconds = Gauge(
            "prfaas_view_age_seconds", "Age of the newest input from the store.", registry=registry
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
