"""Runs made by hand, for tests of what is judged in them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chaos.history import Attempt, Request
from chaos.judge import Verdict, judge
from chaos.pool import Item, write_pool

ITEM = Item(
    kind="completion",
    prompt="once",
    output_tokens_max=4,
    text="upon a time",
    output_tokens=4,
    finish_reason="length",
)


def an_attempt(text: str = ITEM.text, **changes: Any) -> Attempt:
    """A right answer in three pieces, with changes."""
    third = max(1, len(text) // 3)
    cuts = (text[:third], text[third : 2 * third], text[2 * third :])
    values: dict[str, Any] = {
        "router": "router-0",
        "sent_s": 10.0,
        "ended_s": 11.0,
        "headers_s": 10.2,
        "status": 200,
        "request_id": "req-1",
        "pieces": [(10.3 + number / 10, cut) for number, cut in enumerate(cuts)],
        "output_tokens": 4,
        "finish_reason": "length",
        "end": "done",
    }
    return Attempt(**(values | changes))


def a_run(
    directory: Path,
    attempts: Sequence[Attempt],
    check: str,
    *,
    bound: float = 0,
    events: Sequence[dict[str, Any]] = (),
    end: dict[str, Any] | None = None,
    tenants: Sequence[str] = (),
    probes: Sequence[dict[str, Any]] = (),
    records: Sequence[dict[str, Any]] = (),
    routers: Sequence[str] = ("router-0",),
    **options: Any,
) -> Verdict:
    """The verdict of one check on requests with one attempt each."""
    checks = [{"name": check, "bound": bound, "promise": "P00", "needs": 1, "options": options}]
    document = {
        "name": "hand",
        "fault": "none",
        "checks": checks,
        "routers": list(routers),
        "workers": ["west/decode-0"],
        "version": "new",
        "capacity_per_s": 20.0,
        "load": {"count": len(attempts), "rate_per_s": 12.0},
    }
    (directory / "scenario.json").write_text(json.dumps(document))
    write_pool(directory / "pool.jsonl", [ITEM])
    whose = tenants or [""] * len(attempts)
    lines = [
        Request(number=number, item=0, is_stream=True, attempts=[one], tenant=tenant).to_line()
        for number, (one, tenant) in enumerate(zip(attempts, whose, strict=True))
    ]
    (directory / "history.jsonl").write_text("".join(f"{line}\n" for line in lines))
    for name, rows in (("events", events), ("probes", probes), ("records", records)):
        (directory / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    nothing = {
        "ttl_s": 1,
        "redis": {},
        "workers": {"w": {"prfaas_leases_active": 0}},
        "routers": {},
    }
    (directory / "end.json").write_text(json.dumps(nothing | (end or {})))
    (verdict,) = judge(directory)
    return verdict
