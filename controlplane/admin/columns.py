"""Columns of the status page's tables."""

from __future__ import annotations

from typing import Final

from controlplane.admin.binding import Column, badge, bar, decision_link, show
from controlplane.admin.markup import tag

WORKERS: Final = (
    Column("Worker", lambda item: show(item, "worker_id", name="strong"), is_wide=True),
    Column("Role", lambda item: show(item, "role")),
    Column("Status", lambda item: badge(item, "status")),
    Column(
        "Requests / slots",
        lambda item: (
            bar(item, "busy_ratio"),
            tag(
                "span", show(item, "pending_requests", "count"), " / ", show(item, "slots", "count")
            ),
        ),
        is_number=True,
    ),
    Column("Tokens to do", lambda item: show(item, "pending_tokens", "count"), is_number=True),
    Column(
        "Prefill", lambda item: show(item, "profile.prefill_s_per_token", "speed"), is_number=True
    ),
    Column("Decode step", lambda item: show(item, "profile.decode_step_s", "step"), is_number=True),
    Column("Cached blocks", lambda item: show(item, "held_blocks", "count"), is_number=True),
    Column("KV held", lambda item: show(item, "kv_bytes", "size"), is_number=True),
    Column("Incarnation", lambda item: show(item, "incarnation", name="code")),
)

LINKS: Final = (
    Column("Link", lambda item: show(item, "link_id", name="strong"), is_wide=True),
    Column(
        "Utilisation, 10 s",
        lambda item: (bar(item, "utilisation_ratio"), show(item, "utilisation_ratio", "percent")),
        is_number=True,
    ),
    Column("Now", lambda item: show(item, "egress_bps", "rate"), is_number=True),
    Column("Budget", lambda item: show(item, "capacity_bps", "rate"), is_number=True),
    Column("Goodput", lambda item: show(item, "goodput_bps", "rate"), is_number=True),
    Column("Round trip", lambda item: show(item, "rtt_s", "seconds"), is_number=True),
    Column(
        "Promised",
        lambda item: (
            show(item, "reserved_bytes", "size"),
            " = ",
            show(item, "reserved_s", "seconds"),
        ),
        is_number=True,
    ),
    Column("Moved", lambda item: show(item, "bytes_total", "size"), is_number=True),
)

DECISIONS: Final = (
    Column("Time, UTC", lambda item: show(item, "at", "clock", name="time")),
    Column("Request", decision_link),
    Column("Prompt", lambda item: show(item, "input_tokens", "count"), is_number=True),
    Column("Uncached", lambda item: show(item, "uncached_tokens", "count"), is_number=True),
    Column(
        "Prefilled by, decoded by",
        lambda item: (
            show(item, "prefill_worker"),
            tag("span", " → ", class_="quiet"),
            show(item, "decode_worker"),
        ),
        is_wide=True,
    ),
    Column("Reason", lambda item: show(item, "reason", "words"), is_wide=True),
    Column(
        "TTFT, predicted",
        lambda item: show(item, "predicted_ttft_s", "seconds"),
        is_number=True,
    ),
    Column("TTFT", lambda item: show(item, "ttft_s", "seconds", name="strong"), is_number=True),
    Column("Egress", lambda item: show(item, "egress_bytes", "size"), is_number=True),
    Column("Outcome", lambda item: badge(item, "outcome")),
)
