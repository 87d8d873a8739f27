"""Prometheus metrics of a worker process."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class WorkerMetrics:
    """All metrics of one worker, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.prefill_seconds = Histogram(
            "prfaas_prefill_seconds", "Compute of one prefill.", buckets=_SECONDS, registry=registry
        )
        self.kv_transfer_seconds = Histogram(
            "prfaas_kv_transfer_seconds",
            "Decode job accepted to its last KV byte.",
            ["from_dc"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.kv_received_bytes_total = Counter(
            "prfaas_kv_received_bytes_total", "KV bytes received.", ["from_dc"], registry=registry
        )
        self.transfer_mismatches_total = Counter(
            "prfaas_transfer_mismatches_total",
            "Requests whose prompt the engine computed although its KV should have come from outside.",
            ["from_dc"],
            registry=registry,
        )
        self.prefix_copies_total = Counter(
            "prfaas_prefix_copies_total",
            "Copies of other workers' cached prefixes, by outcome.",
            ["code"],
            registry=registry,
        )
        self.jobs_total = Counter(
            "prfaas_jobs_total",
            "Jobs by role and outcome code.",
            ["role", "code"],
            registry=registry,
        )
        self.prompt_tokens_computed = Gauge(
            "prfaas_prompt_tokens_computed",
            "Prompt tokens this process has computed since it started.",
            ["phase"],
            registry=registry,
        )
        self.output_tokens = Gauge(
            "prfaas_output_tokens",
            "Output tokens this process has made since it started.",
            registry=registry,
        )
        self.queue_requests = Gauge(
            "prfaas_queue_depth_requests", "Requests waiting and running.", registry=registry
        )
        self.queue_tokens = Gauge(
            "prfaas_queue_depth_tokens", "Tokens still to be computed.", registry=registry
        )
        self.segments = Gauge(
            "prfaas_leases_active", "Segments that can be read.", registry=registry
        )
        self.segment_bytes = Gauge(
            "prfaas_segment_bytes", "Bytes held for readers.", registry=registry
        )
        self.kv_bytes = Gauge(
            "prfaas_kv_bytes",
            "Bytes of KV in the engine, its prefix cache included.",
            registry=registry,
        )
        self.kv_use = Gauge(
            "prfaas_kv_use_ratio",
            "Part of the engine's room for KV in use; 0 where it does not tell.",
            registry=registry,
        )
        self.preemptions = Gauge(
            "prfaas_preemptions",
            "Requests that lost their KV to others since the engine started.",
            registry=registry,
        )
        self.guessed_prefixes = Gauge(
            "prfaas_prefixes_are_guessed",
            "1 where routers are told by what was sent to the engine what its prefix cache holds.",
            registry=registry,
        )
        self.unmatched_prompts = Gauge(
            "prfaas_kv_events_unmatched_prompts",
            "Prompts that the engine's KV events did not tell of, since the process started.",
            registry=registry,
        )
        self.kv_sent_bytes = Gauge(
            "prfaas_kv_egress_bytes",
            "KV bytes sent over a link since the process started.",
            ["to_dc"],
            registry=registry,
        )
        self.store_errors_total = Counter(
            "prfaas_store_errors_total", "Failed store calls.", ["op"], registry=registry
        )
