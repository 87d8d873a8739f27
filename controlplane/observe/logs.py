"""Structured logs: one canonical line per request, events named in one place, fields allow-listed."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any, Final, Literal

import structlog

#: Every event that may be logged. A name that is not here is a bug (tests read this list).
EVENTS: Final = frozenset(
    {
        "router.started",
        "router.stopped",
        "worker.started",
        "worker.stopped",
        "worker.registered",
        "worker.lost",
        "worker.suspected",
        "worker.ejected",
        "worker.recovered",
        "link.degraded",
        "link.restored",
        "engine.stalled",
        "engine.recovered",
        "engine.awaited",
        "engine.found",
        "engine.silent",
        "engine.answers",
        "engine.restarted",
        "engine.kv_size_unknown",
        "kv_events.matched",
        "kv_events.unmatched",
        "kv_events.unreadable",
        "store.degraded",
        "store.restored",
        "state.unreadable",
        "state.unwritable",
        "policy.loaded",
        "policy.failed",
        "shadow.stopped",
        "document.refused",
        "planner.leads",
        "planner.follows",
        "plan.published",
        "plan.overtaken",
        "plan.unsolvable",
        "worker.asked",
        "request.finished",
        "request.redispatched",
        "request.migrated",
        "request.blamed",
        "inventory.cut",
        "prefill.failed",
        "prefix.copy_failed",
        "role.changing",
        "role.changed",
        "role.refused",
        "lending.changed",
        "decode.failed",
        "kv.expired",
        "kv.refused",
        "records.dropped",
        "internal.error",
        "fleet.starting",
        "fleet.ready",
        "fleet.stopped",
        "process.exited",
    }
)

#: Fields that may be logged. Prompts, tokens, headers, keys and tenants' addresses have no name
#: here, so they cannot be written by accident.
FIELDS: Final = frozenset({
    "event", "level", "timestamp", "exc_info", "exception",
    "request_id", "decision_id", "client_request_id", "model", "router", "worker", "from_worker",
    "to_worker", "tokens_kept",
    "cause", "attempt", "datacenter", "role", "incarnation", "policy", "reason", "outcome", "code",
    "prefill_worker", "decode_worker", "is_offloaded", "input_tokens", "cached_tokens",
    "output_tokens", "attempts", "ttft_s", "e2e_s", "tpot_s", "queue_wait_s", "prefill_s",
    "transfer_s", "egress_bytes", "predicted_ttft_s", "age_s", "host", "port", "admin_port",
    "kv_port", "count", "segment", "link", "story", "detail", "process", "pid", "exit_status", "url",
    "version", "is_complete", "gap", "fingerprint",
})  # fmt: skip

_dropped_fields_total = 0


def dropped_fields_total() -> int:
    """Fields dropped since the start because no list allows them."""
    return _dropped_fields_total


def _allow_listed(_: object, __: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    if FIELDS.issuperset(event):
        return event
    global _dropped_fields_total  # noqa: PLW0603 - a process-wide count
    unknown = event.keys() - FIELDS
    for name in unknown:
        del event[name]
    _dropped_fields_total += len(unknown)
    return event


#: Made once; `json.dumps` with options would make one for each line. ASCII, so that no text of any
#: field can break a line.
_ENCODER: Final = json.JSONEncoder(default=repr, separators=(",", ":"))


def _json_line(logger: object, method: str, event: MutableMapping[str, Any]) -> str:
    """A line for machines; all steps in one, because each request ends in it."""
    event["level"] = method
    event["timestamp"] = datetime.now(UTC).isoformat()
    if "exc_info" in event:
        event = structlog.processors.format_exc_info(logger, method, event)
    return _ENCODER.encode(_allow_listed(logger, method, event))


def configure_logs(form: Literal["console", "json"], level: str) -> None:
    """Send structlog to standard error, in a form for people or for machines."""
    for_people: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
        structlog.processors.format_exc_info,
        _allow_listed,
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=18),
    ]
    structlog.configure(
        processors=for_people if form == "console" else [_json_line],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )


def get_logger() -> structlog.typing.FilteringBoundLogger:
    """The process's logger; bind fields explicitly, never through context variables."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return logger
