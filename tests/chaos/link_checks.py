"""Checks of what routers know of a link."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from chaos.evidence import Evidence, quantile
from chaos.findings import Finding

_BITS: Final = 8


def rate_error(run: Evidence, options: Mapping[str, Any]) -> Finding:
    """How far the rate that decisions were made on is off what a throttled link gives."""
    errors = []
    for event in run.named("fault"):
        true_bps = event["faults"].get("bytes_per_s", 0.0) * _BITS
        begins_s = event["wall_s"] + options["after_s"]
        ends_s = event["wall_s"] + event["for_s"]
        errors += [
            abs(rate_bps / true_bps - 1)
            for record in run.records
            if true_bps and begins_s <= record["wall_s"] <= ends_s
            for rate_bps in _rates_bps(record)
        ]
    share = options["share"]
    return Finding(
        value=quantile(errors, share),
        n=len(errors),
        what=f"rate of a slow link off by, p{share * 100:g}, from {options['after_s']:g} s on",
    )


def _rates_bps(record: Mapping[str, Any]) -> list[float]:
    """Of the only link, as each attempt was decided on; nothing measured is the whole budget."""
    return [
        min(link["capacity_bps"], link.get("measured_bps") or link["capacity_bps"])
        for attempt in record["attempts"]
        for link in attempt["links"]
    ]


LINK_CHECKS: Final = (rate_error,)
