"""Scenarios of what routers know of a link, and not only of what becomes of requests."""

from __future__ import annotations

from typing import Final

from chaos.plans import always, check
from chaos.scenario import Event, Form, Scenario

#: 10 % of the link's budget, and when routers have to know that it gives no more.
_SLOW_BYTES_PER_S: Final = 2.5e6
_KNOWN_AFTER_S: Final = 5.0
#: Routers know it as good before it becomes slow.
_GOOD_S: Final = 4.0


def link_slow(form: Form) -> Scenario:
    """(i) A link gives a tenth of its budget and is asked for more."""
    for_s = 60.0 if form == "long" else 16.0
    slow = {"bytes_per_s": _SLOW_BYTES_PER_S, "is_shared": True, "direction": "down"}
    fault = Event(at_s=_GOOD_S, do="fault", target="kv-east-*", for_s=for_s, options=slow)
    return Scenario(
        name="link-slow",
        fault=f"KV link at 10 % for {for_s:g} s, asked for more",
        seconds=_GOOD_S + for_s,
        load_share=0.0,
        probe="fill_link",
        plan=always((fault,)),
        reads_records=True,
        checks=(
            check("lost", 0, "P27"),
            check("crashes", 0, "P27"),
            check("success", 0.99, "P27"),
            check("rate_error", 0.3, "P27", after_s=_KNOWN_AFTER_S, share=0.9),
        ),
    )
